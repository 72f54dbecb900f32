"""The objects and flags searches on a built kernel, from its bitcode."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Protocol

import msgspec

from klto import process
from klto.errors import ProofError, UsageError
from klto.files import make_directory, write_whole
from klto.objects.kind import kind_of
from klto.record import read_record
from klto.search.bitcode_link import Linker, VmlinuxLink, source_of
from klto.search.engine import Oracle, Progress, Search
from klto.search.likeness import Failure, read_failure
from klto.search.link_spaces import FlagsOutcome, FlagsSpace, ObjectsOutcome, ObjectsSpace
from klto.search.oracles import NO_CHECKS, Builder, Command, Places
from klto.search.verdicts import Memory, Verdict


class LinkJudge(Protocol):
    """Judges a linked vmlinux.o."""

    def __call__(self, linked: bool, place: Path) -> tuple[Verdict, str]:
        """``place`` has ``vmlinux.o`` when it was linked, and the linker's ``vmlinux.log`` always."""


@dataclass
class CommandOnLink:
    """A command that looks at vmlinux.o: in its folder, and KLTO_VMLINUX_O, its path; KLTO_BUILD_DIR is the
    kernel's build dir, only to be read."""

    command: Command
    build_dir: Path

    def __call__(self, linked: bool, place: Path) -> tuple[Verdict, str]:
        """Judge."""
        if not linked:
            return Verdict.UNRESOLVED, "does not link"
        extra = {"KLTO_VMLINUX_O": str(place / "vmlinux.o"), "KLTO_BUILD_DIR": str(self.build_dir)}
        return self.command.judge(place, extra)


@dataclass
class LinkFailsLike:
    """Fails when the link fails as a log tells."""

    like: Failure

    def __call__(self, linked: bool, place: Path) -> tuple[Verdict, str]:
        """Judge."""
        if linked:
            return Verdict.PASSES, "links"
        failure, _ = read_failure(place / "vmlinux.log")
        if failure.is_like(self.like):
            return Verdict.FAILS, failure.title
        return Verdict.UNRESOLVED, f"another failure: {failure.title}"


@dataclass
class OfLinks:
    """An oracle that links vmlinux.o, and looks no further."""

    linker: Linker
    judge: LinkJudge
    places: Places

    def objects(self, outcome: ObjectsOutcome) -> tuple[Verdict, str]:
        """Judge a set of modules that are left out."""
        return self._judge(outcome.left_out, None)

    def flags(self, outcome: FlagsOutcome) -> tuple[Verdict, str]:
        """Judge a link's options."""
        return self._judge((), outcome.words)

    def _judge(self, left_out: Sequence[str], words: Sequence[str] | None) -> tuple[Verdict, str]:
        place = self.places.take()
        try:
            linked = self.linker.make(place / "vmlinux.o", left_out, words)
            return self.judge(linked, place)
        finally:
            (place / "vmlinux.o").unlink(missing_ok=True)
            self.places.give_back(place)


@dataclass
class OfKernels:
    """An oracle that needs a whole kernel: in a copy of the build dir native objects take the place of modules,
    and ``klto build`` links. make finds objects newer than their sources and compiles none of them."""

    linker: Linker
    builder: Builder
    judge: Callable[[], tuple[Verdict, str]]
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def objects(self, outcome: ObjectsOutcome) -> tuple[Verdict, str]:
        """Judge a set of modules that are left out."""
        with self._lock:
            self.install(outcome.left_out)
            # The checks would rightly object to native objects whose saved commands say -flto.
            ran = self.builder.build(None, *NO_CHECKS)
            if ran.status != 0 and not self._is_whole():
                return Verdict.UNRESOLVED, self.builder.last_line(ran)
            return self.judge()

    def _is_whole(self) -> bool:
        """Whether the build came to its verification, which rightly finds objects that are not bitcode."""
        record = read_record(self.builder.build_dir / ".klto" / "record.json")
        return bool(record.stages) and record.stages[-1].name == "verify"

    def install(self, left_out: Sequence[str]) -> None:
        """Bring the copy's objects into the state that is asked for; the copy is made when it is not there."""
        origin, copy = self.linker.link.build_dir, self.builder.build_dir
        copy_build_dir(origin, copy)
        native = self.linker.natives(left_out)
        for module in self.linker.link.bitcode:
            here = copy / module
            # Written anew, and so newer than all that was made of the other one.
            if module in native:
                shutil.copyfile(native[module], here)
            elif kind_of(here) != "bitcode":
                shutil.copyfile(origin / module, here)


