"""What the guest prints: kept in a log of bounded size, split into lines, searched for reports."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import IO

#: The log's largest size in bytes. A boot with every message on is some 200 KiB.
MAX_LOG_BYTES = 8 << 20

#: Characters of a line that are looked at; what is longer counts as several lines.
MAX_LINE = 4096

#: Reports that are kept; a guest with more of them has failed all the same.
MAX_REPORTS = 50

#: Last lines that are kept to be shown.
TAIL_LINES = 40


class ReportKind(StrEnum):
    """What the kernel says when something is wrong with it."""

    PANIC = "panic"
    OOPS = "oops"
    BUG = "BUG"
    WARNING = "WARNING"
    CFI = "CFI failure"
    HYP = "HYP panic"


@dataclass(frozen=True)
class Report:
    """One such line of the console, ``at`` seconds after the guest's start."""

    kind: ReportKind
    line: str
    at: float


#: Printk's time stamp and caller, as in "[    1.234567][    T1] ".
_PREFIX = r"(?:\[[^\]]{0,40}\]\s*)*"

#: Message starts, from Linux 6.1 and 6.12. The first kind that matches is the line's.
_SIGNS: dict[ReportKind, str] = {
    # kernel/panic.c; arch/x86/mm/extable.c and arch/x86/kernel/traps.c; arch/x86/boot/compressed/error.c.
    ReportKind.PANIC: r"Kernel panic - not syncing|PANIC: (?:early exception|double fault)"
    r"|.* -- System halted",
    # arch/arm64/kvm/handle_exit.c, nvhe_hyp_panic_handler.
    ReportKind.HYP: r"kvm \[\d+\]: (?:nVHE hyp (?:panic|BUG|CFI failure) at|Invalid host exception to nVHE hyp)",
    # kernel/cfi.c.
    ReportKind.CFI: r"CFI failure (?:at|\()",
    # arch/x86/kernel/dumpstack.c (6.1 has the bare "invalid opcode: 0000 [#1]"); arch/arm64/kernel/traps.c;
    # arch/arm64/mm/fault.c.
    ReportKind.OOPS: r"Oops: |.{1,80}: [0-9a-f]{4} \[#\d+\]|Internal error: |Unable to handle kernel "
    r"|Unexpected kernel |Unhandled .{1,60} exception ",
    # lib/bug.c; arch/x86/mm/fault.c, kernel/sched/core.c, mm/kasan/report.c; kernel/watchdog.c puts its
    # name before it.
    ReportKind.BUG: r"kernel BUG at |(?:\w+: )?BUG: ",
    # kernel/panic.c, __warn ("CPU: ...", and "FILE:LINE at ..." since 6.17); kernel/locking/lockdep.c.
    ReportKind.WARNING: r"WARNING: (?:CPU: \d|\S+ at |possible |inconsistent |suspicious |bad |held lock "
    r"|lock held |chain_key |Nested lock |.*-safe -> |.* still has locks held)",
}
_REPORT = re.compile(
    _PREFIX + "(?:" + "|".join(f"(?P<{kind.name}>{sign})" for kind, sign in _SIGNS.items()) + ")"
)

#: Terminal control sequences (ECMA-48) and other control characters: not for the user's terminal.
_CONTROL = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def find_report(line: str) -> ReportKind | None:
    """Which report a console line begins, if any."""
    found = _REPORT.match(line)
    return ReportKind[found.lastgroup] if found and found.lastgroup else None


class LineReader:
    """Bytes in, lines of printable text out; an endless line comes out in pieces of :data:`MAX_LINE`."""

    def __init__(self, take: Callable[[str], None]) -> None:
        self._take = take
        self._pending = b""

    def feed(self, data: bytes) -> None:
        """Take the next bytes."""
        *lines, pending = (self._pending + data).split(b"\n")
        for line in lines:
            self._pieces(line)
        while len(pending) > MAX_LINE:
            self._pieces(pending[:MAX_LINE])
            pending = pending[MAX_LINE:]
        self._pending = pending

    def close(self) -> None:
        """Take what is left as the last line."""
        if self._pending:
            self._pieces(self._pending)
        self._pending = b""

    def _pieces(self, line: bytes) -> None:
        for start in range(0, max(1, len(line)), MAX_LINE):
            self._take(_CONTROL.sub("", line[start : start + MAX_LINE].decode("utf-8", "replace")))


class Console:
    """The guest's console.

    :param log: an unbuffered file; gets the bytes as they are, up to ``limit``.
    :param clock: seconds since the guest's start.
    """

    def __init__(self, log: IO[bytes], clock: Callable[[], float], limit: int = MAX_LOG_BYTES) -> None:
        self._log = log
        self._clock = clock
        self._limit = limit
        self._reader = LineReader(self._line)
        self.bytes = 0
        self.reports: list[Report] = []
        self.tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._lines: list[str] = []
        #: Whether the kernel said that it is at its end; nothing but more of its message will come.
        self.panicked = False

    @property
    def full(self) -> bool:
        """Whether the guest has printed more than the log may hold."""
        return self.bytes > self._limit

    @property
    def text(self) -> str:
        """All lines so far; as much as the log holds."""
        return "\n".join(self._lines)

    def feed(self, data: bytes) -> None:
        """Take bytes from the guest.

        :raises OSError: when the log cannot be written.
        """
        room = self._limit - self.bytes
        self.bytes += len(data)
        if room > 0:
            kept = data[:room]
            self._reader.feed(kept)
            while kept:
                kept = kept[self._log.write(kept) :]

    def close(self) -> None:
        """Nothing more will come: look at the last line too."""
        self._reader.close()

    def _line(self, line: str) -> None:
        text = line.rstrip()
        self._lines.append(text)
        if text:
            self.tail.append(text)
        kind = find_report(text)
        if kind is None:
            return
        self.panicked |= kind is ReportKind.PANIC
        if len(self.reports) < MAX_REPORTS:
            self.reports.append(Report(kind, text, self._clock()))
