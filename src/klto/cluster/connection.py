"""Reaching a Dask scheduler: mutual TLS, and errors that say who does not trust whom."""

from __future__ import annotations

import asyncio
import logging
import signal
import ssl
import threading
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from distributed import Client
from distributed.security import Security

from klto.cluster.address import certificates
from klto.errors import UsageError
from klto.process import ENDING_SIGNALS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
    from types import FrameType

    from klto.cluster.address import Address

    _Handler = Callable[[int, FrameType | None], object]

_T = TypeVar("_T")
#: Whether the running :func:`run_async` has had a signal.
_interrupted = False
#: Seconds to reach the scheduler; to take leave of it.
_CONNECT, _LEAVE = 10.0, 5.0


def run_async(main: Coroutine[Any, Any, _T]) -> _T:
    """``asyncio.run`` that a signal ends by cancelling ``main``, whenever it comes and however often.

    An exception raised by the signal itself would come out of the event loop's own frames, where nothing takes leave
    of the scheduler; and ``asyncio.run`` raises one at the second Ctrl-C (make's and the one that is passed on).

    :raises KeyboardInterrupt: when it was interrupted, and has taken leave.
    """
    global _interrupted
    _interrupted = False

    async def cancellable() -> _T:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None

        def on_signal(number: int, frame: FrameType | None) -> None:
            if _first_interrupt():
                loop.call_soon_threadsafe(task.cancel)

        with _handled_by(on_signal):
            return await main

    disabled = logging.root.manager.disable
    try:
        result = asyncio.run(cancellable())
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None
    finally:
        logging.disable(disabled)
    if _interrupted:
        raise KeyboardInterrupt
    return result


@contextmanager
def raising_interrupts() -> Iterator[None]:
    """Inside :func:`run_async`, around what does not return to the event loop for long.

    :raises KeyboardInterrupt: once, however many signals come.
    """

    def on_signal(number: int, frame: FrameType | None) -> None:
        if _first_interrupt():
            raise KeyboardInterrupt

    with _handled_by(on_signal):
        if _interrupted:
            raise KeyboardInterrupt  # It has come already; the event loop would hear of it much later.
        yield


def check_interrupted() -> None:
    """Inside :func:`run_async`, where it goes round: Python 3.11's ``asyncio.wait_for`` may lose a cancellation.

    :raises asyncio.CancelledError: when there was a signal.
    """
    if _interrupted:
        raise asyncio.CancelledError


def _first_interrupt() -> bool:
    global _interrupted
    first, _interrupted = not _interrupted, True
    # Dask logs what it did not expect to end, with tracebacks.
    logging.disable(logging.CRITICAL)
    return first


@contextmanager
def _handled_by(handler: _Handler) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield  # Signals are none of this thread's business.
        return
    before = {number: signal.getsignal(number) for number in ENDING_SIGNALS}
    for number, former in before.items():
        if former is not signal.SIG_IGN:  # nohup
            signal.signal(number, handler)
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)


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
    client = None
    try:
        client = Client(
            address.text, security=security, asynchronous=True, timeout=_CONNECT, set_as_default=False
        )
        await client
    except ValueError as error:
        # Tornado's, when something came before TLS could begin.
        if client is not None:
            await _close(client)
        if not address.tls:
            raise Unreachable(f"no scheduler at {address.text} ({reason_of(error)})") from error
        raise UsageError(
            f"{address.text} and this machine do not trust each other: that is not TLS",
            "is it a scheduler of plain TCP? klto cluster scheduler tls://HOST:PORT starts one with TLS",
        ) from error
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
        await asyncio.wait_for(client.close(), _LEAVE)
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
