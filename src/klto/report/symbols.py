"""Symbols of two images compared: grown, shrunk, new, gone, and why they are gone."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from klto.report.attribution import AMBIGUOUS, GENERATED, Definitions
from klto.report.image import Image, origin_of


class Change(StrEnum):
    """What happened to a symbol. ``inlined``: the objects that were linked still define it, so the LTO link took
    it away: inlined into its callers, folded or unused. ``unlinked``: its object is not linked any more, as it is
    configured out or a kernel module's now. ``compiled-away``: the compiler did that, the source still has it.
    ``removed``: the source has it no more. ``gone``: nothing says which of these."""

    GROWN = "grown"
    SHRUNK = "shrunk"
    SAME = "same"
    NEW = "new"
    INLINED = "inlined"
    UNLINKED = "unlinked"
    COMPILED_AWAY = "compiled-away"
    REMOVED = "removed"
    GONE = "gone"


#: Those that are in the first image only.
LOST = (Change.INLINED, Change.UNLINKED, Change.COMPILED_AWAY, Change.REMOVED, Change.GONE)


@dataclass(frozen=True)
class SymbolChange:
    """One source name in two images. Bytes of all symbols of the name; ``object`` where they come from."""

    name: str
    before: int
    after: int
    change: Change
    object: str
    #: Whether any symbol of the name is code.
    code: bool

    @property
    def delta(self) -> int:
        """Bytes, negative when it shrank."""
        return self.after - self.before


@dataclass(frozen=True)
class SymbolDiff:
    """All of them, largest change first. ``before`` and ``after``: bytes of all counted symbols, which are the
    totals that scripts/bloat-o-meter prints."""

    before: int
    after: int
    changes: tuple[SymbolChange, ...]

    def count(self, *changes: Change) -> int:
        """How many symbols changed so."""
        return sum(change.change in changes for change in self.changes)

    @property
    def up(self) -> int:
        """Bytes by which the grown and new ones grew."""
        return sum(c.delta for c in self.changes if c.delta > 0)

    @property
    def down(self) -> int:
        """Bytes, negative, by which the others shrank."""
        return sum(c.delta for c in self.changes if c.delta < 0)


@dataclass
class _Name:
    size: int = 0
    code: bool = False
    object: str = ""


def _by_name(image: Image, definitions: Definitions | None) -> tuple[dict[str, _Name], int]:
    names: dict[str, _Name] = defaultdict(_Name)
    total = 0
    for symbol in image.symbols():
        row = names[origin_of(symbol.name)]
        row.size += symbol.size
        row.code = row.code or symbol.kind == "text"
        if not row.object and definitions is not None:
            row.object = definitions.object_of(symbol)
        total += symbol.size
    return names, total


def diff_symbols(
    first: Image,
    second: Image,
    first_definitions: Definitions | None = None,
    second_definitions: Definitions | None = None,
    trees: Trees | None = None,
) -> SymbolDiff:
    """Compare the symbols of two images by their names in the source.

    :param second_definitions: what the second image was linked from, to tell inlined from removed.
    :param trees: the kernel trees, for the same.
    """
    before, total_before = _by_name(first, first_definitions)
    after, total_after = _by_name(second, second_definitions)
    sources = _Sources(trees or Trees())
    changes = []
    for name in before.keys() | after.keys():
        old, new = before.get(name, _Name()), after.get(name, _Name())
        where = new.object or old.object
        if name not in before:
            change = Change.NEW
        elif name not in after:
            change = _why(name, old.object, second_definitions, sources)
        else:
            change = _compare(old.size, new.size)
        if change is not Change.SAME:
            changes.append(SymbolChange(name, old.size, new.size, change, where, old.code or new.code))
    changes.sort(key=lambda c: (-abs(c.delta), c.name))
    return SymbolDiff(total_before, total_after, tuple(changes))


def _compare(before: int, after: int) -> Change:
    return Change.SAME if before == after else Change.GROWN if after > before else Change.SHRUNK


#: Names that a compiler or the kernel's macros make: the source has the part in the group.
_MADE = re.compile(r"^(?:__pfx_|__cfi_|__se_sys_|__do_sys_|__x64_sys_|__arm64_sys_|__ia32_sys_)?(\w+)")


def _why(name: str, where: str, definitions: Definitions | None, sources: _Sources) -> Change:
    """Why a symbol of the first image is not in the second."""
    if definitions is not None:
        stem = _MADE.match(name)
        if name in definitions or (stem is not None and stem[1] != name and stem[1] in definitions):
            return Change.INLINED
        if where and not where.endswith((AMBIGUOUS, GENERATED)) and where not in definitions.objects:
            return sources.why_unlinked(where)
    return sources.why(name, where)


@dataclass(frozen=True)
class Trees:
    """The kernel trees of two builds, to tell what the compiler took away from what a patch removed.

    :ivar first: None when it is gone. With :ivar:`second` being the same tree, files changed after ``began``,
        when the first build began, may be another version than the one it saw.
    """

    first: Path | None = None
    second: Path | None = None
    began: float = 0.0


class _Sources:
    """The trees' source files, read when asked."""

    def __init__(self, trees: Trees) -> None:
        self._trees = trees
        self._words: dict[Path, frozenset[str]] = {}

    def why(self, name: str, where: str) -> Change:
        """Why the compiler's output no longer has a name that object ``where`` had."""
        trees = self._trees
        now = _source_of(trees.second, where)
        if now is None:
            return Change.GONE
        if trees.first == trees.second and now.stat().st_mtime < trees.began:
            return Change.COMPILED_AWAY  # The same source as then.
        if self._has(now, name):
            return Change.COMPILED_AWAY
        before = _source_of(trees.first, where)
        if before is None or (before != now and not self._has(before, name)):
            return Change.GONE  # Made by a macro, or nobody knows.
        return Change.REMOVED

    def why_unlinked(self, where: str) -> Change:
        """Why object ``where`` is linked no more."""
        first, second = (_source_of(tree, where) for tree in (self._trees.first, self._trees.second))
        return Change.REMOVED if first and self._trees.second and not second else Change.UNLINKED

    def _has(self, path: Path, name: str) -> bool:
        if path not in self._words:
            self._words[path] = frozenset(re.findall(r"\w+", path.read_text(errors="replace")))
        stem = _MADE.match(name)
        return name in self._words[path] or (stem is not None and stem[1] in self._words[path])


def _source_of(tree: Path | None, where: str) -> Path | None:
    if tree is None or not where or where in (AMBIGUOUS, GENERATED):
        return None
    found = ((tree / where).with_suffix(suffix) for suffix in (".c", ".S"))
    return next((path for path in found if path.is_file()), None)


def named_in(changes: tuple[SymbolChange, ...], kinds: tuple[Change, ...]) -> list[SymbolChange]:
    """Those of some kinds, largest change first."""
    return [change for change in changes if change.change in kinds]
