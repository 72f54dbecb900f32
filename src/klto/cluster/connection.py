"""Reaching a Dask scheduler: mutual TLS, and errors that say who does not trust whom."""

from __future__ import annotations

import asyncio
import ssl
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from distributed import Client
from distributed.security import Security

from klto.cluster.address import certificates
from klto.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from klto.cluster.address import Address

#: Seconds to reach the scheduler, and to take leave of it.
_CONNECT = 10.0


def security_for(address: Address, role: str) -> Security | None:
    """Mutual TLS for ``tls://``; None otherwise."""
    if not address.tls:
        return None
    authority, own = map(str, certificates(role))
    return Security(
        require_encryption=True,
        tls_ca_file=authority,
        **{f"tls_{role}_cert": own, f"tls_{role}_key": own},
    )


class Unreachable(UsageError):
    """No scheduler answers."""


@asynccontextmanager
async def connected(address: Address) -> AsyncIterator[Client]:
    """A client of the scheduler.

    :raises Unreachable: when there is none.
    :raises UsageError: when it and this machine do not trust each other.
    """
    security = security_for(address, "client")
    try:
        client = await Client(
            address.text, security=security, asynchronous=True, timeout=_CONNECT, set_as_default=False
        )
    except (OSError, TimeoutError) as error:
        reason = _first_cause(error) or reason_of(error)
        if _untrusted(error):
            raise UsageError(
                f"{address.text} and this machine do not trust each other: {reason}",
                "both sides need valid certificates of the same authority: klto cluster certs",
            ) from error
        raise Unreachable(f"no scheduler at {address.text} ({reason})") from error
    try:
        yield client
    finally:
        await _close(client)


def _untrusted(error: BaseException | None) -> bool:
    """Whether TLS is the cause, anywhere in the chain."""
    while error is not None:
        if isinstance(error, ssl.SSLError):
            return True
        error = error.__cause__ or error.__context__
    return False


async def _close(client: Client) -> None:
    try:
        await asyncio.wait_for(client.close(), _CONNECT)
    except (OSError, TimeoutError):
        return  # The scheduler is gone: nothing is left to be told.


def _first_cause(error: BaseException | None) -> str:
    """The kernel's word for it, anywhere in the chain; Dask's own texts name objects of its inside."""
    while error is not None:
        if isinstance(error, OSError) and error.errno and error.strerror:
            return error.strerror
        error = error.__cause__ or error.__context__
    return ""


def reason_of(error: object) -> str:
    """An exception in one line, with its cause."""
    texts = [str(error).strip() or type(error).__name__]
    cause = getattr(error, "__cause__", None)
    if cause is not None:
        texts.append(str(cause).strip() or type(cause).__name__)
    return ": ".join(text.splitlines()[0] for text in texts)
