"""A worker's store of files by content: bounded, shared by all workers of a user on a machine."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from klto.cluster.job import digest_of

#: Bytes that a store may hold when nothing else is said: a distribution kernel's bitcode several times over.
DEFAULT_LIMIT = 10 << 30
#: A full store is brought to this share of its limit.
_AFTER = 0.9
#: The store's size is counted anew when this share of its limit has been added.
_RECOUNT = 0.02


class BlobStore:
    """Content by SHA-256 below a folder. A file appears by rename; one that was altered is not used."""

    def __init__(self, folder: Path, limit: int = DEFAULT_LIMIT) -> None:
        self.folder, self.limit = folder, limit
        self._added = limit  # So that the first addition counts what is there.
        folder.mkdir(parents=True, exist_ok=True)

    def path(self, sha256: str) -> Path:
        """Where the content lies, if it does."""
        return self.folder / sha256[:2] / sha256

    def has(self, sha256: str) -> bool:
        """Whether something of that name is here; :meth:`place` tells whether it is what it should be."""
        return self.path(sha256).exists()

    def put(self, sha256: str, data: bytes) -> None:
        """Take content in.

        :raises ValueError: when it is not what its name says.
        :raises OSError: when the disk is full.
        """
        if digest_of(data) != sha256:
            raise ValueError(f"expected content {sha256[:12]}, found other")
        path = self.path(sha256)
        path.parent.mkdir(exist_ok=True)
        aside = path.with_name(f".{sha256}.{os.getpid()}.{os.urandom(4).hex()}")
        try:
            aside.write_bytes(data)
            os.replace(aside, path)
        except OSError:
            aside.unlink(missing_ok=True)
            raise
        self._added += len(data)
        if self._added > self.limit * _RECOUNT:
            self._added = 0
            self._prune()

    def place(self, sha256: str, path: Path) -> None:
        """Make the content appear at ``path``, for reading.

        :raises KeyError: when it is not here, or is not what it was.
        """
        source = self.path(sha256)
        try:
            if digest_of(source.read_bytes()) != sha256:
                source.unlink(missing_ok=True)
                raise KeyError(sha256)
            os.utime(source)  # Used now: it is not the first to go.
            try:
                os.link(source, path)
            except OSError:
                shutil.copyfile(source, path)  # Another file system, or one without links.
        except FileNotFoundError as error:
            raise KeyError(sha256) from error

    def size(self) -> int:
        """Bytes held."""
        return sum(size for _, size, _ in self._held())

    def _held(self) -> list[tuple[float, int, Path]]:
        found = []
        for folder in os.scandir(self.folder):
            if not folder.is_dir():
                continue
            for item in os.scandir(folder.path):
                try:
                    status = item.stat()
                except FileNotFoundError:
                    continue  # Another worker pruned it.
                found.append((status.st_mtime, status.st_size, Path(item.path)))
        return found

    def _prune(self) -> None:
        """Remove what was used longest ago; jobs that use it have links of their own."""
        held = self._held()
        total = sum(size for _, size, _ in held)
        if total <= self.limit:
            return
        for _, size, path in sorted(held):
            path.unlink(missing_ok=True)
            total -= size
            if total <= self.limit * _AFTER:
                return
