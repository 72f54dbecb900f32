"""The commands that Kbuild saved: ``.x.o.cmd`` beside each ``x.o`` (scripts/Kbuild.include, if_changed)."""

from __future__ import annotations

import os
import re
from functools import cached_property

_FIRST = re.compile(r"^(?:saved)?cmd_(\S+) := (.*)$")
_SOURCE = re.compile(r"^source_\S+ := (\S+)$", re.MULTILINE)
#: ``-flto``, ``-flto=thin``, ``-fno-lto``: the last one counts.
_LTO = re.compile(r"(?<!\S)-(fno-lto|flto(?:=\w+)?)(?!\S)")


class SavedCommand:
    """One saved command.

    :ivar target: what it makes, relative to the build dir.
    :ivar command: the whole recipe, its steps joined by ``;``.
    :ivar text: what stands behind it in the file.
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
        # As steps[0], which splits all of a long line.
        ends = [at for at in (self.command.find(";"), self.command.find("&&")) if at >= 0]
        first = self.command[: min(ends, default=None)].strip()
        if not first and self.steps:
            first = self.steps[0]
        return first if " -c " in first else ""

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
    first, _, rest = text.partition("\n")
    found = _FIRST.match(first)
    return SavedCommand(found[1], found[2], rest) if found else None


def read_saved(path: str) -> SavedCommand | None:
    """The command saved beside the file at ``path``; None without one."""
    folder, name = os.path.split(path)
    try:
        fd = os.open(f"{folder}/.{name}.cmd" if folder else f".{name}.cmd", os.O_RDONLY | os.O_CLOEXEC)
        try:
            head = _head(fd)
        finally:
            os.close(fd)
    except OSError:
        return None
    return parse_saved(head.decode("utf-8", "surrogateescape"))


#: Bytes: a kernel's compiler command takes 5,000, and with its dependencies the file 100,000.
_HEAD = 8192


def _head(fd: int) -> bytes:
    """The command and the source's line after it; not the dependencies, which are most of the file."""
    text = b""
    while more := os.read(fd, _HEAD):
        text += more
        # fixdep writes "savedcmd_...", "source_...", "deps_..." with empty lines between (scripts/basic/fixdep.c).
        first = text.find(b"\n\n")
        second = text.find(b"\n\n", first + 2) if first >= 0 else -1
        if second >= 0:
            return text[:second]
    return text