def boots(builder: Builder, timeout: float | None) -> tuple[Verdict, str]:
    """Whether the kernel in the build dir boots."""
    deadline = [] if timeout is None else ["--timeout", f"{timeout:g}"]
    ran = builder.klto("boot", "-a", builder.tree.arch, *deadline)
    if ran.status == 0:
        return Verdict.PASSES, "boots"
    verdict = Verdict.FAILS if ran.status == ProofError.exit_status else Verdict.UNRESOLVED
    return verdict, builder.last_line(ran)


def copy_build_dir(origin: Path, copy: Path) -> None:
    """A copy of a build dir, whole or not at all."""
    if copy.exists():
        return
    aside = copy.with_name(f"{copy.name}.part")
    shutil.rmtree(aside, ignore_errors=True)
    make_directory(copy.parent)
    process.run(["cp", "-a", "--reflink=auto", origin, aside])
    shutil.rmtree(aside / ".klto", ignore_errors=True)
    aside.rename(copy)


@dataclass(frozen=True)
class LinkResult:
    """The answer of an objects or flags search.

    :ivar cures: objects: those of ``found`` that alone are enough to leave out, when ``found`` are in LTO.
    """

    found: tuple[str, ...]
    of: int
    calls: int
    remembered: int
    cures: tuple[str, ...] = ()


class _Best(msgspec.Struct):
    what: str
    items: list[str]


def _saver(path: Path, what: str, items: Sequence[str]) -> Callable[[frozenset[int], object], None]:
    def save(chosen: frozenset[int], outcome: object) -> None:
        best = _Best(what, [items[number] for number in sorted(chosen)])
        write_whole(path, msgspec.json.format(msgspec.json.encode(best)) + b"\n")

    return save


