"""Runs the programs of oracles, several at once, so that all of them can be ended."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from klto import process


@dataclass(frozen=True)
class Ran:
    """A finished program. ``status``: negative for a signal; None when it went past its time."""

    status: int | None
    output: str


@dataclass
class Runner:
    """Starts programs; :meth:`stop` ends those that run. For any number of threads."""

    _running: set[process.Child] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _stopped: bool = False

    def run(
        self,
        argv: Sequence[str | os.PathLike[str]],
        log: Path,
        *,
        cwd: Path | None = None,
        extra: Mapping[str, str] | None = None,
        timeout: float | None = None,
    ) -> Ran:
        """Run a program to its end; what it prints goes to ``log``.

        :raises UsageError: it cannot be started.
        """
        environment = process.child_environment(extra)
        with (
            log.open("wb") as out,
            process.started(
                argv, cwd=cwd, env=environment, stdout=out, stderr=subprocess.STDOUT, guarded=True
            ) as child,
        ):
            with self._lock:
                self._running.add(child)
                stopped = self._stopped
            try:
                if stopped:
                    raise KeyboardInterrupt
                child.wait(timeout)
            except process.CommandTimeout:
                return Ran(None, log.read_text("utf-8", "replace"))
            finally:
                with self._lock:
                    self._running.discard(child)
        if self._stopped:
            raise KeyboardInterrupt
        return Ran(child.returncode, log.read_text("utf-8", "replace"))

    def stop(self) -> None:
        """End what runs and start nothing more."""
        with self._lock:
            self._stopped = True
            running = list(self._running)
        for child in running:
            child.terminate()
