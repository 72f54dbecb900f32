"""Jobs as they become ready, made by a thread of their own while earlier ones run."""

from __future__ import annotations

import threading
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from klto.cluster.job import Job


class Feed:
    """Runs a generator of jobs ahead of whoever takes them. A context manager; one consumer.

    :ivar on_ready: called from the other thread whenever there is something to take, or nothing will come any more.
    """

    def __init__(self, jobs: Generator[Job]) -> None:
        self._jobs = jobs
        self._queue: SimpleQueue[Job | None] = SimpleQueue()
        self._stopped = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._fill, name="klto-feed", daemon=True)
        self._held: list[Job] = []
        self.ended = False
        self.on_ready: Callable[[], None] = _nothing

    def __enter__(self) -> Feed:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stopped.set()
        self._thread.join()

    def _fill(self) -> None:
        try:
            for job in self._jobs:
                if self._stopped.is_set():
                    break
                self._queue.put(job)
                self.on_ready()
        except BaseException as error:  # noqa: BLE001 - raised again where the jobs are taken
            self._error = error
        finally:
            self._jobs.close()
            self._queue.put(None)
            self.on_ready()

    def any(self) -> bool:
        """Wait for the first job; whether there is one.

        :raises BaseException: whatever the generator raised.
        """
        self._held += [job for job in [next(iter(self), None)] if job is not None]
        return bool(self._held)

    def __iter__(self) -> Iterator[Job]:
        """Jobs, waited for.

        :raises BaseException: whatever the generator raised.
        """
        while self._held:
            yield self._held.pop(0)
        while not self.ended:
            job = self._queue.get()
            if job is None:
                self._end()
            else:
                yield job

    def take(self) -> list[Job]:
        """The jobs that are ready now; ``ended`` tells whether others will come.

        :raises BaseException: whatever the generator raised.
        """
        found, self._held = self._held, []
        while not self.ended:
            try:
                job = self._queue.get_nowait()
            except Empty:
                break
            if job is None:
                self._end()
            else:
                found.append(job)
        return found

    def _end(self) -> None:
        self.ended = True
        if self._error is not None:
            raise self._error


def _nothing() -> None:
    return
