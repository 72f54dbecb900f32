"""What a cluster says of itself."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import msgspec

from klto.cluster import remote
from klto.cluster.connection import connected, run_async

if TYPE_CHECKING:
    from klto.cluster.address import Address

#: Seconds for a worker to answer.
_ANSWER = 20.0


def cluster_status(address: Address) -> list[dict[str, Any]]:
    """One entry a worker; ``host`` is empty for those that do not answer.

    :raises UsageError: when the scheduler cannot be reached.
    """
    return run_async(_ask(address))


async def _ask(address: Address) -> list[dict[str, Any]]:
    async with connected(address) as client:
        identity = await client.scheduler.identity(n_workers=-1)
        there = identity["workers"]
        return list(
            await asyncio.gather(
                *(_worker(client, place, there[place]["nthreads"]) for place in sorted(there))
            )
        )


async def _worker(client: Any, place: str, slots: int) -> dict[str, Any]:
    found: dict[str, Any] = {
        "address": place,
        "slots": slots,
        "host": "",
        "running": 0,
        "compilers": [],
        "store": "",
    }
    try:
        answer = await asyncio.wait_for(client.run(remote.hello, workers=[place], on_error="return"), _ANSWER)
        hello = msgspec.msgpack.decode(remote.unpack(answer[place]), type=remote.Hello)
    except (OSError, TimeoutError, ValueError, KeyError, msgspec.MsgspecError):
        return found
    folder, held, limit = hello.store
    return found | {
        "host": hello.host, "klto": hello.klto, "running": hello.running, "compilers": list(hello.compilers.values()),
        "store": folder, "store_bytes": held, "store_limit": limit,
    }  # fmt: skip
