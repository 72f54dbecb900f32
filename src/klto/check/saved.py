"""The commands that Kbuild saved: ``.x.o.cmd`` beside each ``x.o`` (scripts/Kbuild.include, if_changed)."""

from __future__ import annotations

import os
import re
from functools import cached_property
from typing import IO

_FIRST = re.compile(r"^(?:saved)?cmd_(\S+) := (.*)$")
_SOURCE = re.compile(r"^source_\S+ := (\S+)$", re.MULTILINE)
#: ``-flto``, ``-flto=thin``, ``-fno-lto``: the last one counts.
_LTO = re.compile(r"(?<!\S)-(fno-lto|flto(?:=\w+)?)(?!\S)")


class SavedCommand:
    """One saved command.

    :ivar target: what it makes, relative to the build dir.
    :ivar command: the whole recipe, its steps joined by ``;``.
    """

    __slots__ = ("__dict__", "command", "target", "text")

    def __init__(self, target: str, command: str, text: str) -> None:
        self.target = target
        self.command = command
        self.text = text

    @cached_property
    def steps(self) -> list[str]:
        """The recipe's steps."""
        return [step.strip() for step in re.split(r";|&&", self.command) if step.strip()]

    @cached_property
    def compile(self) -> str:
        """The step that compiles or assembles, "" when there is none."""
        return self.steps[0] if self.steps and " -c " in self.steps[0] else ""

    @cached_property
    def words(self) -> list[str]:
        """The compile step's words. Quoting is left as it is: no option asked for here has blanks."""
        return self.compile.split()

    @cached_property
    def asks_for_lto(self) -> bool:
        """Whether the compiler was asked for bitcode."""
        flags = _LTO.findall(self.compile)
        return bool(flags) and flags[-1] != "fno-lto"

    @cached_property
    def own_link(self) -> str | None:
        """A ``ld -r`` of the object over itself right after it was compiled: single-object kernel modules
        (scripts/Makefile.build, cmd_ld_single_m of 6.1, cmd_ld_single of 6.12)."""
        return next((step for step in self.steps[1:] if " -r " in step and "/.tmp_" in step), None)

    @property
    def is_module(self) -> bool:
        """Whether it was compiled for a kernel module."""
        return " -DMODULE " in self.compile

    @property
    def source(self) -> str | None:
        """The source file, as fixdep names it (scripts/basic/fixdep.c), else the compile step's last word."""
        found = _SOURCE.search(self.text)
        if found:
            return found[1]
        last = self.words[-1] if self.words else ""
        return last if last.endswith((".c", ".S")) else None


def parse_saved(text: str) -> SavedCommand | None:
    """The content of a ``.cmd`` file; None when it has no saved command (a rule file, or torn by a kill)."""
    first, _, _ = text.partition("\n")
    found = _FIRST.match(first)
    return SavedCommand(found[1], found[2], text) if found else None


def read_saved(path: str) -> SavedCommand | None:
    """The command saved beside the file at ``path``; None without one."""
    folder, name = os.path.split(path)
    try:
        with open(os.path.join(folder, f".{name}.cmd"), encoding="utf-8", errors="surrogateescape") as stream:
            return parse_saved(_head(stream))
    except OSError:
        return None


#: Characters: a kernel's compiler command takes 5,000, and with its dependencies the file 100,000.
_HEAD = 16_384


def _head(stream: IO[str]) -> str:
    """The command and the lines right after it; not the dependencies, which are most of the file."""
    text = stream.read(_HEAD)
    while "\n\n" not in text and (more := stream.read(_HEAD)):
        text += more
    return text