@dataclass
class LinkSearch:
    """What both searches need. ``state``: where verdicts and the best result are kept."""

    link: VmlinuxLink
    state: Path
    watch: Callable[[Progress], None]
    note: Callable[[str], None]
    stop: Callable[[], None]
    limit: int | None = None
    #: Patterns (fnmatch): objects: only these modules are items, the others stay in LTO.
    among: tuple[str, ...] = ()
    #: Of :func:`klto.search.minimise_options.question_id`.
    question: str = ""

    @property
    def modules(self) -> tuple[str, ...]:
        """The modules that are items.

        :raises UsageError: there are none.
        """
        if not self.among:
            return self.link.bitcode
        found = tuple(m for m in self.link.bitcode if any(fnmatchcase(m, p) for p in self.among))
        if not found:
            raise UsageError(
                f"no bitcode module is named {' or '.join(self.among)}",
                "patterns are like 'mm/*' or 'fs/ext4/*.o'",
            )
        return found

    def objects(self, oracle: Oracle[ObjectsOutcome], find: str) -> LinkResult:
        """The smallest set of modules.

        :param find: ``enough``: that fail when only they are in LTO; ``leave-out``: that must be left out of it
            for the kernel to be well.
        :raises UsageError: the kernel does not fail with LTO, or fails with every module left out.
        """
        modules = self.modules
        enough = find == "enough"
        space = ObjectsSpace(modules, in_lto=enough)
        self.note(f"{space.count} bitcode modules; state: {self.state}")
        everything = frozenset(range(space.count))
        with Memory(self.state, self.question) as memory:
            save = _saver(self.state / "best.json", find, modules)
            search = Search(space, oracle, memory, save, self.watch, self.stop, limit=self.limit)
            search.wanted = Verdict.FAILS if enough else Verdict.PASSES
            as_built = search.judge(everything if enough else frozenset())
            if as_built.verdict is not Verdict.FAILS:
                raise UsageError(
                    f"the kernel as it was built does not fail as it should: {as_built.verdict.value} "
                    f"({as_built.evidence})",
                    "a search needs a kernel that fails; try the oracle on it by hand",
                )
            without = search.judge(frozenset() if enough else everything)
            if without.verdict is not Verdict.PASSES:
                raise UsageError(
                    f"with every module left out of LTO: {without.verdict.value} ({without.evidence})",
                    "it is not LTO of these modules that makes it fail",
                )
            found = search.minimise()
            cures = self._cures(search, found, oracle, memory) if enough else ()
            names = tuple(modules[number] for number in sorted(found))
            return LinkResult(names, space.count, search.calls, search.remembered, cures)

    def _cures(
        self,
        search: Search[ObjectsOutcome],
        found: frozenset[int],
        oracle: Oracle[ObjectsOutcome],
        memory: Memory,
    ) -> tuple[str, ...]:
        """Which of the modules found, left out alone with all others in LTO, make the kernel well."""
        modules = self.modules
        space = ObjectsSpace(modules, in_lto=False)
        singles = Search(space, oracle, memory, lambda chosen, outcome: None, self.watch, self.stop)
        singles.calls = search.calls
        cures = [n for n in sorted(found) if singles.judge(frozenset([n])).verdict is Verdict.PASSES]
        search.calls, search.remembered = singles.calls, search.remembered + singles.remembered
        return tuple(modules[number] for number in cures)

    def flags(self, oracle: Oracle[FlagsOutcome], flags: Sequence[str]) -> LinkResult:
        """The options that matter: each that alone changes the verdict; where none does, the smallest set.

        :raises UsageError: no set of them changes the verdict.
        """
        space = FlagsSpace(self.link, flags)
        self.note(f"{space.count} options; state: {self.state}")
        with Memory(self.state, self.question) as memory:
            save = _saver(self.state / "best.json", "flags", flags)
            search = Search(space, oracle, memory, save, self.watch, self.stop, limit=self.limit)
            as_built = search.judge(frozenset()).verdict
            if as_built is Verdict.UNRESOLVED:
                raise UsageError("the oracle cannot judge the link as it was saved", "try it by hand")
            search.wanted = Verdict.PASSES if as_built is Verdict.FAILS else Verdict.FAILS
            alone = [n for n in range(space.count) if search.judge(frozenset([n])).verdict is search.wanted]
            if not alone:
                everything = search.judge(frozenset(range(space.count)))
                if everything.verdict is not search.wanted:
                    raise UsageError(
                        f"none of the {space.count} options matters, alone or all together: still {as_built.value}",
                        "name others with --flag",
                    )
                alone = sorted(search.minimise())
                together = " ".join(flags[n] for n in alone)
                return LinkResult((together,), space.count, search.calls, search.remembered)
            found = tuple(flags[n] for n in alone)
            return LinkResult(found, space.count, search.calls, search.remembered)


def confirm(
    builder: Builder, link: VmlinuxLink, left_out: Sequence[str], judge: Callable[[Path], tuple[Verdict, str]]
) -> tuple[bool, str]:
    """A real build without LTO of these modules, in a copy of the build dir; whether it is well, and why."""
    copy_build_dir(link.build_dir, builder.build_dir)
    sources = [source_of(link, module, builder.tree.path) for module in left_out]
    words = [word for source in sources for word in ("--no-lto", source)]
    ran = builder.build(None, *NO_CHECKS, *words)
    if ran.status != 0:
        return False, f"not confirmed: klto build --no-lto: {builder.last_line(ran)}"
    verdict, said = judge(builder.build_dir)
    return (
        verdict is Verdict.PASSES,
        f"a real build with --no-lto {' '.join(sources)}: {verdict.value} ({said})",
    )
