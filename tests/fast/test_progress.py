"""The progress display, with a clock of the test's own."""

from __future__ import annotations

import io
import os
import pty

import pytest

from klto.events import Expected, LinkStarted, Note, RunFinished, StageFinished, StageStarted, Step, Tick
from klto.report import progress
from klto.report.progress import LiveProgress, PlainProgress, State
from klto.units import duration, size


class Clock:
    """Stands for time.monotonic."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(progress.time, "monotonic", found)
    return found


def test_estimate_comes_from_the_objects_so_far(clock: Clock) -> None:
    state = State()
    state(StageStarted(stage="compile"))
    state(Expected(objects=100, source="make"))
    for number in range(25):
        state(Step(verb="CC", target=f"x{number}.o"))
        clock.now += 2
    assert state.remaining() == pytest.approx(150)
    assert "25 of about 100 objects" in state.line()
    assert "2:30 left" in state.line()


def test_no_estimate_from_too_little(clock: Clock) -> None:
    state = State()
    state(StageStarted(stage="compile"))
    state(Expected(objects=100, source="make"))
    state(Step(verb="CC", target="x.o"))
    clock.now += 5
    assert state.remaining() is None
    assert "left" not in state.line()


def test_more_objects_than_expected_is_no_zero_estimate(clock: Clock) -> None:
    state = State()
    state(StageStarted(stage="compile"))
    state(Expected(objects=20, source="make"))
    for number in range(30):
        state(Step(verb="CC", target=f"x{number}.o"))
        clock.now += 1
    assert state.remaining() is None


def test_link_shows_modules_memory_and_what_the_last_one_took(clock: Clock) -> None:
    state = State(link_seconds=30)
    state(StageStarted(stage="link"))
    state(
        LinkStarted(
            output="vmlinux.o",
            directory="/",
            pid=1,
            jobs=2,
            bitcode_inputs=924,
            native_inputs=25,
            bitcode_bytes=1,
            memory_available=1,
        )
    )
    state(Tick(process="ld.lld", resident_bytes=5, link_bytes=200 << 20))
    clock.now += 10
    line = state.line()
    assert "vmlinux.o: 924 bitcode modules, 2 at once" in line
    assert "200 MiB (ld.lld)" in line
    assert "0:20 left" in line


def test_plain_lines_come_at_the_end_of_stages_and_now_and_then(clock: Clock) -> None:
    stream = io.StringIO()
    show = PlainProgress(stream, State())
    show(StageStarted(stage="compile"))
    show(Tick())
    assert stream.getvalue() == ""
    clock.now += 20
    show(Tick())
    show(Tick())
    assert stream.getvalue().count("\n") == 1
    show(Note(text="careful", level="warning"))
    show(
        StageFinished(
            stage="compile", status="done", wall_seconds=20.0, peak_bytes=3 << 20, peak_process="clang"
        )
    )
    assert stream.getvalue().splitlines()[1:] == [
        "warning: careful",
        "compile    done       0:20  peak 3.0 MiB (clang)",
    ]


def test_terminal_gets_a_block_and_its_cursor_back() -> None:
    leader, follower = pty.openpty()
    with open(follower, "w", encoding="utf-8") as stream:
        show = LiveProgress(stream, State())
        show(StageStarted(stage="compile"))
        show(Step(verb="CC", target="init/[main].o"))
        show(StageFinished(stage="compile", status="done", wall_seconds=1.0))
        show(RunFinished(status="done", exit_status=0))
        show.close()
    text = _all_of(leader)
    os.close(leader)
    assert "compile    done" in text
    assert text.rstrip().endswith("\x1b[?25h") or "\x1b[?25h" in text[text.rindex("\x1b[?25l") :]


def _all_of(descriptor: int) -> str:
    """What a terminal's other side wrote before it was closed."""
    parts = []
    while True:
        try:
            parts.append(os.read(descriptor, 65536))
        except OSError:  # EIO: closed, and all is read.
            return b"".join(parts).decode()


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (504 << 20, "504 MiB"), (5 << 40, "5.0 TiB")],
)
def test_size(count: int, text: str) -> None:
    assert size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.04, "0.0 s"), (9.94, "9.9 s"), (61, "1:01"), (3723, "1:02:03")]
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text
