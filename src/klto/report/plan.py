"""What a link will need, before it runs: from the objects at hand, or from the history of builds."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from klto import machine
from klto.errors import UsageError
from klto.kernel.saved_link import link_inputs
from klto.objects.archive import Member, leaves, read_archive
from klto.objects.bitcode import Bitcode
from klto.objects.kind import kind_of
from klto.objects.source import Buffer, read_whole
from klto.report.estimate import MODES, Calibration, Estimate, Subject, estimate
from klto.report.history import Run

#: Bytes of bitcode for a byte of native object of the same kernel without LTO: 23.2 MB for 17.1 MB on the
#: x86_64 proof kernel (configs/x86_64-6.12.config, Linux 6.12.117, clang 19.1.7).
_BITCODE_PER_NATIVE = 1.36

#: How much wider the ranges are when the bitcode is not there to be looked at.
_OF_NATIVE, _OF_SAME_CONFIG, _OF_OTHER_CONFIG = 0.3, 0.05, 0.5


#: Folders of a build dir whose objects are not linked into vmlinux.
_NOT_THE_KERNEL = (".klto", "scripts", "tools")


@dataclass(frozen=True)
class Basis:
    """What an estimate starts from.

    :ivar modules: bytes of each bitcode module.
    :ivar what: where they come from, for people.
    :ivar error: how much wider the ranges are for it.
    :ivar native_bytes: of the objects beside them.
    :ivar instructions: of the modules; None where they are not there to be counted.
    :ivar patchable: functions that come with an entry in ``__patchable_function_entries`` each.
    """

    modules: tuple[int, ...]
    what: str
    error: float = 0.0
    native_bytes: int = 0
    instructions: int | None = None
    patchable: int = 0


@dataclass(frozen=True)
class MachinePlan:
    """Estimates for every mode and number of backends, and what fits."""

    basis: Basis
    available: int
    cpus: int
    free_disk: int
    estimates: tuple[Estimate, ...]
    recommended: Estimate | None

    def fits(self, found: Estimate) -> bool:
        """Whether its range fits into the memory and disk that are free now."""
        return found.memory.high <= self.available and found.disk.high <= self.free_disk


def find_basis(build_dir: Path, arch: str, config_sha256: str | None, history: Sequence[Run]) -> Basis:
    """The bitcode of a build dir, or a guess at it.

    :raises UsageError: when there is nothing to go by.
    :raises MalformedObject: when an archive is broken.
    """
    if (build_dir / "vmlinux.a").exists():
        members = [m for archive in link_inputs(build_dir) for m in leaves(read_archive(archive))]
        found = _of_objects([look_at(m) for m in members], f"in {build_dir / 'vmlinux.a'}")
        if found is not None:
            return found
    compiled = _of_objects(list(_compiled(build_dir)), f"compiled so far in {build_dir}")
    if compiled is not None:
        return compiled
    return _of_history(build_dir, arch, config_sha256, history)


#: The option for which clang gives each function a section of its own with SHF_LINK_ORDER (x86: CONFIG_CALL_PADDING,
#: arch/x86/Makefile; arm64: CONFIG_DYNAMIC_FTRACE_WITH_ARGS, arch/arm64/Makefile; 6.12).
_PATCHABLE = "-fpatchable-function-entry"


@dataclass(frozen=True)
class Seen:
    """An object: its kind, its bytes, and of bitcode its functions and instructions.

    :ivar patchable: of the functions those that come with an entry in ``__patchable_function_entries``.
    """

    kind: str
    size: int
    functions: int = 0
    instructions: int = 0
    patchable: int = 0


def look_at(member: Member) -> Seen:
    """A member of a link's archive.

    :raises MalformedObject: when it is broken.
    """
    size = os.stat(member.path).st_size if member.path else member.size
    kind = member.kind()
    if kind != "bitcode":
        return Seen(kind, size)
    return _bitcode(member.data(), member.where, size, member.path)


def _bitcode(data: Buffer, where: str, size: int, path: str | None) -> Seen:
    functions, instructions = count_functions(data, where)
    return Seen("bitcode", size, functions, instructions, functions if _is_patchable(path) else 0)


def _is_patchable(path: str | None) -> bool:
    """Whether an object's saved command asks for patchable functions."""
    if path is None:
        return False
    folder, name = os.path.split(path)
    try:
        with open(os.path.join(folder, f".{name}.cmd"), encoding="utf-8", errors="replace") as stream:
            return _PATCHABLE in stream.readline()
    except OSError:
        return False


