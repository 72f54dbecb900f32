"""Objects of backends in the link cache: a partition of its own in the same store as in-process links' entries.

LLVM's keys of in-process entries can be known only to the linker that computes them (llvm/lib/LTO/LTO.cpp,
computeLTOCacheKey), so an entry made here has another name: a digest of all that its backend reads. The store, its
limit, its index with SHA-256 and ``klto cache`` are the same.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from klto.link.store import DEFAULT_LIMIT, Entry, Partition

if TYPE_CHECKING:
    from klto.cluster.job import Job

#: The partition of all backends' objects: their keys tell options and toolchains apart.
_PARTITION = "cluster1"
#: Entries that go into the index together; a link that is killed forgets fewer than these.
_AT_ONCE = 16


class Results:
    """Looks objects up and keeps new ones. ``root`` None: nothing is kept."""

    def __init__(self, root: Path | None) -> None:
        self._root = root
        self._partition = Partition(str(root), _PARTITION) if root is not None else None
        if self._partition is not None:
            os.makedirs(self._partition.folder, exist_ok=True)
        self._entries: dict[str, Entry] = self._partition.entries() if self._partition else {}
        self._new: list[Entry] = []
        self._added = False

    def find(self, job: Job, target: Path) -> bool:
        """Put the object of an equal job to ``target``; False when there is none, or it was altered."""
        key = job.key()
        entry = self._entries.get(key)
        if self._partition is None or entry is None:
            return False
        if not self._partition.intact(entry):
            self._partition.drop(key)
            return False
        path = self._partition.path(key)
        try:
            shutil.copyfile(path, target)
        except OSError:
            return False  # Pruned since.
        return True

    def keep(self, job: Job, data: bytes) -> None:
        """Take an object in; a full disk is no error."""
        if self._partition is None or self._root is None:
            return
        key = job.key()
        aside = str(self._root / f"result-{os.getpid()}-{key}")
        try:
            with open(aside, "wb") as stream:
                stream.write(data)
            self._new.append(self._partition.put(key, aside))
            self._added = True
        except OSError:
            Path(aside).unlink(missing_ok=True)
        if len(self._new) >= _AT_ONCE:
            self._write()

    def _write(self) -> None:
        """Put new entries into the index."""
        new, self._new = self._new, []
        if self._partition is not None and new:
            try:
                with self._partition.locked():
                    self._partition.append(new)
            except OSError:
                return  # Without their lines they count for nothing.

    def close(self) -> None:
        """Keep what is new, and the store within its limit."""
        self._write()
        if self._root is not None and self._added:
            from klto.link.prune import prune

            prune(str(self._root), DEFAULT_LIMIT)
