"""``klto boot``: boot a kernel in QEMU and run proofs."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from klto.cli.options import add_output_options, add_tree_options

if TYPE_CHECKING:
    from klto.boot.guest import Compiler
    from klto.boot.images import Arch, KernelImage
    from klto.boot.run import BootRequest, BootResult, BootRun

#: Lines of the console that a failure shows; the log has all.
_SHOWN_LINES = 15


def configure(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("proofs", nargs="*", metavar="PROOF", help="proofs to run (default: all that apply)")
    add_tree_options(parser)
    parser.add_argument(
        "--kernel", metavar="IMAGE", type=Path, help="boot this image instead of a build dir's"
    )
    parser.add_argument(
        "--module",
        dest="modules",
        metavar="NAME",
        action="append",
        default=[],
        help="load this kernel module, or .ko file, instead of all (proof modules; repeatable)",
    )
    parser.add_argument(
        "--names", metavar="FILE", type=Path, help="functions for livepatch-names, one a line"
    )
    parser.add_argument("--junit", metavar="FILE", type=Path, help="write the results as JUnit XML, too")
    parser.add_argument(
        "--decode",
        metavar="LOG",
        type=Path,
        help="boot nothing: decode the panics in a console log (- for stdin)",
    )
    parser.add_argument(
        "--timeout",
        metavar="S",
        type=_seconds,
        help="seconds the guest may take (default: 60, 120 without KVM)",
    )
    parser.add_argument("--log", metavar="FILE", type=Path, help="where to keep the console log")
    parser.add_argument("--append", metavar="TEXT", default="", help="more for the kernel's command line")
    parser.add_argument(
        "--qemu", metavar="PROGRAM", help="QEMU to use (default: the architecture's, from PATH)"
    )
    parser.add_argument(
        "--accel", choices=("auto", "kvm", "tcg"), default="auto", help="default: KVM if it proves to work"
    )
    add_output_options(parser)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e6:
        raise argparse.ArgumentTypeError(f"not a number of seconds: {text!r}")
    return value


def run(args: argparse.Namespace) -> int:
    """Boot, print the verdicts; the contract's exit status."""
    from klto.boot.run import boot_kernel

    if args.decode is not None:
        return _decode(args)
    request = _request(args)
    if not args.quiet:
        release = f"Linux {request.image.release}, " if request.image.release else ""
        print(f"booting {request.image.path} ({release}{request.image.arch})", file=sys.stderr)
    result = boot_kernel(request)
    if args.json:
        _print_json(result)
    else:
        show_result(result, request, quiet=args.quiet, verbose=args.verbose)
    _keep(result, request, args.junit)
    return exit_status(result)


def _keep(result: BootResult, request: BootRequest, junit: Path | None) -> None:
    """Write the results where they were asked for: into the build's record, and as JUnit XML."""
    from klto.files import write_whole
    from klto.report.boot import recorded
    from klto.report.junit import junit_xml

    if request.build_dir is not None and result.runs:
        from klto.record import add_boots

        add_boots(request.build_dir / ".klto" / "record.json", recorded(result, request.build_dir))
    if junit is not None:
        write_whole(junit, junit_xml(result))


def _decode(args: argparse.Namespace) -> int:
    """Decode a log's panics. 0 whatever was found: what a log says is no failure of klto's."""
    import json

    from klto.boot.decode import decode_log
    from klto.boot.decode_tools import find_tools
    from klto.errors import UsageError
    from klto.kernel.toolchain import find_toolchain
    from klto.report.decoded import decoded_json, decoded_text

    if args.proofs or args.kernel is not None:
        raise UsageError(
            "--decode boots nothing: it takes a log and a build dir", "klto boot --decode LOG -b DIR"
        )
    build_dir: Path = args.build_dir or args.tree
    config = _config_of(build_dir)
    text = _read_log(args.decode)
    toolchain = find_toolchain(None, build_dir, args.toolchain)
    folders = dict.fromkeys((toolchain.bin_dir, toolchain.clang.parent))
    decoded = decode_log(text, build_dir, find_tools(folders), config)
    if args.json:
        print(json.dumps(decoded_json(decoded, str(args.decode)), indent=2))
    else:
        print(decoded_text(decoded, quiet_frames=not args.verbose), end="")
    return 0


def _read_log(path: Path) -> str:
    """A console log; ``-`` is standard input."""
    from klto.errors import UsageError

    try:
        data = sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()
    except OSError as error:
        raise UsageError(
            f"cannot read {path}: {error.strerror}", "give a console log, or - for stdin"
        ) from error
    return data.decode("utf-8", "replace")


def _request(args: argparse.Namespace) -> BootRequest:
    from klto.boot.catalog import select_proofs
    from klto.boot.qemu import Accelerator, find_qemu
    from klto.boot.run import BootRequest
    from klto.files import user_cache_dir

    select_proofs(args.proofs)
    image, config, build_dir = _kernel(args)
    find_qemu(image.arch, args.qemu)
    cache = user_cache_dir()
    return BootRequest(
        image=image,
        compiler=_compiler(args.toolchain, build_dir),
        log=args.log or _default_log(image, build_dir, cache),
        cache=cache,
        proofs=tuple(args.proofs),
        config=config,
        build_dir=build_dir,
        modules=tuple(args.modules),
        names=args.names,
        qemu=args.qemu,
        accelerator=None if args.accel == "auto" else Accelerator(args.accel),
        timeout=args.timeout,
        append=args.append,
    )