def count_functions(data: Buffer, where: str) -> tuple[int, int]:
    """(functions, instructions) of a bitcode file, as its modules' summaries have them.

    :raises MalformedObject: when it is broken.
    """
    counts = [module.functions() for module in Bitcode(data, where).modules]
    return sum(functions for functions, _ in counts), sum(instructions for _, instructions in counts)


def _of_objects(seen: list[Seen], where: str) -> Basis | None:
    bitcode = tuple(each.size for each in seen if each.kind == "bitcode")
    if bitcode:
        beside = sum(each.size for each in seen if each.kind == "elf")
        instructions = sum(each.instructions for each in seen) or None
        patchable = sum(each.patchable for each in seen)
        what = f"{len(bitcode)} bitcode objects {where}"
        return Basis(bitcode, what, 0.0, beside, instructions, patchable)
    native = [round(each.size * _BITCODE_PER_NATIVE) for each in seen if each.kind == "elf"]
    if not native:
        return None
    return Basis(
        tuple(native), f"{len(native)} native objects {where}, compiled without LTO: a guess", _OF_NATIVE
    )


def _compiled(build_dir: Path) -> list[Seen]:
    """The kernel's objects that Kbuild has compiled: those with a saved command."""
    found = []
    for folder, folders, names in os.walk(build_dir):
        if folder == os.fspath(build_dir):
            folders[:] = [name for name in folders if name not in _NOT_THE_KERNEL]
        present = set(names)
        for name in names:
            if name.endswith(".o") and f".{name}.cmd" in present:
                path = os.path.join(folder, name)
                kind, size = kind_of(path), os.stat(path).st_size
                found.append(
                    _bitcode(read_whole(path), path, size, path) if kind == "bitcode" else Seen(kind, size)
                )
    return found


def _of_history(build_dir: Path, arch: str, config_sha256: str | None, history: Sequence[Run]) -> Basis:
    known = [run for run in history if run.arch == arch and run.bitcode_bytes and run.bitcode_modules]
    same = [run for run in known if run.config_sha256 == config_sha256]
    if not known:
        raise UsageError(
            f"nothing to estimate from: {build_dir} has no objects and no {arch} kernel is in the history",
            "compile first (klto build; Ctrl-C before the link is fine), or build any kernel once",
        )
    run = (same or known)[-1]
    count, total = run.bitcode_modules or 1, run.bitcode_bytes or 0
    what = (
        f"{count} modules of the {'same' if same else 'last'} {arch} configuration built, in {run.build_dir}"
    )
    if not same:
        what += ": another configuration, a guess"
    return Basis((total // count,) * count, what, _OF_SAME_CONFIG if same else _OF_OTHER_CONFIG)


def make_machine_plan(
    basis: Basis,
    build_dir: Path,
    reference: float,
    calibration: Calibration,
    *,
    kernel: str,
    jobs: int | None,
    measured: Path | None,
) -> MachinePlan:
    """Estimate thin and full LTO with 1 to ``jobs`` backends (default: the CPUs).

    :param kernel: as klto.link.memory.kernel_key names it.
    :param measured: the file of what links took on this machine before.
    """
    cpus = machine.usable_cpus()
    _, available = machine.memory_bytes()
    existing = next(folder for folder in (build_dir, *build_dir.absolute().parents) if folder.exists())
    disk = os.statvfs(existing)
    subject = Subject(
        basis.modules, basis.native_bytes, basis.instructions, kernel, basis.error, basis.patchable
    )
    estimates = [
        estimate(mode, n, subject, reference, calibration, measured=measured)
        for mode in MODES
        for n in (_counts(jobs or cpus) if mode == "thin" else [1])
    ]
    plan = MachinePlan(basis, available, cpus, disk.f_bavail * disk.f_frsize, tuple(estimates), None)
    fitting = [e for e in estimates if e.mode == "thin" and plan.fits(e)]
    best = min(fitting, key=lambda e: (e.seconds.middle, e.jobs), default=None)
    return MachinePlan(basis, available, cpus, plan.free_disk, tuple(estimates), best)


def _counts(most: int) -> list[int]:
    """1, 2, 4, 8, ... and ``most``."""
    counts = [1]
    while counts[-1] * 2 < most:
        counts.append(counts[-1] * 2)
    return counts if most == 1 else [*counts, most]
