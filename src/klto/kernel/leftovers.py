"""What a killed build leaves half made, and make takes for finished.

Kbuild compares commands and times only. A recipe of several steps (ld.lld, then objtool; clang, then ``ld -r``
of a kernel module of one object) that is killed between them leaves a target newer than its prerequisites,
with the saved command of the run before. In a finished build no target is newer than its ``.cmd`` file, since
``if_changed`` writes that last (scripts/Kbuild.include of 6.1 and 6.12).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Leftover:
    """A target that must be made again, and why."""

    target: Path
    reason: str


def find_leftovers(build_dir: Path, *, after_kill: bool) -> list[Leftover]:
    """Targets that are newer than their ``.cmd`` file.

    :param after_kill: also those whose ``.cmd`` file lacks the dependencies that fixdep writes at its end
        (scripts/basic/fixdep.c): the kill may have come while it wrote. This reads every ``.cmd`` file.
    """
    found = []
    for folder, target, command in _saved_commands(build_dir):
        try:
            made = os.stat(os.path.join(folder, target)).st_mtime_ns
            saved = os.stat(os.path.join(folder, command)).st_mtime_ns
        except FileNotFoundError:
            continue  # No target: make will make it.
        path = Path(folder, target)
        if made > saved:
            found.append(Leftover(path, "newer than its saved command"))
        elif after_kill and _lacks_dependencies(Path(folder, command)):
            found.append(Leftover(path, "its saved command is cut short"))
    return found


def _saved_commands(build_dir: Path) -> Iterator[tuple[str, str, str]]:
    """(folder, target name, .cmd name) of every saved command below ``build_dir``."""
    for folder, folders, names in os.walk(build_dir):
        if ".git" in folders:
            folders.remove(".git")
        for name in names:
            if name.endswith(".cmd") and name.startswith("."):
                yield folder, name[1:-4], name


def _lacks_dependencies(command: Path) -> bool:
    text = command.read_bytes()
    return b"-Wp,-MMD," in text and b"\n$(deps_" not in text
