"""Verdicts on disk: one JSON line each, written when it is known, so that no kill loses one."""

from __future__ import annotations

import fcntl
import os
from enum import StrEnum
from pathlib import Path
from types import TracebackType

import msgspec

from klto.errors import UsageError
from klto.files import make_directory, write_whole


class Verdict(StrEnum):
    """What an oracle says of a candidate."""

    FAILS = "fails"
    PASSES = "passes"
    #: Neither: it does not build for another reason, say. A search takes it for "not what is sought".
    UNRESOLVED = "unresolved"


class Judged(msgspec.Struct, frozen=True):
    """One oracle call. ``seconds``: how long it took."""

    key: str
    verdict: Verdict
    seconds: float
    #: What the oracle saw, in a line; and the candidate in a line.
    evidence: str = ""
    label: str = ""


class Memory:
    """The verdicts of one question, in ``verdicts.jsonl`` of its folder. A context manager that holds its lock.

    :param question: its name; empty where the folder has only one. The file ``question`` has it.
    :raises UsageError: the folder cannot be written, another klto works on the same question, or it has verdicts on
        another one.
    """

    def __init__(self, folder: Path, question: str = "") -> None:
        self.folder = folder
        self._question = question
        self.path = folder / "verdicts.jsonl"
        self._known: dict[str, Judged] = {}
        self._descriptor: int | None = None

    def __enter__(self) -> Memory:
        make_directory(self.folder)
        try:
            descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise UsageError(f"cannot write {self.path}: {error.strerror}") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise UsageError(
                f"another klto is at work on this question, in {self.folder}", "wait for it, or stop it"
            ) from None
        self._descriptor = descriptor
        lines = self.path.read_bytes().split(b"\n")
        if lines[-1]:
            os.write(descriptor, b"\n")  # Torn by a kill; what comes next must begin a line.
        for line in lines:
            try:
                judged = msgspec.json.decode(line, type=Judged)
            except msgspec.DecodeError:
                continue
            self._known[judged.key] = judged
        try:
            self._claim()
        except UsageError:
            self.__exit__(None, None, None)
            raise
        return self

    def _claim(self) -> None:
        file = self.folder / "question"
        try:
            asked = file.read_text(errors="replace").strip()
        except OSError:
            # A folder that is named after its question needs no such file.
            asked = self.folder.name
        if not self._question or asked == self._question:
            return
        if self._known:
            raise UsageError(
                f"{self.folder} has verdicts on another question", "name another folder with --state"
            )
        write_whole(file, self._question + "\n")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __len__(self) -> int:
        return len(self._known)

    def get(self, key: str) -> Judged | None:
        """The verdict on an outcome, if it has been asked for before."""
        return self._known.get(key)

    def put(self, judged: Judged) -> None:
        """Keep a verdict: on disk when this returns."""
        assert self._descriptor is not None
        try:
            os.write(self._descriptor, msgspec.json.encode(judged) + b"\n")
            os.fsync(self._descriptor)
        except OSError as error:
            raise UsageError(f"cannot write {self.path}: {error.strerror}", "free some space") from error
        self._known[judged.key] = judged