def _kernel(args: argparse.Namespace) -> tuple[KernelImage, dict[str, str] | None, Path | None]:
    """The image, its configuration and its build dir, the latter two where they are known."""
    from klto.boot.images import find_built_image, read_image
    from klto.errors import UsageError

    wanted = _arch(args.arch)
    if args.kernel is not None:
        if args.build_dir is not None:
            raise UsageError("--kernel and -b exclude each other", hint="name one kernel")
        return read_image(args.kernel, wanted), None, None
    build_dir: Path = args.build_dir or args.tree
    config = _config_of(build_dir)
    arch = _config_arch(config, build_dir)
    if wanted is not None and wanted is not arch:
        raise UsageError(f"{build_dir} is configured for {arch}, not {wanted}")
    return read_image(find_built_image(build_dir, arch), arch), config, build_dir


def _arch(name: str | None) -> Arch | None:
    from klto.boot.images import Arch
    from klto.errors import UsageError

    if name is None:
        return None
    try:
        return Arch(name)
    except ValueError:
        raise UsageError(f"cannot boot {name!r} kernels", hint=f"architectures: {', '.join(Arch)}") from None


def _config_of(build_dir: Path) -> dict[str, str]:
    from klto.errors import UsageError
    from klto.kernel.kconfig_requests import read_config

    path = build_dir / ".config"
    if not path.is_file():
        raise UsageError(
            f"no kernel was configured in {build_dir}: there is no {path}",
            hint="name a build dir with -b, or an image with --kernel",
        )
    return read_config(path)


def _config_arch(config: dict[str, str], build_dir: Path) -> Arch:
    from klto.boot.images import Arch
    from klto.errors import UsageError

    for arch, option in ((Arch.X86_64, "X86_64"), (Arch.ARM64, "ARM64")):
        if config.get(option) == "y":
            return arch
    raise UsageError(
        f"{build_dir}/.config is for neither x86_64 nor arm64", hint=f"klto boots {' and '.join(Arch)}"
    )


def _default_log(image: KernelImage, build_dir: Path | None, cache: Path) -> Path:
    if build_dir is not None:
        return build_dir / ".klto" / "console.log"
    import hashlib
    import os

    key = hashlib.sha256(os.fsencode(image.path.absolute())).hexdigest()[:12]
    return cache / "console" / f"{key}.log"


def _compiler(toolchain: str | None, build_dir: Path | None) -> Compiler:
    """The clang and ld.lld to make the init with: those named, else the build dir's, PATH's, the newest."""
    from klto.boot.guest import Compiler
    from klto.kernel.toolchain import find_toolchain

    found = find_toolchain(None, build_dir, toolchain)
    return Compiler(found.clang, found.ld_lld)


def exit_status(result: BootResult) -> int:
    """0 passed; 4 failed; 5 unknown; 2 when no proof applies to the kernel."""
    from klto.errors import LostMachineError, ProofError, UsageError

    return {
        "passed": 0,
        "failed": ProofError.exit_status,
        "unknown": LostMachineError.exit_status,
        "not-applicable": UsageError.exit_status,
    }[result.status]


def _print_json(result: BootResult) -> None:
    import json

    from klto.report.boot import boot_json

    print(json.dumps(boot_json(result), indent=2))


def show_result(
    result: BootResult, request: BootRequest, *, quiet: bool = False, verbose: bool = False
) -> None:
    """For people: the verdicts on stdout; what went wrong, with the console's last lines, on stderr."""
    from klto import process

    if not quiet:
        for proof in (proof for proof in result.proofs if proof.status != "not-applicable"):
            print(f"{proof.name:<15} {proof.status:<7} {proof.seconds:6.2f} s  {_first(proof.evidence)}")
            for line in proof.evidence if verbose else ():
                print(f"    {line}")
        others = [f"{p.name} ({_first(p.evidence)})" for p in result.proofs if p.status == "not-applicable"]
        if others and result.runs:
            print(f"not applicable: {', '.join(others)}")
    for run in result.runs if verbose else ():
        print(
            f"{run.place}: {run.accelerator}, QEMU {run.qemu_version}: {process.quote(run.qemu)}",
            file=sys.stderr,
        )
    ran = {proof.name for run in result.runs for proof in run.proofs}
    for proof in (proof for proof in result.proofs if proof.name not in ran):
        if proof.status in ("failed", "unknown") or not result.runs:
            print(f"klto: proof {proof.name} cannot run: {'; '.join(proof.evidence)}", file=sys.stderr)
    for run in result.runs:
        if run.status in ("failed", "unknown"):
            _show_failure(run, request)


def _show_failure(run: BootRun, request: BootRequest) -> None:
    """The end of one boot's console, its proofs that did not pass, and how to decode what the kernel said."""
    from klto import process

    for line in run.console_tail[-_SHOWN_LINES:]:
        print(f"  | {line}", file=sys.stderr)
    for proof in run.proofs:
        if proof.status not in ("passed", "not-applicable"):
            print(f"klto: proof {proof.name} {proof.status}: {run.ending}", file=sys.stderr)
            for line in proof.evidence:
                if line != run.ending:
                    print(f"  {line}", file=sys.stderr)
    print(f"  console log: {run.console_log}", file=sys.stderr)
    if run.complained and request.build_dir is not None:
        command: list[process.Arg] = ["klto", "boot", "--decode", run.console_log, "-b", request.build_dir]
        print(f"  decode it: {process.quote(command)}", file=sys.stderr)


def _first(evidence: tuple[str, ...]) -> str:
    return evidence[0] if evidence else ""
