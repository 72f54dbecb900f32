"""What happens in a run, as values. Whoever runs a step emits them; the journal, the record and the progress
display are observers.

msgspec gives typed values to and from JSON lines, and is faster than anything we would write for it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import msgspec


class _Event(msgspec.Struct, frozen=True, kw_only=True, tag_field="event"):
    #: Seconds since the epoch.
    time: float = msgspec.field(default_factory=time.time)


class RunStarted(_Event, frozen=True, tag="run-started"):
    """The first event of every run."""

    command: str
    argv: list[str]


class StageStarted(_Event, frozen=True, tag="stage-started"):
    """``configure``, ``compile``, ``link``, ``finish``, ``verify`` or ``boot`` begins."""

    stage: str


class StageFinished(_Event, frozen=True, tag="stage-finished"):
    """A stage has ended. ``peak_bytes``: the largest resident set of one process, None where not measured."""

    stage: str
    status: str
    wall_seconds: float
    cpu_seconds: float | None = None
    peak_bytes: int | None = None
    peak_process: str | None = None


class Step(_Event, frozen=True, tag="step"):
    """make began a command: ``verb`` as make prints it (CC, AS, LD, AR), ``target`` relative to the build dir."""

    verb: str
    target: str


class Expected(_Event, frozen=True, tag="expected"):
    """How many objects this build will compile, and where the number comes from (``last build``, ``make``)."""

    objects: int
    source: str


class ClusterUse(msgspec.Struct, frozen=True, kw_only=True):
    """What a link on a cluster used and met; the fields are explained in klto.cluster.use."""

    address: str = ""
    workers: int = 0
    modules: int = 0
    cached: int = 0
    remote: int = 0
    local: int = 0
    lost: int = 0
    again: int = 0
    refused: int = 0
    bytes_sent: int = 0
    bytes_sent_raw: int = 0
    bytes_received: int = 0
    bytes_received_raw: int = 0
    thin_link_seconds: float = 0.0
    prepare_seconds: float = 0.0
    backend_seconds: float = 0.0
    backend_cpu_seconds: float = 0.0
    final_link_seconds: float = 0.0
    client_cpu_seconds: float = 0.0
    helper_cpu_seconds: float = 0.0
    scheduler_cpu_seconds: float = 0.0
    faults: list[str] = []


class LinkStarted(_Event, frozen=True, tag="link-started"):
    """An LTO link began (written by klto.link.run)."""

    output: str
    directory: str
    pid: int
    jobs: int
    bitcode_inputs: int
    native_inputs: int
    bitcode_bytes: int
    memory_available: int
    #: The folder in which new entries of the link cache appear one by one; None without the cache.
    view: str | None = None
    #: From 1 on; later ones go on after a lack of memory.
    attempt: int = 1
    full: bool = False
    #: Bytes: what the user allows (None: no limit set) and what klto expects the linker to need.
    memory_budget: int | None = None
    memory_estimate: int | None = None


class LinkedModule(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one bitcode module in a link. Seconds of its backend and bytes of its native object are None
    where they were not measured: it came from the cache, or there is no cache."""

    name: str
    seconds: float | None
    bytes_in: int
    bytes_out: int | None
    cached: bool
    #: Seconds since the epoch at which its backend began; in a first link worked out (klto.link.tasks).
    start: float | None = None


class LinkFinished(_Event, frozen=True, tag="link-finished"):
    """An LTO link ended (written by klto.link.run). ``stopped_by``: the signal that klto passed on, if any."""

    output: str
    returncode: int
    wall_seconds: float
    cpu_seconds: float
    peak_bytes: int
    stopped_by: int | None = None
    #: Modules whose code was generated, the others came from the cache; None without the cache.
    generated: int | None = None
    #: The output of an equal link was taken as it was: no linker ran.
    whole: bool = False
    #: None: in process.
    cluster: ClusterUse | None = None
    #: Why klto ended it itself: memory, timeout, refused (by a check of its inputs), or empty.
    cause: str = ""
    #: Whether another attempt follows.
    again: bool = False
    modules: list[LinkedModule] = []


class GuiltyModule(msgspec.Struct, frozen=True, kw_only=True):
    """A module whose backend fails. ``reason``: error, crash, hang or memory; ``reproducer``: a script."""

    name: str
    source: str
    function: str | None = None
    reason: str
    message: str
    reproducer: str | None = None


class LinkBlamed(_Event, frozen=True, tag="link-blamed"):
    """The modules that made a link fail (written by klto.link.blame)."""

    output: str
    modules: list[GuiltyModule]


class Note(_Event, frozen=True, tag="note"):
    """Something the user should know; ``level``: note or warning."""

    text: str
    level: str = "note"


class Tick(_Event, frozen=True, tag="tick"):
    """Time passes. Never journaled. Memory in bytes of the largest process now, and its name."""

    process: str | None = None
    resident_bytes: int = 0
    link_bytes: int | None = None
    #: Modules that the vmlinux.o link has generated so far; None when it does not run or has no cache.
    link_generated: int | None = None


class RunFinished(_Event, frozen=True, tag="run-finished"):
    """The last event. ``status``: done, failed or interrupted."""

    status: str
    exit_status: int
    message: str | None = None


Event = (
    RunStarted
    | StageStarted
    | StageFinished
    | Step
    | Expected
    | LinkStarted
    | LinkFinished
    | LinkBlamed
    | Note
    | Tick
    | RunFinished
)
Observer = Callable[[Event], None]

_encoder = msgspec.json.Encoder()
_decoder: msgspec.json.Decoder[Event] = msgspec.json.Decoder(Event)


def decode_line(line: bytes) -> Event:
    """One line of a journal.

    :raises msgspec.DecodeError: when the line is not an event (torn by a kill, or of a later klto).
    """
    return _decoder.decode(line)


class Journal:
    """``events.jsonl``: appends klto's own events, and hands on those that links append to the same file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        self._reader: IO[bytes] = path.open("rb")
        self._torn = b""

    def write(self, event: Event) -> None:
        """Append one event."""
        os.write(self._fd, _encoder.encode(event) + b"\n")

    def links(self) -> Iterator[LinkStarted | LinkFinished | LinkBlamed]:
        """The link events that came since the last call."""
        lines = (self._torn + self._reader.read()).split(b"\n")
        self._torn = lines.pop()
        for line in lines:
            if b'"link-' in line[:24]:
                try:
                    event = decode_line(line)
                except msgspec.DecodeError:
                    continue  # Torn: the disk was full when it was written.
                if isinstance(event, LinkStarted | LinkFinished | LinkBlamed):
                    yield event

    def close(self) -> None:
        """Close the files."""
        os.close(self._fd)
        self._reader.close()


def read_journal(path: Path) -> list[Event]:
    """All whole events of a journal; a torn last line is left out.

    :raises OSError: when the file cannot be read.
    """
    events = []
    for line in path.read_bytes().split(b"\n"):
        if line:
            try:
                events.append(decode_line(line))
            except msgspec.DecodeError:
                continue
    return events
