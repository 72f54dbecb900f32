"""One QEMU, watched from its start to its end: its wires, its deadlines, and why it ended."""

from __future__ import annotations

import fcntl
import os
import selectors
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum

from klto import process
from klto.boot.console import Console, LineReader
from klto.boot.proofs import Transcript
from klto.boot.qmp import Qmp

#: Seconds until QEMU must have started the guest's CPUs. It takes a tenth on an idle machine.
START_SECONDS = 30.0

#: Seconds that a guest may take to end after its last record, or after a panic.
END_SECONDS = 5.0

#: Seconds that QEMU may take to answer a question.
ANSWER_SECONDS = 2.0

#: Bytes that a verdict channel may carry. Most of init's records are a few KiB, a configuration some 100, thousands of
#: initcalls or kernel modules a few hundred.
MAX_VERDICT_BYTES = 4 << 20


#: Of a pipe for what the guest prints: all that a boot with every initcall traced prints on one channel.
PIPE_BYTES = 1 << 20


class Ending(StrEnum):
    """Why a boot ended, in words that follow "the guest"."""

    DONE = "ended after its verdict"
    STAYED = "did not end after its verdict"
    RESTARTED = "restarted without a verdict"
    POWERED_OFF = "powered off without a verdict"
    PANICKED = "panicked"
    DEADLINE = "gave no verdict"
    FLOOD = "printed too much"
    QEMU_DIED = "was lost: QEMU died"
    QEMU_HUNG = "was lost: QEMU does not answer"
    QEMU_STOPPED = "was lost: QEMU stopped it with an internal error"

    @property
    def lost(self) -> bool:
        """Whether the harness failed, and not the guest."""
        return self in (Ending.QEMU_DIED, Ending.QEMU_HUNG, Ending.QEMU_STOPPED)


@dataclass(frozen=True)
class QemuLife:
    """How QEMU's life went.

    ``where``: the first CPU's program counter at a deadline. ``heard``: whether the guest said anything at
    all. ``returncode``: QEMU's, None when it had to be stopped. ``seconds``: from the guest's start
    to the end.
    """

    ending: Ending
    seconds: float
    where: str
    heard: bool
    returncode: int | None
    qemu_lines: tuple[str, ...]


class Wires:
    """The pipes between klto and one QEMU, and a socket for its monitor: descriptors. klto has ``near``; QEMU inherits
    ``far``.

    What the guest prints goes through pipes of :data:`PIPE_BYTES`, or what the system allows. A socket takes QEMU's
    writes of one byte as messages of hundreds: it is full after a few lines that klto, on a busy machine, does not read
    at once. QEMU then makes the UART's transmitter wait, and after 10 ms the kernel's console drops a byte
    (8250_port.c, wait_for_lsr); the virtio console drops the whole write (hw/char/virtio-console.c of QEMU 7.2).
    """

    NAMES = ("console", "uart", "virtio", "qmp", "output")

    def __init__(self) -> None:
        self.near: dict[str, int] = {}
        self.far: dict[str, int] = {}
        try:
            for name in self.NAMES:
                if name == "qmp":
                    self.near[name], self.far[name] = (end.detach() for end in socket.socketpair())
                else:
                    self.near[name], self.far[name] = os.pipe()
                    _widen(self.far[name])
                os.set_blocking(self.near[name], False)
        except OSError:
            self.close()
            raise

    def hand_over(self) -> None:
        """Close our copies of QEMU's ends, so that its death is an end of file here."""
        while self.far:
            os.close(self.far.popitem()[1])

    def close(self) -> None:
        """Close everything."""
        self.hand_over()
        while self.near:
            os.close(self.near.popitem()[1])


def _widen(pipe: int) -> None:
    for size in (PIPE_BYTES, PIPE_BYTES >> 2):
        with suppress(OSError):  # More than /proc/sys/fs/pipe-max-size, or than this user may have.
            fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, size)
            return


@contextmanager
def wires() -> Iterator[Wires]:
    """Wires for the length of the ``with`` block."""
    made = Wires()
    try:
        yield made
    finally:
        made.close()


class Stopwatch:
    """Seconds since :meth:`start`; 0 before."""

    def __init__(self) -> None:
        self._begun: float | None = None

    def start(self) -> None:
        """Begin to count, once."""
        if self._begun is None:
            self._begun = time.monotonic()

    def __call__(self) -> float:
        return 0.0 if self._begun is None else time.monotonic() - self._begun


