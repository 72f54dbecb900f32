"""Dask's scheduler and worker as klto starts them: TLS or loopback, no dashboard, one thread for each job."""

from __future__ import annotations

import asyncio
import os
import signal
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import dask
from distributed import Scheduler, Worker

from klto.cluster import remote
from klto.cluster.address import is_loopback
from klto.cluster.connection import security_for
from klto.errors import UsageError
from klto.files import make_directory, user_cache_dir, write_whole

if TYPE_CHECKING:
    from klto.cluster.address import Address

#: Where Dask's HTTP server listens, at any free port.
_HTTP = "127.0.0.1:0"
#: A worker that the scheduler has not heard of for this long is given up (distributed's own default is 5 minutes).
_TTL = "30s"
_CONFIG = {
    "distributed.scheduler.worker-ttl": _TTL,
    "distributed.admin.log-length": 100,
    "distributed.worker.profile.enabled": False,
    "distributed.comm.timeouts.connect": "10s",
    "distributed.comm.timeouts.tcp": "20s",
    "distributed.admin.system-monitor.interval": "5s",
    # Dask serves plain HTTP even without a dashboard: nothing is to be had there, and on loopback alone.
    "distributed.scheduler.http.routes": [],
    "distributed.worker.http.routes": [],
}


def run_scheduler(address: Address, address_file: Path | None) -> None:
    """Serve until TERM or INT.

    :param address: where to listen; port 0 for any.
    :param address_file: gets the address that clients use.
    """
    protocol, _, place = address.text.partition("://")
    host, _, port = place.rpartition(":")

    async def main() -> None:
        async with Scheduler(
            host=host.strip("[]"), port=int(port), protocol=protocol, dashboard=False, dashboard_address=_HTTP,
            security=security_for(address, "scheduler"),
        ) as scheduler:  # fmt: skip
            if address_file is not None:
                write_whole(address_file, scheduler.address + "\n")
            await _until_stopped(scheduler.finished())

    # Else Dask leaves a folder of its own in the common one for temporary files.
    with (
        tempfile.TemporaryDirectory(prefix="klto-scheduler-") as folder,
        dask.config.set({**_CONFIG, "temporary-directory": folder}),
    ):
        _run(main(), f"listen at {address.text}")


def run_worker(
    address: Address, slots: int, store: Path | None, store_size: int, host: str | None, memory: int
) -> None:
    """Work for the scheduler at ``address`` until TERM or INT, or until it is gone.

    :param memory: bytes that backends may have, all together.
    :param host: this machine's address for other machines, on which alone it listens then; found out when None.
        Without TLS it is loopback, always.
    :raises UsageError: for another one without TLS.
    """
    if not address.tls:
        host = host or "127.0.0.1"
        if not is_loopback(host):
            raise UsageError(f"plain TCP at {host}: off this machine only tls:// with certificates is spoken")
    folder = make_directory((store or user_cache_dir() / "worker").absolute())
    os.environ[remote.ENV_STORE], os.environ[remote.ENV_STORE_SIZE] = str(folder), str(store_size)

    async def main() -> None:
        worker = Worker(
            address.text, nthreads=slots, security=security_for(address, "worker"), memory_limit=0,
            host=host, dashboard=False, dashboard_address=_HTTP, death_timeout=60, local_directory=str(folder / "dask"),
            resources={remote.MEMORY: memory},
        )  # fmt: skip
        async with worker:
            await _until_stopped(worker.finished())

    with dask.config.set(_CONFIG):
        _run(main(), f"work for {address.text}")


async def _until_stopped(finished: object) -> None:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    ends = [asyncio.ensure_future(finished), asyncio.ensure_future(stopped.wait())]  # type: ignore[call-overload]
    _, left = await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
    for task in left:
        task.cancel()


def _run(main: object, what: str) -> None:
    try:
        asyncio.run(main)  # type: ignore[arg-type]
    except (OSError, TimeoutError, ValueError, RuntimeError) as error:
        cause = error.__cause__ or error
        raise UsageError(f"cannot {what}: {cause}") from error
