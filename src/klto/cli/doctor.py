"""``klto doctor``: what is installed, what is missing, and whether this tree and config can do LTO."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from klto.cli.options import add_output_options, add_tree_options

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from klto.kernel.hostdeps import HostDependency
    from klto.kernel.survey import FoundToolchain, Survey, TreeSurvey


def configure(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    add_tree_options(parser)
    add_output_options(parser)


def run(args: argparse.Namespace) -> int:
    """0 when a build can start and LTO is possible, else 2."""
    from klto.boot.qemu import PACKAGES, PROGRAMS
    from klto.kernel.hostdeps import Need, look_at
    from klto.kernel.survey import survey

    found = survey(args.tree, args.build_dir, args.arch, args.toolchain)
    qemu = [look_at(Need(PROGRAMS[a], PACKAGES[a], "klto boot"), needed=False) for a in PROGRAMS]
    if args.json:
        import json

        print(json.dumps(_as_json(found, qemu), indent=2))
    else:
        for line in _problems(found) if args.quiet else _lines(found, qemu, verbose=args.verbose):
            print(line)
    return 0 if found.ready else 2


def _lines(found: Survey, qemu: Sequence[HostDependency], *, verbose: bool) -> Iterator[str]:
    from klto.machine import memory_bytes, usable_cpus
    from klto.units import size

    yield "toolchains (-t)"
    yield from map(_toolchain_line, found.toolchains)
    if not found.toolchains:
        yield "  none"
    yield "host"
    for dependency in found.host:
        if verbose or dependency.needed or dependency.problem is None:
            yield _dependency_line(dependency)
    yield "boot"
    yield from map(_dependency_line, qemu)
    yield "machine"
    total, available = memory_bytes()
    yield f"  {usable_cpus()} CPUs usable, {size(available)} of memory available of {size(total)}"
    if found.tree is not None:
        yield from _tree_lines(found, found.tree)
    yield "verdict"
    yield from (f"  {line}" for line in _problems(found))
    if found.ready:
        yield "  ready: LTO is possible here" if found.tree else "  ready to build"


def _toolchain_line(found: FoundToolchain) -> str:
    label = f"  {found.candidate.label:<10} "
    if found.toolchain is None or found.problem is not None:
        return f"{label}unusable: {found.problem.message if found.problem else ''}"
    clang, lld = (".".join(map(str, v)) for v in (found.toolchain.clang_version, found.toolchain.lld_version))
    return f"{label}clang {clang}, LLD {lld} (make {found.toolchain.spelling}): {', '.join(found.builds)}"


def _dependency_line(dependency: HostDependency) -> str:
    if dependency.problem is None:
        state, rest = "ok", dependency.found
    else:
        state = "missing" if dependency.needed else "absent"
        options = " or ".join(f"CONFIG_{option}" for option in dependency.need.options)
        use = f" (for {dependency.need.purpose}{', with ' + options if options else ''})"
        rest = f"{dependency.problem}{use}: apt-get install {dependency.need.package}"
    return f"  {dependency.need.name:<20} {state:<8} {rest}".rstrip()


def _tree_lines(found: Survey, here: TreeSurvey) -> Iterator[str]:
    yield "kernel"
    yield f"  {'tree':<20} Linux {here.tree.version} for {here.tree.arch}, {here.tree.path}"
    config = f".config with LTO {here.lto}" if here.lto else "no .config yet, defconfig is looked at"
    yield f"  {'build dir':<20} {here.build_dir} ({config})"
    if found.chosen is not None:
        yield f"  {'toolchain':<20} {found.chosen.clang_text} (make {found.chosen.spelling})"
        reason = found.chosen.would_recompile(here.build_dir)
        if reason:
            yield f"  {'':<20} a build recompiles everything: {reason}"


def _problems(found: Survey) -> Iterator[str]:
    for problem in found.problems:
        yield problem.message
        if problem.hint:
            yield f"  {problem.hint}"


def _as_json(found: Survey, qemu: Sequence[HostDependency]) -> dict[str, Any]:
    from klto.machine import memory_bytes, usable_cpus

    total, available = memory_bytes()
    return {
        "schema": "klto/doctor/1",
        "ready": found.ready,
        "toolchains": [_toolchain_json(t) for t in found.toolchains],
        "chosen": found.chosen.clang_text if found.chosen else None,
        "host": [_dependency_json(d) for d in found.host],
        "qemu": [_dependency_json(d) for d in qemu],
        "machine": {"cpus": usable_cpus(), "memory_total": total, "memory_available": available},
        "tree": _tree_json(found.tree) if found.tree else None,
        "problems": [{"message": p.message, "hint": p.hint} for p in found.problems],
    }


def _toolchain_json(found: FoundToolchain) -> dict[str, Any]:
    return {
        "name": found.candidate.label,
        "spelling": found.candidate.spelling,
        "clang": found.toolchain.clang_text if found.toolchain else None,
        "lld": found.toolchain.lld_text if found.toolchain else None,
        "builds": list(found.builds),
        "missing": list(found.candidate.missing),
        "problem": found.problem.message if found.problem else None,
    }


def _dependency_json(dependency: HostDependency) -> dict[str, Any]:
    return {
        "name": dependency.need.name,
        "package": dependency.need.package,
        "purpose": dependency.need.purpose,
        "needed": dependency.needed,
        "found": dependency.found,
        "problem": dependency.problem,
    }


def _tree_json(here: TreeSurvey) -> dict[str, Any]:
    return {
        "path": str(here.tree.path),
        "version": here.tree.version,
        "arch": here.tree.arch,
        "build_dir": str(here.build_dir),
        "lto": here.lto,
        "lto_possible": here.lto_possible,
        "blockers": [
            {"option": b.option, "got": b.got, "reason": b.reason, "remedy": b.remedy, "where": b.where}
            for b in here.blockers
        ],
    }
