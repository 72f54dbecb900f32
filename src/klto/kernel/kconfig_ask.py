"""Asks a tree's own kconfig about symbols: dependencies with their current values, choices, selects, ranges.

The answers come from ``kconfig_ask.c``, compiled by the toolchain's clang and linked against the objects that
every ``make *config`` leaves in ``scripts/kconfig``.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from subprocess import PIPE
from typing import IO, Protocol

import msgspec

from klto import process
from klto.errors import KltoError, UsageError
from klto.kernel.kconfig_make import Kconfig

SOURCE = Path(__file__).with_name("kconfig_ask.c")

#: Values of bool and tristate symbols and of expressions (enum tristate of scripts/kconfig/expr.h).
NO, MOD, YES = 0, 1, 2


@dataclass(frozen=True)
class Expr:
    """A node of a dependency: ``sym``, ``and``, ``or``, ``not``, a comparison such as ``>=``, ``range``, or
    ``choice`` (a choice's own condition)."""

    op: str
    #: NO, MOD or YES, as kconfig computes it now.
    val: int
    args: tuple[Expr | None, ...] = ()
    #: Of ``sym``: its name, its value as text, and whether it is a constant such as ``y``.
    name: str = ""
    text: str = ""
    const: bool = False


@dataclass(frozen=True)
class Property:
    """A prompt, default or range: where it is written, its condition, its text or value."""

    file: str
    line: int
    when: Expr | None
    prompt: str = ""
    value: Expr | None = None


@dataclass(frozen=True)
class Member:
    """A member of a choice."""

    name: str
    val: int
    visible: int


@dataclass(frozen=True)
class Choice:
    """The choice that a symbol is a member of."""

    prompt: str
    members: tuple[Member, ...]


@dataclass(frozen=True)
class Symbol:
    """All that kconfig knows of a symbol under one configuration."""

    name: str
    known: bool
    #: bool, tristate, integer, hex or string, as declared; ``now`` is bool for a tristate without MODULES.
    type: str = ""
    now: str = ""
    value: str = ""
    val: int = NO
    #: The highest value that a user may choose: NO when no prompt is visible.
    visible: int = NO
    prompts: tuple[Property, ...] = ()
    defaults: tuple[Property, ...] = ()
    ranges: tuple[Property, ...] = ()
    depends: Expr | None = None
    selected: Expr | None = None
    implied: Expr | None = None
    range: Expr | None = None
    choice: Choice | None = None

    @property
    def where(self) -> str:
        """``FILE:LINE`` of its first property, or empty."""
        first = next(iter((*self.prompts, *self.defaults, *self.ranges)), None)
        return f"{first.file}:{first.line}" if first else ""


class Answers(Protocol):
    """Who knows the symbols of a configuration."""

    def symbol(self, name: str) -> Symbol:
        """One symbol, ``known`` or not."""

    def names(self) -> list[str]:
        """Every symbol of the tree."""

    def tests_at(self, file: str, line: int) -> list[str]:
        """The tests of tools, such as ``$(cc-option,-fsanitize=kcfi)``, written in the entry at a place."""


#: Nested values in an answer: what hundreds of symbols select has as many ``or`` within each other, and msgspec
#: counts three calls for each. Its decoder needs 200 bytes of stack or so for a call.
_DEPTH = 20_000


@contextmanager
def _deep() -> Iterator[None]:
    """Values nested deeper than Python's own limit can be decoded."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(max(before, _DEPTH))
    try:
        yield
    finally:
        sys.setrecursionlimit(before)


class KconfigAnswers:
    """A running ``kconfig_ask``. Use :func:`asking`."""

    def __init__(self, questions: IO[bytes], answers: IO[bytes], log: Path, tree: Path) -> None:
        self._tree = tree
        self._questions = questions
        self._answers = answers
        self._log = log
        self._known: dict[str, Symbol] = {}

    def symbol(self, name: str) -> Symbol:
        """One symbol.

        :raises KltoError: the program ended.
        """
        if name not in self._known:
            with _deep():
                self._known[name] = msgspec.json.decode(self._ask(name), type=Symbol)
        return self._known[name]

    def names(self) -> list[str]:
        """Every symbol of the tree, sorted."""
        return self._names

    def tests_at(self, file: str, line: int) -> list[str]:
        """The tests of tools in the entry that ``file:line`` is part of, as they are written there.

        Kconfig itself forgets the words of a test when it has the answer; here they are only quoted.
        """
        lines = (self._tree / file).read_text("utf-8", "replace").split("\n")
        begin = next((n for n in range(line - 1, -1, -1) if lines[n][:1].strip()), 0)
        end = next((n for n in range(line, len(lines)) if lines[n][:1].strip()), len(lines))
        entry = "\n".join(lines[begin:end]).partition("\n\thelp")[0]
        return re.findall(r"(?:def_bool|default|depends on|if) (\$\(.*\))", entry)

    @cached_property
    def _names(self) -> list[str]:
        return msgspec.json.decode(self._ask("*"), type=list[str])

    def _ask(self, question: str) -> bytes:
        try:
            self._questions.write(question.encode() + b"\n")
            self._questions.flush()
            answer = self._answers.readline()
        except BrokenPipeError:
            answer = b""
        if not answer:
            said = self._log.read_text("utf-8", "replace").splitlines()
            raise KltoError(
                f"the tree's kconfig ended without an answer about '{question}'", details=tuple(said[-10:])
            )
        return answer


@contextmanager
def asking(kconfig: Kconfig, config: Path) -> Iterator[KconfigAnswers]:
    """Answers about the configuration file ``config``, for the length of the ``with`` block.

    :param kconfig: its folder must be prepared; programs and objects are built where missing.
    :raises UsageError: the tree's kconfig cannot be built or asked.
    """
    environment = kconfig.environment()
    program = compile_program(kconfig, SOURCE)
    log = kconfig.folder / "kconfig_ask.log"
    read_end, write_end = os.pipe()
    with (
        open(write_end, "wb") as questions,
        open(read_end, "rb") as stdin,
        log.open("wb") as stderr,
        process.started(
            [program, config.absolute()],
            cwd=kconfig.build_dir,
            env=environment,
            stdin=stdin,
            stdout=PIPE,
            stderr=stderr,
        ) as child,
    ):
        stdin.close()
        assert child.stdout is not None
        yield KconfigAnswers(questions, child.stdout, log, kconfig.tree.path)


def compile_program(kconfig: Kconfig, source: Path) -> Path:
    """Compile a program of klto's against the objects of the tree's kconfig, in its folder.

    :raises UsageError: that does not work with this tree.
    """
    scripts = kconfig.tree.path / "scripts"
    program = kconfig.folder / source.stem
    includes = [scripts / "kconfig", scripts / "include"]
    done = process.run(
        [
            kconfig.toolchain.clang,
            "-O1",
            *_structure_flags(scripts / "kconfig"),
            *(f"-I{folder}" for folder in includes),
            "-o",
            program,
            source,
            *kconfig.objects(),
        ],
        env=process.child_environment({"PATH": kconfig.toolchain.search_path()}),
        check=False,
    )
    if done.returncode != 0:
        raise UsageError(
            f"cannot build klto's question to the kconfig of Linux {kconfig.tree.version}",
            "without it klto cannot say why an option is blocked; see the option's help in make menuconfig",
            details=tuple(done.stderr.splitlines()[-10:]),
        )
    return program


def _structure_flags(folder: Path) -> list[str]:
    """What this tree's kconfig structures look like, read from its headers (see ``kconfig_ask.c``)."""
    text = "".join(
        (folder / name).read_text("utf-8", "replace") for name in ("expr.h", "lkc.h", "lkc_proto.h")
    )
    flags = {"sym_get_choice_menu": "-DCHOICE_IS_MENU", "const char *filename;": "-DPLAIN_FILENAME"}
    return [flag for mark, flag in flags.items() if mark in text]
