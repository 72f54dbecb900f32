"""``klto plan``: the memory, time and disk that an LTO link will need here."""

from __future__ import annotations

import argparse
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from klto.cli.options import add_jobs_option, add_output_options, add_tree_options

if TYPE_CHECKING:
    from collections.abc import Iterator

    from klto.kernel.tree import KernelTree
    from klto.report.estimate import Calibration, Range
    from klto.report.history import Run
    from klto.report.plan import MachinePlan


def configure(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    add_tree_options(parser)
    add_jobs_option(parser)
    add_output_options(parser)


def run(args: argparse.Namespace) -> int:
    """Print the plan; 0."""
    import hashlib

    from klto.build.plan import measured_file
    from klto.errors import UsageError
    from klto.kernel.kconfig import read_config
    from klto.kernel.toolchain import find_toolchain
    from klto.kernel.tree import KernelTree, check_arch, is_kernel_tree
    from klto.link.memory import kernel_key
    from klto.link.reference import reference_seconds
    from klto.report.estimate import load_calibration
    from klto.report.history import read_history
    from klto.report.plan import find_basis, make_machine_plan

    if args.jobs is not None and args.jobs < 1:
        raise UsageError(f"-j {args.jobs}: at least one job is needed")
    tree = KernelTree.open(args.tree, args.arch) if is_kernel_tree(args.tree) else None
    build_dir = _build_dir(args, tree)
    config = build_dir / ".config"
    options = read_config(config) if config.is_file() else {}
    arch = (
        "arm64"
        if "ARM64" in options
        else "x86_64"
        if "X86_64" in options
        else tree.arch
        if tree
        else check_arch(args.arch)
    )
    sha256 = hashlib.sha256(config.read_bytes()).hexdigest() if config.is_file() else None
    history = read_history()
    basis = find_basis(build_dir, arch, sha256, history)
    toolchain = find_toolchain(tree, build_dir, args.toolchain)
    reference = reference_seconds(str(toolchain.clang), str(toolchain.ld_lld), toolchain.lld_text)
    calibration = load_calibration()
    plan = make_machine_plan(
        basis,
        build_dir,
        reference,
        calibration,
        kernel=kernel_key(_version(config, tree), arch, options.get("DEBUG_INFO") == "y"),
        jobs=args.jobs,
        measured=measured_file(),
    )
    command = _command(args, plan)
    if args.json:
        import json

        print(json.dumps({
            "schema": "klto/plan/1",
            "build_dir": os.fspath(build_dir),
            "basis": {"what": basis.what, "modules": len(basis.modules), "bitcode_bytes": sum(basis.modules)},
            "machine": {"cpus": plan.cpus, "memory_available": plan.available, "disk_free": plan.free_disk},
            "reference_seconds": reference,
            "estimates": [{**asdict(e), "fits": plan.fits(e)} for e in plan.estimates],
            "recommended": command,
            "calibrated_on": calibration.on,
        }, indent=1))  # fmt: skip
    elif not args.quiet:
        measured = [r for r in history if os.path.realpath(r.build_dir) == os.path.realpath(build_dir)]
        notes = list(_notes(options, plan))
        print("\n".join(_lines(plan, calibration, reference, command, _last(measured), notes)))
    return 0


def _version(config: Path, tree: KernelTree | None) -> str:
    """The kernel's version, from the third line of its .config (scripts/kconfig/confdata.c, conf_write)."""
    import re

    text = config.read_text(errors="replace")[:500] if config.is_file() else ""
    found = re.search(r"^# Linux/\S+ (\d+\.\d+)", text, re.M)
    return found[1] if found else tree.version if tree is not None else "0.0"


def _build_dir(args: argparse.Namespace, tree: KernelTree | None) -> Path:
    from klto.errors import UsageError
    from klto.kernel.tree import default_build_dir

    if args.build_dir is not None:
        named: Path = args.build_dir
        if tree is None and not named.is_dir():
            raise UsageError(f"{named}: no such directory", "give a build dir")
        return named
    if tree is None:
        place = args.tree.absolute()
        raise UsageError(f"{place} is no kernel tree", "name a build dir: -b DIR, or a tree: -C DIR")
    return default_build_dir(tree, "thin")


def _last(runs: list[Run]) -> Run | None:
    """The last run whose link generated everything."""
    whole = [r for r in runs if r.link_seconds and (r.generated is None or r.generated == r.bitcode_modules)]
    return whole[-1] if whole else None


def _command(args: argparse.Namespace, plan: MachinePlan) -> str | None:
    from klto.process import quote

    best = plan.recommended
    if best is None:
        return None
    given = [
        *(("-C", args.tree) if args.tree != Path() else ()),
        *(("-b", args.build_dir) if args.build_dir else ()),
    ]
    given += [*(("-a", args.arch) if args.arch else ()), *(("-t", args.toolchain) if args.toolchain else ())]
    return quote(["klto", "build", *given, "--lto", best.mode, "-j", str(best.jobs)])


def _lines(
    plan: MachinePlan,
    calibration: Calibration,
    reference: float,
    command: str | None,
    last: Run | None,
    notes: list[str],
) -> Iterator[str]:
    import textwrap

    from klto.units import duration, size

    yield f"bitcode   {size(sum(plan.basis.modules))}: {plan.basis.what}"
    disk = size(plan.free_disk)
    yield f"machine   {plan.cpus} CPUs, {size(plan.available)} of memory available, {disk} of disk free"
    yield f"{'LTO':<5} {'backends':>8}  {'memory':<21} {'largest':<8} {'link':<17} {'disk':<19} fits"
    for e in plan.estimates:
        memory, time, space = _span(e.memory, size), _span(e.seconds, duration), _span(e.disk, size)
        fits = "yes" if plan.fits(e) else "NO"
        yield f"{e.mode:<5} {e.jobs:>8}  {memory:<21} {e.largest:<8} {time:<17} {space:<19} {fits}"
    if last is not None:
        memory = f", {size(last.link_peak_bytes)}" if last.link_peak_bytes else ""
        yield (
            f"measured  last whole link in this build dir: {last.lto}, {last.link_jobs} backends, "
            f"{duration(last.link_seconds or 0.0)}{memory}"
        )
    for note in notes:
        yield f"note      {note}"
    if command is None:
        need = size(min(e.memory.high for e in plan.estimates))
        yield f"advice    nothing fits: up to {need} of memory are needed; close programs or add swap"
    else:
        yield f"advice    {command}"
    yield from textwrap.wrap(
        f"Of a link with an empty cache. Calibrated on {calibration.on}. Times are multiples of a reference link, "
        f"which takes {reference:.2f} s here.",
        100,
    )


def _notes(options: dict[str, str], plan: MachinePlan) -> Iterator[str]:
    """What the estimate does not know of this configuration, or what no other number of backends changes."""
    from klto.units import duration

    seen = {e.finish_process for e in plan.estimates} - {"", "objtool"}
    if options.get("DEBUG_INFO_BTF") == "y" and not seen:
        yield "CONFIG_DEBUG_INFO_BTF: pahole's memory after the link is not part of the estimate"
    patchable = plan.basis.patchable
    if patchable:
        own = duration(plan.estimates[0].ordering)
        yield f"{patchable:,} patchable functions: {own} of a link, in one thread; with the square of their number"
    for option in ("CALL_PADDING", "DYNAMIC_FTRACE_WITH_ARGS"):  # x86 and arm64: -fpatchable-function-entry.
        padded = option == "CALL_PADDING" or "ARM64" in options
        if not patchable and padded and options.get(option) == "y":
            yield f"CONFIG_{option}: ld.lld's own part grows with the square of the functions: not in the estimate"
    if options.get("DEBUG_INFO") == "y":
        yield "CONFIG_DEBUG_INFO: calibrated without; the link can take twice the time"
        if options.get("X86_64") == "y" and all(e.finish is None for e in plan.estimates):
            yield "CONFIG_DEBUG_INFO: objtool's memory is not known until such a kernel was built here"


def _span(found: Range, show: object) -> str:
    assert callable(show)
    return f"{show(found.low)} - {show(found.high)}"
