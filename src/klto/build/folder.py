"""klto's own folder in a build dir, ``.klto/``: journal, record, log, shims, lock.

``make clean`` and ``make mrproper`` in an in-tree build may empty it at any time: everything here can be made
anew.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import msgspec

from klto.errors import UsageError
from klto.files import make_directory, write_whole
from klto.record import Record, read_record


class Learnt(msgspec.Struct, frozen=True):
    """What the last complete build of this dir taught: for progress and estimates only."""

    objects: int = 0
    link_seconds: float | None = None
    finish_seconds: float | None = None


class Folder:
    """``.klto/`` of a build dir. A context manager that holds its lock.

    :raises UsageError: when the build dir cannot be made or written, or another klto works in it.
    """

    def __init__(self, build_dir: Path) -> None:
        self.path = build_dir / ".klto"
        self.journal = self.path / "events.jsonl"
        self.record = self.path / "record.json"
        self.log = self.path / "build.log"
        self.console = self.path / "console.log"
        self.shims = self.path / "bin"
        self.jobserver = self.path / "jobserver"
        self.reproducers = self.path / "reproducers"
        self._running = self.path / "running"
        self._learnt = self.path / "learnt.json"
        self._lock: int | None = None

    def __enter__(self) -> Folder:
        make_directory(self.path)
        lock = self.path / "lock"
        try:
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise UsageError(f"cannot write in the build dir: {lock}: {error.strerror}") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise UsageError(
                f"another klto is at work in {self.path.parent}",
                "wait for it, or use another build dir (-b DIR)",
            ) from None
        self._lock = descriptor
        return self

    def __exit__(self, *exc: object) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def was_killed(self) -> bool:
        """Whether the last run in this dir did not end by itself."""
        return self._running.exists()

    def begin(self) -> None:
        """Mark that make runs; gone again with :meth:`end`. A kill leaves it behind."""
        write_whole(self._running, f"{os.getpid()}\n", durable=True)

    def end(self) -> None:
        """make has ended by itself."""
        self._running.unlink(missing_ok=True)

    def last_record(self) -> Record | None:
        """The record of the run before, None when there is none that can be read."""
        try:
            return read_record(self.record)
        except UsageError:
            return None

    def keep_last_log(self) -> None:
        """The log of the run before becomes ``build.log.old``."""
        if self.log.exists():
            self.log.replace(self.log.with_suffix(".log.old"))

    def learnt(self) -> Learnt:
        """What earlier builds taught; nothing when there is none or it cannot be read."""
        try:
            return msgspec.json.decode(self._learnt.read_bytes(), type=Learnt)
        except (OSError, msgspec.DecodeError):
            return Learnt()

    def learn(self, learnt: Learnt) -> None:
        """Keep it for the next build."""
        write_whole(self._learnt, msgspec.json.encode(learnt))