class Session:
    """Reads all wires of a QEMU that runs until it ends, or has to be ended.

    :param timeout: seconds that the guest may take for everything.
    """

    def __init__(
        self, ends: Wires, console: Console, transcript: Transcript, watch: Stopwatch, timeout: float
    ) -> None:
        self._ends = ends
        self._console = console
        self._transcript = transcript
        self._watch = watch
        self._timeout = timeout
        self._verdict_bytes = 0
        self._qemu_lines: list[str] = []
        self._qmp = Qmp(self._send)
        self._grace: float | None = None
        # The nonce on the console counts as well: init falls back to it.
        self._console_records = LineReader(self._record)
        self._output = LineReader(self._qemu_line)
        self._sinks: dict[str, Callable[[bytes], None]] = {
            "console": self._from_console,
            "uart": self._verdict_sink(),
            "virtio": self._verdict_sink(),
            "qmp": self._qmp.feed,
            "output": self._output.feed,
        }

    @property
    def qemu_version(self) -> str:
        """QEMU's version; empty when it never said it."""
        return self._qmp.version

    def follow(self, child: process.Child) -> QemuLife:
        """Watch until QEMU has ended or must be stopped, which is left to the caller."""
        started = time.monotonic()
        with selectors.DefaultSelector() as selector:
            for name, end in self._ends.near.items():
                selector.register(end, selectors.EVENT_READ, name)
            ending = self._until_end(child, selector, started)
            if ending is Ending.DEADLINE:
                ending = self._interrogate(selector)
        self._console.close()
        self._output.close()
        return QemuLife(
            ending,
            self._watch(),
            self._qmp.where,
            self._console.bytes > 0 or self._verdict_bytes > 0,
            child.returncode,
            tuple(self._qemu_lines[-10:]),
        )

    def _until_end(self, child: process.Child, selector: selectors.BaseSelector, started: float) -> Ending:
        while selector.get_map():
            # Now and then the child itself is looked at: a wire may be held open by another process.
            heard = self._read(selector, min(0.5, max(0.0, self._left(started))))
            if self._flooded:
                return Ending.FLOOD
            if self._qmp.running:
                self._watch.start()
            if self._grace is None and (self._transcript.done or self._console.panicked):
                self._grace = time.monotonic() + END_SECONDS
            if self._left(started) <= 0:
                self._drain(selector)
                return self._expired()
            if self._qmp.stopped:
                return Ending.QEMU_STOPPED
            if not heard and not child.alive():
                break
        self._drain(selector)
        return self._ended(child)

    @property
    def _flooded(self) -> bool:
        return self._console.full or self._verdict_bytes > MAX_VERDICT_BYTES

    def _drain(self, selector: selectors.BaseSelector) -> None:
        """Read what has come since the last look; a guest that prints for ever ends it too."""
        while not self._flooded and self._read(selector, 0):
            pass

    def _left(self, started: float) -> float:
        """Seconds until the next deadline."""
        now = time.monotonic()
        if not self._qmp.running:
            return started + min(START_SECONDS, self._timeout) - now
        left = self._timeout - self._watch()
        return left if self._grace is None else min(left, self._grace - now)

    def _expired(self) -> Ending:
        if not self._qmp.running:
            return Ending.QEMU_HUNG
        if self._transcript.done:
            return Ending.STAYED
        return Ending.PANICKED if self._console.panicked else Ending.DEADLINE

    def _ended(self, child: process.Child) -> Ending:
        """QEMU has closed its wires: what its monitor and its status say about why."""
        try:
            child.wait(timeout=END_SECONDS)
        except process.CommandTimeout:
            return Ending.QEMU_HUNG
        if self._transcript.done:
            return Ending.DONE
        if self._console.panicked:
            return Ending.PANICKED
        reason = self._qmp.shutdown_reason
        if reason == "guest-reset":
            return Ending.RESTARTED
        return Ending.POWERED_OFF if reason.startswith("guest-") else Ending.QEMU_DIED

    def _interrogate(self, selector: selectors.BaseSelector) -> Ending:
        """At the deadline: ask where the guest is. A QEMU that cannot say so has itself hung."""
        self._qmp.ask_where()
        until = time.monotonic() + ANSWER_SECONDS
        while not self._qmp.where and selector.get_map() and (left := until - time.monotonic()) > 0:
            self._read(selector, left)
        return Ending.DEADLINE if self._qmp.where else Ending.QEMU_HUNG

    def _read(self, selector: selectors.BaseSelector, seconds: float) -> bool:
        """Read whatever is there, waiting for it up to ``seconds``; whether there was something."""
        ready = [key.data for key, _ in selector.select(seconds)]
        # A record comes behind what the kernel printed before it: that is in the console's pipe by then.
        verdicts = [(name, self._take(selector, name)) for name in ready if name in ("uart", "virtio")]
        while not self._console.full and (data := self._take(selector, "console")):
            self._from_console(data)
        for name, data in verdicts:
            self._sinks[name](data)
        for name in ready:
            if name in ("qmp", "output"):
                self._sinks[name](self._take(selector, name))
        return bool(ready)

    def _take(self, selector: selectors.BaseSelector, name: str) -> bytes:
        """What a wire has; nothing, too, at its end, where it is looked at no more."""
        end = self._ends.near[name]
        if end not in selector.get_map():
            return b""
        try:
            data = os.read(end, 1 << 16)
        except (BlockingIOError, InterruptedError):
            return b""
        except ConnectionResetError:
            data = b""
        if not data:
            selector.unregister(end)
        return data

    def _send(self, data: bytes) -> None:
        """To QEMU's monitor. A QEMU that is gone or does not read is found out by the deadlines."""
        try:
            os.write(self._ends.near["qmp"], data)
        except OSError:
            return

    def _from_console(self, data: bytes) -> None:
        self._console.feed(data)
        self._console_records.feed(data)

    def _verdict_sink(self) -> Callable[[bytes], None]:
        reader = LineReader(self._record)

        def take(data: bytes) -> None:
            self._verdict_bytes += len(data)
            reader.feed(data)

        return take

    def _record(self, line: str) -> None:
        self._transcript.take(line, self._watch())

    def _qemu_line(self, line: str) -> None:
        if line.strip():
            self._qemu_lines = [*self._qemu_lines[-50:], line.rstrip()]
