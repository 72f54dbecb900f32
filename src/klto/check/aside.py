"""A second process for work that has nothing to do with what this one does meanwhile."""

from __future__ import annotations

import os
import pickle
import signal
import warnings
from collections.abc import Callable
from types import TracebackType
from typing import Generic, TypeVar

T = TypeVar("T")


class Aside(Generic[T]):
    """What ``work`` gives, worked out by a fork of this process; as a context it ends with it.

    Only for processes without threads of their own: a fork has one, and locks that others hold stay locked. Those that
    numpy's BLAS keeps wait without any.
    """

    def __init__(self, work: Callable[[], T]) -> None:
        self._work = work
        self._reader, writer = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12: it sees BLAS's threads.
            self._child: int | None = os.fork()
        if self._child == 0:
            status = 1
            try:
                os.close(self._reader)
                with open(writer, "wb") as stream:
                    pickle.dump(work(), stream)
                status = 0
            finally:
                # Nothing of the parent's is flushed or cleaned up here; an exception is met again by the parent.
                os._exit(status)
        os.close(writer)

    def result(self) -> T:
        """What it gave. When that process has failed or was killed, the work is done here, and fails here."""
        assert self._child is not None
        with open(self._reader, "rb", closefd=False) as stream:
            data = stream.read()
        _, status = os.waitpid(self._child, 0)
        self._child = None
        if status != 0:
            return self._work()
        found: T = pickle.loads(data)
        return found

    def __enter__(self) -> Aside[T]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._reader)
        if self._child is not None:
            os.kill(self._child, signal.SIGKILL)
            os.waitpid(self._child, 0)
