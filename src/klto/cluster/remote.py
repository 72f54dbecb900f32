"""What Dask runs on a worker, on behalf of a link. All of it takes and gives bytes whose structure is checked."""

from __future__ import annotations

import os
import socket
import threading
import zlib
from functools import cache
from pathlib import Path

import msgspec

from klto import __version__
from klto.cluster.backend import make_work_folder, run_backend
from klto.cluster.blobs import DEFAULT_LIMIT, BlobStore
from klto.cluster.job import Job, Outcome
from klto.cluster.toolchain import compilers_here, find_compiler
from klto.files import user_cache_dir

#: Environment variables of a worker: its store's folder, the store's limit in bytes.
ENV_STORE, ENV_STORE_SIZE = "KLTO_WORKER_STORE", "KLTO_WORKER_STORE_SIZE"
#: The Dask resource in which a worker states the bytes of memory that backends may have.
MEMORY = "klto-memory"
#: Bytes: larger than any message is meant to be once it is decompressed.
_MOST = 1 << 31


class Hello(msgspec.Struct, frozen=True):
    """A worker's account of itself. ``store``: (folder, bytes held, limit)."""

    klto: str
    host: str
    compilers: dict[str, str]
    store: tuple[str, int, int]
    running: int


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a run of jobs.

    :ivar where: the worker's address. ``outcomes``: of the jobs in their order; of none when files are lacking.
    :ivar lacking: SHA-256 of files that the worker does not have.
    :ivar refused: why it takes no such jobs. ``lost``: how the run came to nothing (said by the client's side).
    """

    where: str = ""
    outcomes: list[Outcome] = []
    lacking: list[str] = []
    refused: str = ""
    lost: str = ""


def pack(value: object) -> bytes:
    """A value for the wire."""
    return zlib.compress(msgspec.msgpack.encode(value), 1)


def unpack(data: bytes) -> bytes:
    """The message behind :func:`pack`.

    :raises ValueError: when it is none.
    """
    try:
        inflate = zlib.decompressobj()
        message = inflate.decompress(data, _MOST)
    except (zlib.error, TypeError) as error:
        raise ValueError(f"no message: {error}") from error
    if not inflate.eof:
        raise ValueError("no message: it does not end")
    return message


class _Worker:
    """This process's share: one store, one folder for jobs."""

    def __init__(self) -> None:
        folder = Path(os.environ.get(ENV_STORE) or user_cache_dir() / "worker")
        self.store = BlobStore(folder / "blobs", int(os.environ.get(ENV_STORE_SIZE) or DEFAULT_LIMIT))
        self.work = make_work_folder(folder)
        self.running = 0
        self.lock = threading.Lock()


@cache
def _worker() -> _Worker:
    return _Worker()


def hello() -> bytes:
    """:class:`Hello`, packed."""
    worker = _worker()
    store = (str(worker.store.folder), worker.store.size(), worker.store.limit)
    compilers = {compiler.identity: str(compiler) for compiler in compilers_here()}
    return pack(Hello(__version__, socket.gethostname(), compilers, store, worker.running))


def put_blobs(packed: bytes) -> str:
    """Take content into the store; empty, or why that was not possible."""
    try:
        blobs = msgspec.msgpack.decode(unpack(packed), type=list[tuple[str, bytes]])
        for sha256, data in blobs:
            if len(sha256) != 64 or not sha256.isalnum():
                raise ValueError(f"no SHA-256: {sha256!r}")
            _worker().store.put(sha256, data)
    except (ValueError, msgspec.MsgspecError) as error:
        return str(error)
    except OSError as error:
        return f"{error.strerror or error} ({_worker().store.folder})"
    return ""


def run_jobs(packed: bytes, key: str) -> bytes:
    """Run :class:`Job` values one after the other, if all of their files are here; an :class:`Answer`, packed."""
    where = _own_address()
    try:
        jobs = msgspec.msgpack.decode(unpack(packed), type=list[Job])
    except (ValueError, msgspec.MsgspecError) as error:
        return pack(Answer(where=where, refused=f"no jobs: {error}"))
    compilers = {identity: find_compiler(identity) for identity in {job.toolchain for job in jobs}}
    if not jobs or None in compilers.values():
        return pack(Answer(where=where, refused="another toolchain"))
    worker = _worker()
    wanted = {blob.sha256 for job in jobs for blob in job.files}
    lacking = [sha256 for sha256 in wanted if not worker.store.has(sha256)]
    if lacking:
        return pack(Answer(where=where, lacking=lacking))
    outcomes: list[Outcome] = []
    with worker.lock:
        worker.running += 1
    try:
        for job in jobs:
            compiler = compilers[job.toolchain]
            assert compiler is not None
            outcome = run_backend(job, compiler, worker.store, worker.work, lambda: _still_wanted(key))
            outcomes.append(outcome)
            lacking += outcome.lacking  # It was altered, or pruned meanwhile.
            if outcome.status == "cancelled":
                break
    finally:
        with worker.lock:
            worker.running -= 1
    return pack(Answer(where=where, outcomes=outcomes, lacking=list(dict.fromkeys(lacking))))


def _own_address() -> str:
    from distributed import get_worker

    try:
        return str(get_worker().address)
    except ValueError:
        return ""  # No Dask worker: a test.


def _still_wanted(key: str) -> bool:
    """Whether the scheduler still waits for this task: not after the link was interrupted or went away."""
    from distributed import get_worker

    try:
        state = get_worker().state.tasks.get(key)
    except ValueError:
        return True  # No Dask worker: a test.
    return state is not None and state.state not in ("cancelled", "released", "forgotten")
