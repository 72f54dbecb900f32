"""Runs jobs on a Dask cluster, and sees to it that each comes to an end: elsewhere, again, or here.

Dask decides which worker runs what. This side keeps a window of runs at the scheduler, longest jobs first and short
ones together, sends workers the files that they lack, judges what comes back, and gives jobs of silent or slow
workers to others.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter, deque
from contextlib import suppress
from itertools import chain
from typing import TYPE_CHECKING, Any

import msgspec
from distributed import Client

from klto.cluster import remote
from klto.cluster.backend import check_object
from klto.cluster.connection import (
    Unreachable,
    check_interrupted,
    connected,
    raising_interrupts,
    reason_of,
    run_async,
)
from klto.cluster.local import LocalRunner
from klto.cluster.remote import MEMORY, Answer
from klto.cluster.times import expected_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from klto.cluster.address import Address
    from klto.cluster.backend import LocalFiles
    from klto.cluster.feed import Feed
    from klto.cluster.job import Job, Outcome
    from klto.cluster.local import Deliver
    from klto.cluster.toolchain import Compiler
    from klto.cluster.use import Use

#: Seconds: for a worker to answer; between looks at who is there.
_ANSWER, _LOOK = 20.0, 1.0
#: Times that a worker is asked who it is.
_GREETINGS = 3
#: Seconds without any usable worker after which the rest is done here.
_PATIENCE = 15.0
#: A worker is silent when the scheduler has not heard of it for this many seconds longer than of others
#: (distributed's workers report every second).
_SILENT = 10.0
#: Faults after which a worker gets no more jobs of this link; lost runs after which a job is done here.
_MOST_FAULTS, _MOST_LOST = 3, 3
#: A job is slow when it takes longer than this many seconds and this many times the median of the finished ones.
_SLOW_SECONDS, _SLOW_TIMES = 3.0, 4.0
#: Expected seconds of the jobs that go to a worker together, and how many they may be: what a run costs besides
#: its backends should be little of it, and a worker that is lost should not take much along.
_RUN_SECONDS, _RUN_JOBS = 2.0, 32
#: Memory of a backend: clang itself, and for each byte of bitcode.
_BASE_MEMORY, _MEMORY_PER_BYTE = 150 << 20, 30


class _Worker:
    """What is known of a worker. ``usable``: None until it has answered."""

    def __init__(self, address: str, slots: int, memory: float | None) -> None:
        self.address, self.slots, self.memory = address, slots, memory
        self.greeted = 0
        self.usable: bool | None = None
        self.faults = 0
        self.silent = False


class _Run:
    """Jobs that are on their way together.

    :ivar key: Dask's name for the run; another one when it is asked for again. ``workers``: those that it may be on.
    """

    def __init__(self, jobs: list[Job], workers: Sequence[str]) -> None:
        self.jobs, self.workers = jobs, tuple(workers)
        self.key = ""
        self.since = time.monotonic()


class ClusterRunner:
    """Runs jobs on the workers of one scheduler."""

    def __init__(self, address: Address, compiler: Compiler, use: Use, local: LocalRunner) -> None:
        self._address, self._compiler, self._use, self._local = address, compiler, use, local
        self._workers: dict[str, _Worker] = {}
        self._greeting: set[asyncio.Task[None]] = set()
        self._lost: dict[int, int] = {}
        self._walls: list[float] = []
        self._link = os.urandom(6).hex()
        self._asked = 0
        self._pending: deque[Job] = deque()
        self._pending_seconds = 0.0
        #: Jobs without an object yet, by id(); and how many runs of each are under way.
        self._open: dict[int, Job] = {}
        self._runs_of: Counter[int] = Counter()
        self._running: dict[asyncio.Task[Answer], _Run] = {}
        self._ended: deque[asyncio.Task[Answer]] = deque()

    def run(self, jobs: Feed, files: LocalFiles, deliver: Deliver) -> None:
        """As in :class:`klto.cluster.local.Runner`."""
        self._jobs, self._files, self._deliver = jobs, files, deliver
        run_async(self._main())
        if self._open or not jobs.ended:
            self._local.run(chain(list(self._open.values()), jobs), files, deliver)

    async def _main(self) -> None:
        """Run what can be run on workers; what is left open then is to be done here."""
        self._wake = asyncio.Event()
        loop = asyncio.get_running_loop()

        def ready() -> None:
            with suppress(RuntimeError):  # The loop has ended meanwhile.
                loop.call_soon_threadsafe(self._wake.set)

        self._jobs.on_ready = ready
        try:
            async with connected(self._address) as client:
                before = await _scheduler_seconds(client)
                await self._drive(client)
                self._use.scheduler_cpu_seconds += max(0.0, await _scheduler_seconds(client) - before)
        except Unreachable as error:
            self._use.say(f"{error.message}: the modules are compiled here")

    async def _drive(self, client: Client) -> None:
        try:
            await self._until_done(client)
        finally:
            tasks = [*self._running, *self._greeting]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _until_done(self, client: Client) -> None:
        """Returns when all jobs are done, or when no worker is left to do the others."""
        alone_since = time.monotonic()
        looked = 0.0
        while self._open or not self._jobs.ended:
            check_interrupted()
            self._wake.clear()
            for job in self._jobs.take():
                self._open[id(job)] = job
                self._wait_for_slot(job)
            now = time.monotonic()
            if now - looked >= _LOOK:
                looked = now
                if client.status != "running" or not await self._look(client):
                    self._use.say(
                        f"the scheduler at {self._address.text} is gone: {self._left()} compiled here"
                    )
                    break
                await self._rescue(client)
            usable = self._usable()
            if usable:
                alone_since = now
            elif now - alone_since > _PATIENCE or (
                self._workers and all(w.usable is False for w in self._workers.values())
            ):
                self._use.say(f"no worker at {self._address.text} can be used: {self._left()} compiled here")
                break
            slots = sum(worker.slots for worker in usable)
            while usable and self._pending and len(self._running) < 2 * slots + 1:
                jobs = self._next_jobs(slots)
                if jobs:
                    self._start(client, _Run(jobs, [worker.address for worker in usable]))
            with suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), _LOOK / 2)
            while self._ended:
                task = self._ended.popleft()
                run = self._running.pop(task, None)
                if run is not None:  # Not given up meanwhile.
                    self._runs_of.subtract(map(id, run.jobs))
                    self._judge(run, task.result())

    def _left(self) -> str:
        return f"{len(self._open)} modules are" if self._jobs.ended else "the other modules are"

    def _usable(self) -> list[_Worker]:
        return [w for w in self._workers.values() if w.usable and not w.silent]

    def _wait_for_slot(self, job: Job, first: bool = False) -> None:
        self._pending_seconds += self._expected(job)
        if first:
            self._pending.appendleft(job)
        else:
            self._pending.append(job)

    def _expected(self, job: Job) -> float:
        return expected_of(self._size(job))

    def _size(self, job: Job) -> int:
        """Bytes of its bitcode."""
        return next(self._files.size(blob.sha256) for blob in job.files if blob.path == job.module)

    def _next_jobs(self, slots: int) -> list[Job]:
        """The jobs of the next run: short ones together, fewer towards the end; one that was lost before alone."""
        share = min(_RUN_SECONDS, self._pending_seconds / (2 * slots))
        jobs: list[Job] = []
        seconds = 0.0
        while self._pending and len(jobs) < _RUN_JOBS:
            job = self._pending[0]
            expected = self._expected(job)
            if jobs and (seconds + expected > share or self._lost.get(id(job))):
                break
            self._pending.popleft()
            self._pending_seconds -= expected
            if id(job) in self._open:
                jobs.append(job)
                seconds += expected
                if self._lost.get(id(job)):
                    break
        return jobs

    def _start(self, client: Client, run: _Run) -> None:
        task = asyncio.create_task(self._attempt(client, run))
        self._running[task] = run
        self._runs_of.update(map(id, run.jobs))
        task.add_done_callback(self._note_end)

    def _note_end(self, task: asyncio.Task[Answer]) -> None:
        self._ended.append(task)
        self._wake.set()

    async def _attempt(self, client: Client, run: _Run) -> Answer:
        """One run on one of some workers: what came of its jobs, and on which worker."""
        todo, workers, priority = run.jobs, list(run.workers), -self._asked
        done: dict[int, Outcome] = {}
        for _ in range(3):  # At most: files lacking, files pruned meanwhile, run.
            answer = await self._ask(client, run, todo, workers, priority)
            if not answer.where or answer.refused or answer.lost:
                return answer
            done |= {
                id(job): outcome
                for job, outcome in zip(todo, answer.outcomes, strict=False)
                if outcome.status != "lacking"
            }
            todo = [job for job in todo if id(job) not in done]
            if not todo:
                return msgspec.structs.replace(answer, outcomes=[done[id(job)] for job in run.jobs])
            problem = await self._send(client, answer.lacking, answer.where)
            if problem:
                return Answer(where=answer.where, lost=problem)
            workers = [answer.where]
        return Answer(where=answer.where, lost="files do not stay in the worker's store")

    async def _ask(
        self, client: Client, run: _Run, jobs: list[Job], workers: list[str], priority: int
    ) -> Answer:
        packed = remote.pack(jobs)
        self._asked += 1
        run.workers = tuple(workers)
        run.key = key = f"klto-{self._link}-{self._asked}"
        self._use.bytes_sent += len(packed)
        future = client.submit(
            remote.run_jobs, packed, key, key=key, workers=workers, pure=False, resources=self._resources(jobs),
            priority=priority,
        )  # fmt: skip
        try:
            answer = self._unpack(await future)
            return (
                answer
                if answer.where
                else msgspec.structs.replace(answer, where=await _holder(client, future))
            )
        except asyncio.CancelledError:
            # Ours, or Dask's: the scheduler is gone or has forgotten the task.
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            return Answer(lost="the task was cancelled")
        except Exception as error:  # noqa: BLE001 - Dask raises here whatever was raised on the worker
            return Answer(lost=reason_of(error))
        finally:
            future.release()

    def _unpack(self, data: object) -> Answer:
        if not isinstance(data, bytes):
            return Answer(lost="it returned garbage")
        self._use.bytes_received += len(data)
        try:
            message = remote.unpack(data)
            self._use.bytes_received_raw += len(message)
            return msgspec.msgpack.decode(message, type=Answer)
        except (ValueError, msgspec.MsgspecError):
            return Answer(lost="it returned garbage")

    def _resources(self, jobs: list[Job]) -> dict[str, float] | None:
        """What a run takes of a worker's memory, when all workers state theirs; never more than the largest has."""
        memories = [worker.memory for worker in self._usable()]
        if not memories or None in memories:
            return None
        most = _BASE_MEMORY + _MEMORY_PER_BYTE * max(map(self._size, jobs))
        return {MEMORY: min(most, max(m for m in memories if m is not None))}

    async def _send(self, client: Client, lacking: Sequence[str], worker: str) -> str:
        """Send a worker what it lacks; empty, or why that failed."""
        try:
            packed, size, seconds = await asyncio.to_thread(self._pack, lacking)
        except KeyError:
            return "it asked for files that are not part of the job"
        except OSError as error:
            return f"{error.strerror} ({error.filename})"
        self._use.bytes_sent += len(packed)
        self._use.bytes_sent_raw += size
        self._use.helper_cpu_seconds += seconds
        self._use.client_cpu_seconds -= seconds
        try:
            answer = await asyncio.wait_for(
                client.run(remote.put_blobs, packed, workers=[worker], on_error="return"), _ANSWER
            )
        except (OSError, TimeoutError, ValueError, KeyError) as error:
            return reason_of(error)
        problem = answer.get(worker, "no answer") if isinstance(answer, dict) else "no answer"
        return problem if isinstance(problem, str) else reason_of(problem)

    def _pack(self, lacking: Sequence[str]) -> tuple[bytes, int, float]:
        """(message, bytes of the files in it, CPU seconds): in a thread, since zlib lets others run meanwhile."""
        begun = time.thread_time()
        blobs = [(sha256, self._files.read(sha256)) for sha256 in lacking]
        return remote.pack(blobs), sum(len(data) for _, data in blobs), time.thread_time() - begun

    def _judge(self, run: _Run, answer: Answer) -> None:
        """Take an answer in: deliver objects, and see to it that the other jobs are run again."""
        worker = self._workers.get(answer.where)
        refused = bool(answer.refused) and worker is not None
        if worker is not None and refused:
            worker.usable = False
        elif answer.lost or answer.refused or not answer.where:
            self._fault(answer.where, answer.lost or answer.refused or "it returned garbage")
        # One that failed is tried here, where that can end the link: the others' objects are taken first.
        failed = []
        outcomes: list[Outcome | None] = [*answer.outcomes, *[None] * len(run.jobs)]
        for job, outcome in zip(run.jobs, outcomes, strict=False):
            if id(job) not in self._open:
                continue  # Another run was faster.
            if outcome is None:
                self._again(job, lost=not refused)
                continue
            self._use.backend_cpu_seconds += outcome.cpu_seconds
            problem: str | None = f"{outcome.status}: {outcome.text.strip()}"
            if outcome.status == "done":
                problem = check_object(outcome.object, outcome.sha256, job.options.triple, job.name)
            if problem is None:
                self._walls.append(outcome.wall_seconds)
                self._use.remote += 1
                del self._open[id(job)]
                self._deliver(job, outcome.object, outcome.cpu_seconds)
            elif outcome.status == "failed" and not self._runs_of[id(job)]:
                failed.append(job)
            else:
                self._fault(answer.where, problem)
                self._again(job, lost=True)
        for job in failed:
            # On its merits, or is something wrong with that worker? Here the same compiler tells.
            self._here([job])
            self._fault(answer.where, f"{job.name} failed there and not here")

    def _again(self, job: Job, lost: bool) -> None:
        """A run of a job has come to nothing."""
        if lost:
            self._use.lost += 1
            self._lost[id(job)] = self._lost.get(id(job), 0) + 1
        if self._runs_of[id(job)]:
            return  # Another run of it is under way.
        if self._lost.get(id(job), 0) >= _MOST_LOST:
            self._use.say(f"{job.name} was lost {_MOST_LOST} times: it is compiled here")
            self._here([job])
        else:
            self._wait_for_slot(job, first=True)

    def _here(self, jobs: list[Job]) -> None:
        with raising_interrupts():
            self._local.run(jobs, self._files, self._deliver)
        for job in jobs:
            del self._open[id(job)]

    def _fault(self, where: str, problem: str) -> None:
        worker = self._workers.get(where)
        if worker is not None and worker.usable is False:
            return  # All is said about it.
        first = problem.strip().splitlines()[0] if problem.strip() else "no reason given"
        self._use.say(f"worker {where or '(gone)'}: {first}; its jobs go elsewhere")
        if worker is not None:
            worker.faults += 1
            if worker.faults >= _MOST_FAULTS and worker.usable:
                worker.usable = False
                self._use.say(f"worker {where} gets no more jobs of this link: {_MOST_FAULTS} faults")

    async def _look(self, client: Client) -> bool:
        """See which workers are there; False when the scheduler does not answer."""
        try:
            identity: dict[str, Any] = await asyncio.wait_for(
                client.scheduler.identity(n_workers=-1), _ANSWER
            )
        except (OSError, TimeoutError):
            return False
        there: dict[str, Any] = identity["workers"]
        newest = max((info["last_seen"] for info in there.values()), default=0.0)
        for address in self._workers.keys() - there.keys():
            self._use.say(f"worker {address} is gone")
            del self._workers[address]
        for address, info in there.items():
            if address not in self._workers:
                self._workers[address] = _Worker(address, info["nthreads"], info["resources"].get(MEMORY))
                task = asyncio.create_task(self._greet(client, self._workers[address]))
                self._greeting.add(task)
                task.add_done_callback(self._note_greeting)
            silent = newest - info["last_seen"] > _SILENT
            if silent and not self._workers[address].silent:
                self._use.say(f"worker {address} is silent: its jobs go elsewhere")
            self._workers[address].silent = silent
        return True

    def _note_greeting(self, task: asyncio.Task[None]) -> None:
        self._greeting.discard(task)
        self._wake.set()

    async def _greet(self, client: Client, worker: _Worker) -> None:
        """Ask a new worker for its toolchains."""
        try:
            answer = await asyncio.wait_for(
                client.run(remote.hello, workers=[worker.address], on_error="return"), _ANSWER
            )
            hello = msgspec.msgpack.decode(remote.unpack(answer[worker.address]), type=remote.Hello)
        except (OSError, TimeoutError, ValueError, KeyError, msgspec.MsgspecError) as error:
            worker.greeted += 1
            if worker.greeted < _GREETINGS:
                await self._greet(client, worker)
                return
            worker.usable = False
            self._use.say(f"worker {worker.address} does not answer: {reason_of(error)}")
            return
        worker.usable = self._compiler.identity in hello.compilers
        if worker.usable:
            self._use.workers += 1
        else:
            self._use.refused += 1
            has = "; ".join(hello.compilers.values()) or "no clang"
            self._use.say(
                f"worker {worker.address} is not used: it has {has}; this link needs {self._compiler}"
            )

    async def _rescue(self, client: Client) -> None:
        """Give up runs that are with workers gone or silent, and run slow jobs again elsewhere while slots idle."""
        usable = self._usable()
        alive = {worker.address for worker in usable}
        try:
            processing = await asyncio.wait_for(client.scheduler.processing(workers=None), _ANSWER)
        except (OSError, TimeoutError):
            return  # The next look finds out what is the matter.
        holders = {key: address for address, keys in processing.items() for key in keys}
        for task, run in list(self._running.items()):
            # A task that may run on none of the workers left would wait for ever.
            if holders.get(run.key, "") not in {"", *alive} or not alive & set(run.workers):
                task.cancel()
                del self._running[task]
                self._runs_of.subtract(map(id, run.jobs))
                for job in reversed(run.jobs):
                    if id(job) in self._open and not self._runs_of[id(job)]:
                        self._use.again += 1
                        self._wait_for_slot(job, first=True)
        if self._pending or not self._jobs.ended:
            return
        idle = sum(worker.slots for worker in usable) - len(self._running)
        median = sorted(self._walls)[len(self._walls) // 2] if self._walls else 0.0
        now = time.monotonic()
        for run in list(self._running.values()):
            jobs = [job for job in run.jobs if id(job) in self._open and self._runs_of[id(job)] == 1]
            others = [address for address in alive if address != holders.get(run.key)]
            slow = max(_SLOW_SECONDS, _SLOW_TIMES * median * len(run.jobs))
            if idle > 0 and jobs and others and now - run.since > slow:
                idle -= 1
                self._use.again += len(jobs)
                self._start(client, _Run(jobs, others))


async def _scheduler_seconds(client: Client) -> float:
    """CPU seconds of the scheduler's process so far; 0 when it does not say."""
    try:
        return float(await asyncio.wait_for(client.run_on_scheduler(time.process_time), _ANSWER))
    except (OSError, TimeoutError, TypeError, ValueError):
        return 0.0


async def _holder(client: Client, future: Any) -> str:
    """The worker that holds a result."""
    who = await client.who_has([future])
    return next(iter(next(iter(who.values()), ())), "")
