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


#: Seconds before the kill in which every recipe that ran then began its last step. Longer only loses time.
_WINDOW = 10.0

#: Sources that recipes without a saved command make (perlasm in arch/arm64/crypto, lib/crc32table.h and such).
_GENERATED = (".S", ".c", ".h")


def find_leftovers(build_dir: Path, *, in_tree: bool) -> list[Leftover]:
    """What may be half made in a build dir whose last build was killed.

    * targets newer than their ``.cmd`` file: the recipe had not ended;
    * targets whose ``.cmd`` file lacks the dependencies that fixdep writes at its end (scripts/basic/fixdep.c);
    * targets that were touched in the last seconds before the kill: some rules go on after the command is saved
      (symbol versions, BTF of kernel modules), and generated sources have no saved command at all.

    :param in_tree: a build in the source tree: files without a saved command are left alone, they may be sources.
    """
    rows = [row for row in _targets(build_dir) if not _is_key(row[0])]
    newest = max((max(made, saved or 0) for _, made, saved in rows), default=0)
    found = []
    for path, made, saved in rows:
        command = path.with_name(f".{path.name}.cmd")
        if saved is None:
            if not in_tree and newest - made < _WINDOW * 1e9:
                found.append(Leftover(path, "made just before the kill"))
        elif made > saved:
            found.append(Leftover(path, "newer than its saved command"))
        elif newest - max(made, saved) < _WINDOW * 1e9:
            found.append(Leftover(path, "made just before the kill"))
        elif _lacks_dependencies(command):
            found.append(Leftover(path, "its saved command is cut short"))
    return found


def _is_key(path: Path) -> bool:
    """certs/signing_key.pem is a target of Kbuild's and may be the user's own key (certs/Makefile)."""
    return path.suffix in (".pem", ".x509", ".priv", ".key")


def _targets(build_dir: Path) -> Iterator[tuple[Path, int, int | None]]:
    """(target, its mtime_ns, its saved command's or None) of every target, and of generated sources."""
    for folder, folders, names in os.walk(build_dir):
        folders[:] = [name for name in folders if name not in (".git", ".klto")]
        here = set(names)
        headers = "/include" in folder[len(str(build_dir)) :]
        for name in names:
            command = f".{name}.cmd"
            if command not in here and (headers or not name.endswith(_GENERATED)):
                continue
            try:
                made = os.lstat(os.path.join(folder, name)).st_mtime_ns
                saved = os.stat(os.path.join(folder, command)).st_mtime_ns if command in here else None
            except FileNotFoundError:
                continue
            yield Path(folder, name), made, saved


def _lacks_dependencies(command: Path) -> bool:
    text = command.read_bytes()
    return b"-Wp,-MMD," in text and b"\n$(deps_" not in text
