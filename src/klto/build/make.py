"""Runs make and follows it: its lines, the LTO links' events, memory, and the stages of a build."""

from __future__ import annotations

import os
import select
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from klto import procfs
from klto.events import (
    Journal,
    LinkBlamed,
    LinkFinished,
    LinkStarted,
    Observer,
    StageFinished,
    StageStarted,
    Step,
    Tick,
)
from klto.kernel.kbuild import parse_step
from klto.link.store import ENTRY_PREFIX
from klto.process import Child, Usage, started

#: Seconds between looks at the journal and the processes' memory.
_TICK = 0.25

#: Seconds that output may still come after make has ended.
_LINGER = 2.0

#: The output whose LTO link is the build's own stage ``link``.
VMLINUX_O = "vmlinux.o"

#: Bytes without a line end that are taken for a line.
_LONGEST_LINE = 1 << 20

#: Lines kept for explaining a failure. The log on disk has all of them.
_KEPT_LINES = 20_000


@dataclass
class _Stage:
    """A stage as it runs."""

    name: str
    begun: float
    cpu_before: float
    peak: int = 0
    peak_process: str | None = None

    def saw(self, process: procfs.Resident) -> None:
        if process.peak > self.peak:
            self.peak, self.peak_process = process.peak, process.name


@dataclass(frozen=True)
class MakeResult:
    """How make ended. ``lines``: the last lines of its output, without line ends."""

    returncode: int
    usage: Usage
    lines: list[str]
    links: list[tuple[LinkStarted, LinkFinished | None]]
    compiled: int
    blamed: list[LinkBlamed]


@dataclass
class MakeRun:
    """One run of make with its observers. Use :meth:`run`."""

    argv: list[str]
    environment: dict[str, str]
    pass_fds: tuple[int, ...]
    log: Path
    journal: Journal
    emit: Observer
    _stage: _Stage | None = None
    _lines: list[str] = field(default_factory=list)
    _links: dict[str, tuple[LinkStarted, LinkFinished | None]] = field(default_factory=dict)
    _finished_links: list[tuple[LinkStarted, LinkFinished | None]] = field(default_factory=list)
    _compiled: int = 0
    _blamed: list[LinkBlamed] = field(default_factory=list)
    _next_sample: float = 0.0

    def run(self) -> MakeResult:
        """Run make to its end.

        :raises KeyboardInterrupt: on Ctrl-C or TERM; every process of the build has ended then.
        """
        with ExitStack() as stack:
            log = stack.enter_context(self.log.open("wb"))
            child = stack.enter_context(
                started(
                    self.argv,
                    env=self.environment,
                    pass_fds=self.pass_fds,
                    stdout=subprocess.PIPE,
                    guarded=True,
                )
            )
            self._begin("compile", child)
            status = "interrupted"
            try:
                for line in _lines_of(child, log, lambda: self._tick(child)):
                    self._line(line)
                usage = child.wait()
                self._tick(child)
                status = "done" if child.returncode == 0 else "failed"
            finally:
                self._end(status, None if status == "interrupted" else child)
            assert child.returncode is not None
            links = [*self._finished_links, *self._links.values()]
            return MakeResult(child.returncode, usage, self._lines, links, self._compiled, self._blamed)

    def _line(self, line: str) -> None:
        self._lines.append(line)
        if len(self._lines) > 2 * _KEPT_LINES:
            del self._lines[:_KEPT_LINES]
        step = parse_step(line)
        if step is not None:
            self._compiled += step.is_object
            self.emit(Step(verb=step.verb, target=step.target))

    def _tick(self, child: Child) -> None:
        for event in self.journal.links():
            self._link(event, child)
        now = time.monotonic()
        if now < self._next_sample or self._stage is None:
            return
        self._next_sample = now + _TICK
        largest = None
        for pid in procfs.descendants(child.pid):
            process = procfs.resident(pid)
            if process is not None:
                self._stage.saw(process)
                if largest is None or process.now > largest.now:
                    largest = process
        link = self._links.get(VMLINUX_O)
        linker = procfs.resident(link[0].pid) if link else None
        self.emit(
            Tick(
                process=largest.name if largest else None,
                resident_bytes=largest.now if largest else 0,
                link_bytes=linker.now if linker else None,
                link_generated=_generated(link[0].view) if link else None,
            )
        )

    def _link(self, event: LinkStarted | LinkFinished | LinkBlamed, child: Child) -> None:
        if isinstance(event, LinkBlamed):
            self._blamed.append(event)
            self.emit(event)
            return
        is_vmlinux = os.path.basename(event.output) == VMLINUX_O
        if isinstance(event, LinkStarted):
            if is_vmlinux and self._stage is not None and self._stage.name == "compile":
                self._end("done", child, without=event.pid)
                self._begin("link", child, without=event.pid)
            self.emit(event)
            self._links[event.output] = (event, None)
            return
        self.emit(event)
        if event.again:
            return
        begun = self._links.pop(event.output, None)
        if begun is not None:
            self._finished_links.append((begun[0], event))
        if is_vmlinux and self._stage is not None and self._stage.name == "link":
            self._end("done" if event.returncode == 0 else "failed", child, link=event)
            self._begin("finish", child)

    def _begin(self, name: str, child: Child, without: int | None = None) -> None:
        self._stage = _Stage(name, time.monotonic(), _cpu(child, without))
        self.emit(StageStarted(stage=name))

    def _end(
        self,
        status: str,
        child: Child | None,
        *,
        without: int | None = None,
        link: LinkFinished | None = None,
    ) -> None:
        stage, self._stage = self._stage, None
        if stage is None:
            return
        wall, peak, process = time.monotonic() - stage.begun, stage.peak, stage.peak_process
        cpu = _cpu(child, without) - stage.cpu_before if child is not None else None
        if link is not None:
            wall, cpu = link.wall_seconds, link.cpu_seconds
            peak, process = link.peak_bytes, "klto" if link.whole else "ld.lld"
        self.emit(
            StageFinished(
                stage=stage.name,
                status=status,
                wall_seconds=wall,
                cpu_seconds=cpu,
                peak_bytes=peak or None,
                peak_process=process,
            )
        )


