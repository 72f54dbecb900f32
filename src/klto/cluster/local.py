"""Runs jobs on this machine, by the same function as workers do."""

from __future__ import annotations

import shutil
import threading
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import islice
from typing import TYPE_CHECKING, Protocol

from klto.cluster.backend import check_object, make_work_folder, run_backend
from klto.errors import BuildError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from klto.cluster.backend import LocalFiles
    from klto.cluster.feed import Feed
    from klto.cluster.job import Job, Outcome
    from klto.cluster.toolchain import Compiler
    from klto.cluster.use import Use

    #: Takes a job's object, checked, and the same wherever it was made; and the CPU seconds that it took.
    Deliver = Callable[[Job, bytes, float], None]

#: Times that one job is tried here when the machine, not the compiler, fails it.
_TRIES = 2


class Runner(Protocol):
    """Whoever runs jobs."""

    def run(self, jobs: Feed, files: LocalFiles, deliver: Deliver) -> None:
        """Run all jobs in their order and deliver their objects.

        :raises BuildError: when a backend fails on its own merits.
        """


class LocalRunner:
    """``slots`` jobs at a time here."""

    def __init__(self, compiler: Compiler, slots: int, use: Use) -> None:
        self._compiler, self._slots, self._use = compiler, max(1, slots), use

    def run(self, jobs: Iterable[Job], files: LocalFiles, deliver: Deliver) -> None:
        """As in :class:`Runner`."""
        stopped = threading.Event()
        work = make_work_folder()
        todo = iter(jobs)
        running: dict[Future[Outcome], Job] = {}
        pool = ThreadPoolExecutor(self._slots)
        try:
            while True:
                for job in islice(todo, self._slots - len(running)):
                    running[pool.submit(self._try, job, files, work, stopped)] = job
                if not running:
                    break
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    job = running.pop(future)
                    outcome = future.result()
                    accept(job, outcome, self._use)
                    self._use.local += 1
                    deliver(job, outcome.object, outcome.cpu_seconds)
        finally:
            stopped.set()
            pool.shutdown(wait=True, cancel_futures=True)
            shutil.rmtree(work, ignore_errors=True)

    def _try(self, job: Job, files: LocalFiles, work: Path, stopped: threading.Event) -> Outcome:
        for _ in range(_TRIES):
            outcome = run_backend(job, self._compiler, files, work, lambda: not stopped.is_set())
            if outcome.status != "lost":
                break
        return outcome


def accept(job: Job, outcome: Outcome, use: Use) -> None:
    """Count an outcome of this machine's.

    :raises BuildError: when it is no good object.
    """
    use.backend_cpu_seconds += outcome.cpu_seconds
    problem: str | None = outcome.text
    if outcome.status == "done":
        problem = check_object(outcome.object, outcome.sha256, job.options.triple, job.name)
    if problem is not None:
        lines = tuple(problem.strip().splitlines()[:20])
        raise BuildError(f"the backend of {job.name} failed", None, lines)
