"""Drives make: command line, environment, and what its output says."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from klto.kernel.toolchain import Toolchain
from klto.kernel.tree import MAKE_ENVIRONMENT_DROP, KernelTree
from klto.process import child_environment

#: A line of Kbuild's short log: ``  CC [M]  lib/foo.o`` (quiet_cmd_* in scripts/Makefile.build and friends).
_STEP = re.compile(r"^  ([A-Z][A-Z0-9_+-]*)(?: \[[MU]+\])? +(\S+)$")

#: ``make[3]: *** [scripts/Makefile.build:243: init/main.o] Error 1`` (GNU make's src/job.c, child_error).
_FAILED = re.compile(r"^g?make(?:\[(\d+)\])?: \*\*\* \[(?:[^\]]*: )?([^\]: ]+)\] (Error (\d+)|[A-Z][a-z].*)$")

#: Kbuild's verbs for compiling or assembling one object of the kernel.
OBJECT_VERBS = frozenset(("CC", "AS"))

#: make's own talk: it repeats one failure for every level of recursion.
_MAKE_TALK = re.compile(r"^g?make(\[\d+\])?: (\*\*\* (Waiting for|Deleting)|Entering|Leaving|Target)")

#: What make cannot do itself (GNU make's fatal()): ``make[2]: *** No rule to make target 'x'.  Stop.``, without the end
#: under -k; ``Makefile:204: *** text.  Stop.``
_FATAL = re.compile(r"^g?make(?:\[(\d+)\])?: \*\*\* (?!\[|wait: )(.+?)\.?(?:  Stop\.)?$")
_FATAL_IN = re.compile(r"^\S.*?:\d+: \*\*\* (.+?)\.?  Stop\.$")

#: Lines of a failing command to show. The whole log is on disk. And before a line of make's own.
_SHOWN_LINES, _LINES_BEFORE_FATAL = 40, 10


@dataclass(frozen=True)
class Kbuild:
    """One tree, toolchain and build dir, and make's variables for them (``NAME=VALUE`` of the user included)."""

    tree: KernelTree
    toolchain: Toolchain
    build_dir: Path
    variables: tuple[str, ...] = ()

    def argv(self, targets: Sequence[str] = ()) -> list[str]:
        """The make command: the same that a user would type, so that plain make finds nothing to do after it."""
        command = self.tree.make_command(self.build_dir)
        return [*command, *self.toolchain.make_args(), *self.variables, *targets]

    def environment(self, first_in_path: Path | None, extra: Mapping[str, str]) -> dict[str, str]:
        """make's environment: ``extra`` on top of this process's, ``first_in_path`` before all of PATH."""
        env = child_environment(extra, drop=[name for name in MAKE_ENVIRONMENT_DROP if name not in extra])
        path = self.toolchain.search_path()
        env["PATH"] = f"{first_in_path}{os.pathsep}{path}" if first_in_path else path
        return env


@dataclass(frozen=True)
class MakeStep:
    """A command that make announced."""

    verb: str
    target: str

    @property
    def is_object(self) -> bool:
        """Whether it compiles or assembles one object of the kernel."""
        return self.verb in OBJECT_VERBS and self.target.endswith(".o")


def parse_step(line: str) -> MakeStep | None:
    """The step that a line of make's output announces, if it is one of Kbuild's short log."""
    found = _STEP.match(line)
    return MakeStep(found[1], found[2]) if found else None


@dataclass(frozen=True)
class MakeFailure:
    """A target that make could not make, and the lines that belong to it.

    :param status: the recipe's exit status, None when make names a signal instead (``Killed``).
    """

    target: str
    reason: str
    status: int | None
    lines: tuple[str, ...]


def find_failures(lines: Sequence[str]) -> list[MakeFailure]:
    """The failures in make's output, first one first.

    A failing recipe is reported once by each make above it; only the innermost, which comes first, counts. Its
    lines are those since its step was announced, without the announcements of other jobs. What make itself cannot do
    is a failure of the target ``make``.
    """
    failures: list[MakeFailure] = []
    fatal: list[tuple[int, int]] = []
    shown: set[int] = set()
    deepest = 0
    # Of make's own failure that does not say how deep it is, the make above it does.
    unplaced = False
    for at, line in enumerate(lines):
        found = _FAILED.match(line)
        if not found:
            own, within = _own_failure(line), _FATAL_IN.match(line)
            if own or within:
                reason = own[2] if own else within[1] if within else ""
                fatal.append((len(failures), at))
                failures.append(MakeFailure("make", reason, None, (line,)))
                deepest = max(deepest, int(own[1] or 0) if own else 0)
                unplaced = within is not None
            continue
        depth, status = int(found[1] or 0), int(found[4]) if found[4] else None
        # A make whose sub-make failed reports that as Error 2 (GNU make's MAKE_FAILURE).
        if failures and status == 2 and (depth < deepest or unplaced):
            deepest, unplaced = max(deepest, depth), False
            continue
        deepest = max(deepest, depth)
        failures.append(MakeFailure(found[2], found[3], status, _lines_before(lines, at, found[2], shown)))
    # What no recipe has said may be about make's own.
    for place, at in fatal:
        before = _own_lines(lines, max(0, at - _LINES_BEFORE_FATAL), at, shown)
        failures[place] = replace(failures[place], lines=(*before, lines[at]))
    return failures


def _own_failure(line: str) -> re.Match[str] | None:
    return None if _MAKE_TALK.match(line) else _FATAL.match(line)


def _lines_before(lines: Sequence[str], at: int, target: str, shown: set[int]) -> tuple[str, ...]:
    begin = 0
    for index in range(at - 1, -1, -1):
        step = parse_step(lines[index])
        if step is not None and step.target == target:
            begin = index + 1
            break
    return _own_lines(lines, begin, at, shown)


def _own_lines(lines: Sequence[str], begin: int, end: int, shown: set[int]) -> tuple[str, ...]:
    """Lines that are not other jobs' and not shown yet; in their middle some are left out."""
    own = []
    for index in range(begin, end):
        line = lines[index]
        talk = parse_step(line) or _MAKE_TALK.match(line) or _FAILED.match(line) or _FATAL.match(line)
        if not talk and not _FATAL_IN.match(line) and index not in shown:
            shown.add(index)
            own.append(line)
    if len(own) > _SHOWN_LINES:
        cut = len(own) - _SHOWN_LINES
        own = [*own[: _SHOWN_LINES // 2], f"[{cut} lines left out]", *own[-_SHOWN_LINES // 2 :]]
    return tuple(own)
