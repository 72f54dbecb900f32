"""The objects and flags searches: subsets of modules in or out of LTO, and of linker options."""

from __future__ import annotations

import hashlib
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from klto.search.bitcode_link import VmlinuxLink
from klto.search.engine import Outcome

#: Linker options that have explained or worked around LTO failures, tried when none are named: importing
#: (llvm/lib/Transforms/IPO/FunctionImport.cpp), inlining (llvm/lib/Analysis/InlineCost.cpp), code generation
#: level and what lld lets LTO assume (lld/ELF/Options.td), all of LLVM 19.
DEFAULT_FLAGS = (
    "-mllvm -import-instr-limit=0",
    "-mllvm -import-instr-limit=100",
    "-mllvm -import-constants-with-refs=false",
    "-mllvm -inline-threshold=0",
    "--lto-O0",
    "--lto-O1",
    "--lto-CGO0",
    "--lto-CGO1",
)


@dataclass(frozen=True)
class ObjectsOutcome(Outcome):
    """A link with these modules as native objects."""

    left_out: tuple[str, ...] = ()


@dataclass(frozen=True)
class FlagsOutcome(Outcome):
    """A link with these words instead of the saved ones."""

    words: tuple[str, ...] = ()


class ObjectsSpace:
    """Subsets of the bitcode modules.

    :param in_lto: whether the chosen ones are those in LTO (all others are left out), or those left out.
    """

    def __init__(self, modules: Sequence[str], *, in_lto: bool) -> None:
        self.modules = modules
        self._in_lto = in_lto

    @property
    def count(self) -> int:
        """How many modules."""
        return len(self.modules)

    def become(self, chosen: frozenset[int]) -> ObjectsOutcome:
        """A link."""
        left_out = tuple(
            module for number, module in enumerate(self.modules) if (number in chosen) is not self._in_lto
        )
        key = hashlib.sha256("\n".join(["left out", *left_out]).encode()).hexdigest()
        where = "in LTO" if self._in_lto else "left out"
        return ObjectsOutcome(key, f"{len(chosen)} of {self.count} modules {where}", left_out)

    def loses(self, chosen: frozenset[int], kept: frozenset[int], known: frozenset[int]) -> bool:
        """Never: every subset can be linked."""
        return False


class FlagsSpace:
    """Subsets of linker options, put into the saved command."""

    def __init__(self, link: VmlinuxLink, flags: Sequence[str]) -> None:
        self._link = link
        self.flags = flags

    @property
    def count(self) -> int:
        """How many options."""
        return len(self.flags)

    def become(self, chosen: frozenset[int]) -> FlagsOutcome:
        """A link."""
        words = list(self._link.words)
        for number in sorted(chosen):
            words = with_flag(words, shlex.split(self.flags[number]))
        label = ", ".join(self.flags[number] for number in sorted(chosen)) or "the saved options"
        key = hashlib.sha256("\n".join(["words", *words]).encode()).hexdigest()
        return FlagsOutcome(key, label, tuple(words))

    def loses(self, chosen: frozenset[int], kept: frozenset[int], known: frozenset[int]) -> bool:
        """Never: an option that excludes another is the linker's to refuse."""
        return False


def with_flag(words: Sequence[str], flag: Sequence[str]) -> list[str]:
    """A linker's arguments with an option; ``-mllvm -name=...`` takes the place of one that is there, since LLVM
    refuses an option that is given twice (llvm/lib/Support/CommandLine.cpp, "may only occur zero or one times")."""
    kept: list[str] = []
    if len(flag) == 2 and flag[0] == "-mllvm":
        name = _option(flag[1])
        rest = iter(words)
        for word in rest:
            value = next(rest, "") if word == "-mllvm" else None
            if value is None:
                kept.append(word)
            elif _option(value) != name:
                kept += [word, value]
    else:
        kept = list(words)
    return [*flag, *kept]


def _option(word: str) -> str:
    return re.sub(r"=.*", "", word.lstrip("-"))
