"""Runs jobs on a Dask cluster, and sees to it that each comes to an end: elsewhere, again, or here.

Dask decides which worker runs what. This side keeps a window of jobs at the scheduler, longest first, sends workers
the files that they lack, judges what comes back, and gives jobs of silent or slow workers to others.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
from distributed import Client

from klto.cluster import remote
from klto.cluster.backend import check_object
from klto.cluster.connection import Unreachable, connected, reason_of
from klto.cluster.job import Outcome
from klto.cluster.local import LocalRunner
from klto.cluster.remote import MEMORY

if TYPE_CHECKING:
    from collections.abc import Sequence

    from klto.cluster.address import Address
    from klto.cluster.backend import LocalFiles
    from klto.cluster.job import Job
    from klto.cluster.local import Deliver
    from klto.cluster.toolchain import Compiler
    from klto.cluster.use import Use

    #: Runs under way: the job and when its run was asked for.
    Running = dict[asyncio.Task[tuple[Outcome, str]], tuple[Job, float]]

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


class _Run(NamedTuple):
    """A run under way: its Dask key, and the workers that it may be on."""

    key: str
    workers: tuple[str, ...]


class ClusterRunner:
    """Runs jobs on the workers of one scheduler."""

    def __init__(self, address: Address, compiler: Compiler, use: Use, local: LocalRunner) -> None:
        self._address, self._compiler, self._use, self._local = address, compiler, use, local
        self._workers: dict[str, _Worker] = {}
        self._greeting: set[asyncio.Task[None]] = set()
        self._lost: dict[int, int] = {}
        self._walls: list[float] = []
        self._link = os.urandom(6).hex()
        self._runs = 0
        self._run_of: dict[asyncio.Task[Any] | None, _Run] = {}

    def run(self, jobs: Sequence[Job], files: LocalFiles, deliver: Deliver) -> None:
        """As in :class:`klto.cluster.local.Runner`."""
        self._files, self._deliver = files, deliver
        self._pending: deque[Job] = deque(jobs)
        self._open = {id(job): job for job in jobs}
        here = asyncio.run(self._main())
        if here:
            self._local.run(here, files, deliver)

    async def _main(self) -> list[Job]:
        """Run what can be run on workers; the jobs that are left to do here."""
        try:
            async with connected(self._address) as client:
                return await self._drive(client)
        except Unreachable as error:
            self._use.say(f"{error.message}: {len(self._open)} modules are compiled here")
            return list(self._open.values())

    async def _drive(self, client: Client) -> list[Job]:
        running: Running = {}
        try:
            await self._until_done(client, running)
        finally:
            for task in [*running, *self._greeting]:
                task.cancel()
            await asyncio.gather(*running, *self._greeting, return_exceptions=True)
        return list(self._open.values())

    async def _until_done(self, client: Client, running: Running) -> None:
        """Returns when all jobs are done, or when no worker is left to do the others."""
        alone_since = time.monotonic()
        looked = 0.0
        while self._open:
            now = time.monotonic()
            if now - looked >= _LOOK:
                looked = now
                if client.status != "running" or not await self._look(client):
                    self._use.say(
                        f"the scheduler at {self._address.text} is gone: {len(self._open)} modules are compiled here"
                    )
                    break
                await self._rescue(client, running)
            usable = self._usable()
            if usable:
                alone_since = now
            elif now - alone_since > _PATIENCE or (
                self._workers and all(w.usable is False for w in self._workers.values())
            ):
                self._use.say(
                    f"no worker at {self._address.text} can be used: {len(self._open)} modules are compiled here"
                )
                break
            slots = sum(worker.slots for worker in usable)
            while usable and self._pending and len(running) < 2 * slots + 1:
                job = self._pending.popleft()
                if id(job) in self._open:
                    self._start(client, job, [worker.address for worker in usable], running)
            if running:
                done, _ = await asyncio.wait(running, timeout=_LOOK / 2, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    job, _ = running.pop(task)
                    self._run_of.pop(task, None)
                    self._judge(client, job, *task.result(), running)
            else:
                await asyncio.sleep(0.05)

    def _usable(self) -> list[_Worker]:
        return [w for w in self._workers.values() if w.usable and not w.silent]

    def _start(
        self,
        client: Client,
        job: Job,
        workers: list[str],
        running: Running,
    ) -> None:
        running[asyncio.create_task(self._attempt(client, job, workers))] = (job, time.monotonic())

    async def _attempt(self, client: Client, job: Job, workers: list[str]) -> tuple[Outcome, str]:
        """One run of a job on one of some workers: what came of it, and on which."""
        packed = remote.pack(job)
        for _ in range(3):  # At most: files lacking, files pruned meanwhile, run.
            self._runs += 1
            key = f"klto-{self._link}-{self._runs}"
            self._run_of[asyncio.current_task()] = _Run(key, tuple(workers))
            self._use.bytes_sent += len(packed)
            future = client.submit(
                remote.run_job, packed, key, key=key, workers=workers, pure=False, resources=self._resources(job),
                priority=-self._runs,
            )  # fmt: skip
            where = ""
            try:
                data = await future
                outcome = self._unpack(data)
                where = outcome.where or await _holder(client, future)
            except asyncio.CancelledError:
                # Ours, or Dask's: the scheduler is gone or has forgotten the task.
                task = asyncio.current_task()
                if task is not None and task.cancelling():
                    raise
                return Outcome(status="lost", text="the task was cancelled"), where
            except Exception as error:  # noqa: BLE001 - Dask raises here whatever was raised on the worker
                return Outcome(status="lost", text=reason_of(error)), where
            finally:
                future.release()
            if outcome.status != "lacking":
                return outcome, where
            problem = await self._send(client, outcome.lacking, where)
            if problem:
                return Outcome(status="lost", text=problem), where
            workers = [where]
        return Outcome(status="lost", text="files do not stay in the worker's store"), where

    def _unpack(self, data: object) -> Outcome:
        if not isinstance(data, bytes):
            return Outcome(status="lost", text="it returned garbage")
        self._use.bytes_received += len(data)
        try:
            message = remote.unpack(data)
            self._use.bytes_received_raw += len(message)
            return msgspec.msgpack.decode(message, type=Outcome)
        except (ValueError, msgspec.MsgspecError):
            return Outcome(status="lost", text="it returned garbage")

    def _resources(self, job: Job) -> dict[str, float] | None:
        """What the job takes of a worker's memory, when all workers state theirs; never more than the largest has."""
        memories = [worker.memory for worker in self._usable()]
        if not memories or None in memories:
            return None
        size = next(self._files.size(blob.sha256) for blob in job.files if blob.path == job.module)
        return {
            MEMORY: min(_BASE_MEMORY + _MEMORY_PER_BYTE * size, max(m for m in memories if m is not None))
        }

    async def _send(self, client: Client, lacking: Sequence[str], worker: str) -> str:
        """Send a worker what it lacks; empty, or why that failed."""
        try:
            blobs = [(sha256, self._files.read(sha256)) for sha256 in lacking]
        except KeyError:
            return "it asked for files that are not part of the job"
        packed = remote.pack(blobs)
        self._use.bytes_sent += len(packed)
        self._use.bytes_sent_raw += sum(len(data) for _, data in blobs)
        try:
            answer = await asyncio.wait_for(
                client.run(remote.put_blobs, packed, workers=[worker], on_error="return"), _ANSWER
            )
        except (OSError, TimeoutError, ValueError, KeyError) as error:
            return reason_of(error)
        problem = answer.get(worker, "no answer") if isinstance(answer, dict) else "no answer"
        return problem if isinstance(problem, str) else reason_of(problem)

    def _judge(
        self, client: Client, job: Job, outcome: Outcome, where: str,
        running: Running,
    ) -> None:  # fmt: skip
        """Take an outcome in: deliver the object, or see to it that the job is run again."""
        if id(job) not in self._open:
            return  # Another run was faster.
        self._use.backend_cpu_seconds += outcome.cpu_seconds
        problem: str | None = f"{outcome.status}: {outcome.text.strip()}"
        if outcome.status == "done":
            problem = check_object(outcome.object, outcome.sha256, job.options.triple, job.name)
        if problem is None:
            self._walls.append(outcome.wall_seconds)
            self._use.remote += 1
            del self._open[id(job)]
            self._deliver(job, outcome.object, outcome.cpu_seconds)
            return
        if any(other is job for other, _ in running.values()):
            return  # Another run of it is under way.
        if outcome.status == "failed":
            # On its merits, or is something wrong with that worker? Here the same compiler tells.
            self._here([job])
            self._fault(where, f"{job.name} failed there and not here")
            return
        if outcome.status == "refused":
            if where in self._workers:
                self._workers[where].usable = False
        else:
            self._use.lost += 1
            self._fault(where, problem)
            self._lost[id(job)] = self._lost.get(id(job), 0) + 1
        if self._lost.get(id(job), 0) >= _MOST_LOST:
            self._use.say(f"{job.name} was lost {_MOST_LOST} times: it is compiled here")
            self._here([job])
        else:
            self._pending.appendleft(job)

    def _here(self, jobs: list[Job]) -> None:
        self._local.run(jobs, self._files, self._deliver)
        for job in jobs:
            del self._open[id(job)]

    def _fault(self, where: str, problem: str) -> None:
        worker = self._workers.get(where)
        first = problem.strip().splitlines()[0] if problem.strip() else "no reason given"
        self._use.say(f"worker {where or '(gone)'}: {first}; its job goes elsewhere")
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
                task.add_done_callback(self._greeting.discard)
            silent = newest - info["last_seen"] > _SILENT
            if silent and not self._workers[address].silent:
                self._use.say(f"worker {address} is silent: its jobs go elsewhere")
            self._workers[address].silent = silent
        return True

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

    async def _rescue(self, client: Client, running: Running) -> None:
        """Give up runs that are with workers gone or silent, and run slow jobs again elsewhere while slots idle."""
        usable = self._usable()
        alive = {worker.address for worker in usable}
        try:
            processing = await asyncio.wait_for(client.scheduler.processing(workers=None), _ANSWER)
        except (OSError, TimeoutError):
            return  # The next look finds out what is the matter.
        holders = {key: address for address, keys in processing.items() for key in keys}
        for task, (job, _) in list(running.items()):
            run = self._run_of.get(task)
            # A task that may run on none of the workers left would wait for ever.
            if run and (holders.get(run.key, "") not in {"", *alive} or not alive & set(run.workers)):
                task.cancel()
                del running[task], self._run_of[task]
                if id(job) in self._open and not any(other is job for other, _ in running.values()):
                    self._use.again += 1
                    self._pending.appendleft(job)
        runs: dict[int, int] = {}
        for job, _ in running.values():
            runs[id(job)] = runs.get(id(job), 0) + 1
        if self._pending or sum(worker.slots for worker in usable) <= len(runs):
            return
        median = sorted(self._walls)[len(self._walls) // 2] if self._walls else 0.0
        now = time.monotonic()
        for task, (job, since) in list(running.items()):
            run = self._run_of.get(task)
            if run and runs[id(job)] == 1 and now - since > max(_SLOW_SECONDS, _SLOW_TIMES * median):
                others = [address for address in alive if address != holders.get(run.key)]
                if others and id(job) in self._open:
                    self._use.again += 1
                    self._start(client, job, others, running)


async def _holder(client: Client, future: Any) -> str:
    """The worker that holds a result."""
    who = await client.who_has([future])
    return next(iter(next(iter(who.values()), ())), "")
