"""``klto build``."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from klto.cli.options import add_jobs_option, add_output_options, add_tree_options, seconds, size

if TYPE_CHECKING:
    from klto.build.folder import Folder
    from klto.record import Record

LTO_MODES = ("thin", "full", "none", "keep")


def configure(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument(
        "targets", nargs="*", metavar="TARGET", help="make's targets; NAME=VALUE goes to make too"
    )
    add_tree_options(parser)
    parser.add_argument(
        "-k", dest="base", metavar="BASE", help="start from defconfig, allnoconfig or a .config file"
    )
    parser.add_argument(
        "-K",
        dest="fragments",
        metavar="FRAGMENT",
        action="append",
        default=[],
        help='a fragment file or CONFIG_X=y, =m, =n, ="text", =number; repeatable',
    )
    parser.add_argument(
        "--lto", choices=LTO_MODES, help="the LTO mode (default: what the .config says; with -k, thin)"
    )
    add_jobs_option(parser)
    parser.add_argument(
        "--cache-dir", type=Path, metavar="DIR", help="the link cache (default: in the user's cache)"
    )
    parser.add_argument("--no-cache", action="store_true", help="generate all code anew at the link")
    parser.add_argument(
        "--cluster", metavar="ADDRESS", help="run the LTO link's backends there: tls://HOST:PORT, or local:N"
    )
    parser.add_argument(
        "--fail-on",
        choices=("error", "warning", "never"),
        default="error",
        help="findings of the checks that end the build with status 3 (default error)",
    )
    parser.add_argument(
        "--rejoin",
        metavar="PATH",
        action="append",
        default=[],
        help="merge the split sections of this link's output, such as arch/x86/purgatory/purgatory.ro; repeatable",
    )
    parser.add_argument(
        "--no-lto",
        metavar="PATH",
        action="append",
        default=[],
        help="leave a directory or source file of the tree out of LTO; repeatable",
    )
    parser.add_argument(
        "--keep-names",
        action="store_true",
        help="let functions that LTO makes global keep their names, where the linker can",
    )
    parser.add_argument(
        "--memory",
        type=size,
        metavar="SIZE",
        help="memory for each step from the link on, such as 2G (default: what is available)",
    )
    parser.add_argument(
        "--module-timeout",
        type=seconds,
        metavar="S",
        help="end a module's backend that gets nowhere for S seconds (default: 600; 0: never)",
    )
    parser.add_argument(
        "--time-trace", action="store_true", help="let the linker trace its phases, for klto report --trace"
    )
    parser.add_argument("--boot", action="store_true", help="boot the result in QEMU")
    parser.add_argument("--timeout", type=float, metavar="S", help="seconds that the boot may take")
    add_output_options(parser)


def run(args: argparse.Namespace) -> int:
    """Build; 0 when the kernel is right."""
    from klto.build.folder import Folder
    from klto.build.plan import BuildRequest, make_plan
    from klto.build.run import run_build
    from klto.report.progress import progress_for

    variables = tuple(word for word in args.targets if "=" in word)
    request = BuildRequest(
        tree=args.tree,
        build_dir=args.build_dir,
        arch=args.arch,
        toolchain=args.toolchain,
        targets=tuple(word for word in args.targets if "=" not in word),
        make_variables=variables,
        lto=args.lto,
        base=args.base,
        fragments=tuple(args.fragments),
        jobs=args.jobs,
        cache_dir=args.cache_dir,
        no_cache=args.no_cache,
        cluster=args.cluster,
        fail_on=args.fail_on,
        rejoin=tuple(os.path.normpath(path) for path in args.rejoin),
        no_lto=tuple(args.no_lto),
        keep_names=args.keep_names,
        memory=args.memory,
        **({} if args.module_timeout is None else {"module_timeout": args.module_timeout}),
        boot=args.boot,
        time_trace=args.time_trace,
        boot_timeout=args.timeout,
        argv=tuple(args.argv),
        directory=Path.cwd(),
    )
    plan = make_plan(request)
    folder = Folder(plan.build_dir)
    progress = None if args.quiet else progress_for(link_seconds=folder.learnt().link_seconds)
    try:
        record = run_build(plan, [progress] if progress else [])
    finally:
        if progress:
            progress.close()
        if args.json:
            _print_record(folder)
    if not args.json and not args.quiet:
        _summary(record, plan.build_dir)
    return 0


def _print_record(folder: Folder) -> None:
    """This run's record, if it came to have one. A reader that went away does not change the run's status."""
    record = folder.last_record()
    if record is not None and record.pid == os.getpid():
        try:
            sys.stdout.write(folder.record.read_text())
            sys.stdout.flush()
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _summary(record: Record, build_dir: Path) -> None:
    from klto.units import duration, size

    print(
        f"{'built in':<10}{duration(record.wall_seconds or 0.0)}, {record.objects_compiled} objects compiled"
    )
    for artifact in record.artifacts:
        if not artifact.path.endswith((".ko", "System.map")):
            print(f"{os.path.basename(artifact.path):<10}{size(artifact.bytes)}  {build_dir / artifact.path}")
    found = record.verification
    if found:
        modules = f", {found.kernel_modules} kernel modules" if found.kernel_modules else ""
        print(f"{'LTO':<10}{found.lto}: {found.bitcode} bitcode and {found.native} native objects{modules}")
    for link in record.links:
        if link.output == "vmlinux.o" and link.generated is not None:
            took = duration(link.wall_seconds or 0.0)
            shares = f"{link.generated} of {link.bitcode_inputs} modules generated, the rest from the cache"
            if link.whole:
                shares = "taken from the cache as a whole, none of its inputs has changed"
            print(f"{'link':<10}{took}: {shares}")
    if record.checked:
        levels = [str(finding["level"]) for finding in record.findings]
        print(
            f"{'checks':<10}{levels.count('error')} errors, {levels.count('warning')} warnings, "
            f"{levels.count('note')} notes: klto check -b {build_dir}"
        )
    for boot in record.boots:
        for proof in (proof for proof in boot.proofs if proof.status != "not-applicable"):
            print(
                f"{'boot':<10}{proof.name} {proof.status} in {duration(proof.seconds)} ({boot.accelerator})"
            )
    print(f"{'record':<10}{build_dir / '.klto' / 'record.json'}")
