"""Progress on stderr: one redrawn block on a terminal, plain lines elsewhere, nothing with ``-q``.

rich draws the block: it knows terminals, widths and resizes, and it is kept.
"""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING, TextIO

from klto.events import (
    Event,
    Expected,
    LinkFinished,
    LinkStarted,
    Note,
    RunFinished,
    StageFinished,
    StageStarted,
    Step,
    Tick,
)
from klto.kernel.kbuild import OBJECT_VERBS
from klto.units import duration, size

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.live import Live

#: Seconds between lines about a stage that goes on, where nothing can be redrawn.
_LINE_EVERY = 15.0


class State:
    """What the display shows, made from the events."""

    def __init__(self, link_seconds: float | None = None) -> None:
        self.begun = time.monotonic()
        self.stage = ""
        self.stage_begun = self.begun
        self.objects = 0
        self.first_object: float | None = None
        self.expected: int | None = None
        self.current = ""
        self.link: LinkStarted | None = None
        self.generated = 0
        self.memory = 0
        self.process = ""
        self.link_seconds = link_seconds

    def __call__(self, event: Event) -> None:
        """Take in one event."""
        now = time.monotonic()
        match event:
            case StageStarted():
                self.stage, self.stage_begun, self.current = event.stage, now, ""
            case Step():
                self.current = f"{event.verb} {event.target}"
                if event.verb in OBJECT_VERBS:
                    self.objects += 1
                    self.first_object = self.first_object or now
            case Expected():
                self.expected = event.objects
            case LinkStarted():
                self.link, self.generated = event, 0
            case LinkFinished():
                self.link = None
            case Tick():
                self.generated = event.link_generated or 0
                self.memory = event.resident_bytes if event.link_bytes is None else event.link_bytes
                self.process = event.process or ""

    def remaining(self) -> float | None:
        """Seconds that the stage will still take, None when there is nothing to estimate from."""
        now = time.monotonic()
        left = (self.expected or 0) - self.objects
        if self.stage == "compile" and left > 0 and self.first_object and self.objects >= 20:
            rate = self.objects / (now - self.first_object)
            return left / rate
        if self.stage == "link" and self.link_seconds:
            return max(0.0, self.link_seconds - (now - self.stage_begun))
        return None

    def line(self) -> str:
        """The state of the stage in one line."""
        elapsed = duration(time.monotonic() - self.begun)
        parts = [f"{self.stage:<9}", elapsed]
        if self.stage == "compile" and self.objects:
            parts.append(
                f"{self.objects} of about {self.expected} objects"
                if self.expected
                else f"{self.objects} objects"
            )
        if self.stage == "link" and self.link:
            link = self.link
            done = f", {self.generated} generated" if link.view else ""
            parts.append(f"{link.output}: {link.bitcode_inputs} bitcode modules{done}, {link.jobs} at once")
            if link.memory_estimate:
                parts.append(f"about {size(link.memory_estimate)} expected")
        if self.memory and self.stage in ("link", "finish"):
            parts.append(f"{size(self.memory)} ({'ld.lld' if self.stage == 'link' else self.process})")
        left = self.remaining()
        if left is not None:
            parts.append(f"{duration(left)} left in this stage")
        return "  ".join(parts)


def describe_stage(event: StageFinished) -> str:
    """A finished stage in one line."""
    parts = [f"{event.stage:<9}", f"{event.status:<6}", f"{duration(event.wall_seconds):>7}"]
    if event.peak_bytes:
        parts.append(f"peak {size(event.peak_bytes)} ({event.peak_process})")
    return "  ".join(parts)


class PlainProgress:
    """One line when a stage ends, and now and then between; for files, pipes and CI logs."""

    def __init__(self, stream: TextIO, state: State) -> None:
        self._stream, self._state = stream, state
        self._next = time.monotonic() + _LINE_EVERY

    def __call__(self, event: Event) -> None:
        """Take in one event."""
        self._state(event)
        if isinstance(event, StageFinished):
            self._print(describe_stage(event))
        elif isinstance(event, Note):
            self._print(f"{event.level}: {event.text}")
        elif isinstance(event, Tick) and time.monotonic() >= self._next:
            self._print(self._state.line())

    def _print(self, text: str) -> None:
        self._next = time.monotonic() + _LINE_EVERY
        try:
            print(text, file=self._stream, flush=True)
        except BrokenPipeError:
            self._stream = open(os.devnull, "w")  # Nobody reads any more; the build goes on.

    def close(self) -> None:
        """Nothing to restore."""


class LiveProgress:
    """A block of two lines at the bottom of a terminal; finished stages and notes scroll above it."""

    def __init__(self, stream: TextIO, state: State) -> None:
        from rich.console import Console
        from rich.live import Live

        self._state = state
        self._console: Console = Console(file=stream, highlight=False, soft_wrap=False)
        self._live: Live = Live(
            console=self._console, get_renderable=self._block, refresh_per_second=4, transient=True
        )
        self._live.start()

    def __call__(self, event: Event) -> None:
        """Take in one event."""
        self._state(event)
        if isinstance(event, StageFinished):
            self._console.print(describe_stage(event), markup=False)
        elif isinstance(event, Note):
            self._console.print(f"{event.level}: {event.text}", markup=False)
        elif isinstance(event, RunFinished):
            self.close()

    def _block(self) -> RenderableType:
        from rich.text import Text

        lines = [self._state.line(), f"          {self._state.current}"]
        return Text("\n".join(lines), no_wrap=True, overflow="ellipsis")

    def close(self) -> None:
        """Give the terminal back."""
        self._live.stop()


def progress_for(
    stream: TextIO = sys.stderr, link_seconds: float | None = None
) -> PlainProgress | LiveProgress:
    """The display that suits ``stream``."""
    state = State(link_seconds)
    return LiveProgress(stream, state) if stream.isatty() else PlainProgress(stream, state)