def _generated(view: str | None) -> int | None:
    """How many new entries of the link cache a link has made so far."""
    if view is None:
        return None
    try:
        return sum(item.name.startswith(ENTRY_PREFIX) and not item.is_symlink() for item in os.scandir(view))
    except OSError:
        return None  # The link has just ended and its view with it.


def _cpu(child: Child, without: int | None = None) -> float:
    """CPU seconds of the build so far, leaving out the process ``without`` and its descendants."""
    if child.usage is not None:
        return child.usage.cpu_seconds
    pids = procfs.descendants(child.pid)
    if without is not None:
        left_out = set(procfs.descendants(without))
        pids = [pid for pid in pids if pid not in left_out]
    return procfs.cpu_seconds(pids)


def _lines_of(child: Child, log: IO[bytes], idle: Callable[[], None]) -> Iterator[str]:
    """make's output line by line, each written to ``log``; ``idle`` is called at least every :data:`_TICK`."""
    assert child.stdout is not None
    descriptor = child.stdout.fileno()
    poll = select.poll()
    poll.register(descriptor, select.POLLIN | select.POLLHUP)
    torn = b""
    ended: float | None = None
    while True:
        idle()
        if not poll.poll(_TICK * 1000):
            # make may be gone while something that it started keeps the pipe open.
            ended = ended or (None if child.alive() else time.monotonic())
            if ended is not None and time.monotonic() - ended > _LINGER:
                break
            continue
        data = os.read(descriptor, 1 << 16)
        if not data:
            break
        log.write(data)
        log.flush()
        *whole, torn = (torn + data).split(b"\n")
        for line in whole:
            yield line.decode("utf-8", "replace").rstrip("\r")
        if len(torn) > _LONGEST_LINE:
            yield torn.decode("utf-8", "replace")
            torn = b""
    if torn:
        yield torn.decode("utf-8", "replace")
