"""A log as windows of bytes that can be searched: any size, any bytes, in bounded memory.

Escape sequences are gone, carriage returns that redraw a line (progress displays) divide it; a line keeps the
number that an editor would give it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

#: Bytes read at once.
CHUNK = 1 << 20
#: Bytes of a window before and after the part that is searched: context of a hit, and room for a whole literal.
CONTEXT = 1 << 13
#: Bytes of a line kept before and after a hit. Lines are short, except linker command lines and binary rubbish.
CLIP_BEFORE, CLIP_AFTER = 600, 1000

#: Stands for a carriage return that redraws its line.
REDRAWN = b"\x0b"
#: Zeros after a window's bytes, so that eight can be read at any of its positions.
PADDING = bytes(8)

#: ECMA-48: control sequences (5.4), and strings such as a terminal's title (5.6), bounded.
_ESCAPES = re.compile(rb"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b\n]{0,200}(?:\x07|\x1b\\)|[ -/]?[0-Z\\^-~])")
_LONGEST_ESCAPE = 256
#: Escape sequences in a chunk from which on they are looked at in arrays: the pattern takes 0.3 us for each.
_MANY_ESCAPES = 2048
#: Bytes between ``ESC [`` and the last one that are looked for in arrays; colours have up to 8, of 256 colours 11.
_PARAMETERS = 16
#: Bytes that hardly a log has.
_MARKS = b"\x7f\x00\x01"
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\x80-\x9f\ufffe\uffff]+")
#: GCC and coreutils quote with these in a UTF-8 locale.
_QUOTES = str.maketrans({"‘": "'", "’": "'", "“": '"', "”": '"', "`": "'", "\u00a0": " "})


class Readable(Protocol):
    """A binary stream."""

    def read(self, size: int, /) -> bytes:
        """Up to ``size`` bytes, none at its end."""
        ...


@dataclass(frozen=True)
class Window:
    """A piece of a log.

    :ivar data: the bytes, then :data:`PADDING`.
    :ivar begin: where the part begins that belongs to this window and no other; what is before it is context.
    :ivar end: where that part ends.
    :ivar size: bytes of ``data`` without the padding.
    :ivar line: number of the line at ``begin``.
    :ivar last_line: number of the line at ``end``.
    """

    data: bytes
    begin: int
    end: int
    size: int
    line: int
    last_line: int

    def line_bounds(self, at: int) -> tuple[int, int]:
        """Where the line around a position begins and ends, clipped when it is long."""
        low = max(0, at - CLIP_BEFORE)
        begin = max(self.data.rfind(b"\n", low, at), self.data.rfind(REDRAWN, low, at))
        high = min(self.size, at + CLIP_AFTER)
        ends = [end for mark in (b"\n", REDRAWN) if (end := self.data.find(mark, at, high)) >= 0]
        return (begin + 1 if begin >= 0 else low), min(ends, default=high)

    def text(self, begin: int, end: int) -> str:
        """A stretch as text: bad bytes replaced, control characters gone, plain quotes."""
        return clean_text(self.data[begin:end])

    def neighbours(self, begin: int, end: int, before: int, after: int) -> tuple[list[str], list[str]]:
        """Up to so many lines before and after the line ``begin:end``, as far as this window has them."""
        above: list[str] = []
        while len(above) < before and begin > 0:
            start, stop = self.line_bounds(begin - 1)
            above.append(self.text(start, stop))
            begin = start
        below: list[str] = []
        while len(below) < after and end < self.size - 1:
            start, stop = self.line_bounds(end + 1)
            below.append(self.text(start, stop))
            end = max(stop, end + 1)
        return above[::-1], below


def clean_text(data: bytes) -> str:
    """Bytes of a line as text to match and to show."""
    text = data.decode("utf-8", "replace").translate(_QUOTES)
    return _CONTROLS.sub(" ", text).rstrip() if not text.isprintable() else text.rstrip()


def without_controls(data: bytes) -> bytes:
    """Bytes without escape sequences, line ends made line feeds."""
    return _line_ends(_without_escapes(data))


def _without_escapes(data: bytes) -> bytes:
    if b"\x1b" in data:
        mark = next((byte for byte in _MARKS if byte not in data), None)
        if mark is not None and data.count(b"\x1b") > _MANY_ESCAPES:
            return _in_arrays(data, mark)
        data = _ESCAPES.sub(b"", data)
    return data


def _in_arrays(data: bytes, mark: int) -> bytes:
    """Without escape sequences: those that have parameters only (colours, erased lines) in arrays, others one by one.

    CR LF is LF afterwards where no other CR is.

    :param mark: a byte that is not in ``data``.
    """
    bytes_ = np.frombuffer(data + bytes(_PARAMETERS + 3), np.uint8).copy()
    escapes = np.flatnonzero(bytes_ == 0x1B)
    begins = escapes[bytes_[escapes + 1] == ord("[")]
    for length in range(3, _PARAMETERS + 3):
        last = bytes_[begins + (length - 1)]
        ended = begins[(last >= 0x40) & (last <= 0x7E)]
        for offset in range(length if len(ended) else 0):
            bytes_[ended + offset] = mark
        begins = begins[(last >= 0x30) & (last <= 0x3F)]
        if not len(begins):
            break
    # Whether a sequence begins at a place does not depend on others: none has an escape in it but at its end, and that
    # one alone is a sequence too.
    for at in escapes[bytes_[escapes] == 0x1B].tolist():
        found = _ESCAPES.match(data, at)
        if found:
            bytes_[at : found.end()] = mark
    returns = np.flatnonzero(bytes_ == 0x0D)
    if (bytes_[returns + 1] == 0x0A).all():
        bytes_[returns] = mark
    return bytes_[: len(data)].tobytes().translate(None, bytes((mark,)))


def _line_ends(data: bytes) -> bytes:
    if b"\r" in data:
        data = data.replace(b"\r\n", b"\n").replace(b"\r", REDRAWN)
    return data


def windows(stream: Readable) -> Iterator[Window]:
    """The log in windows, from beginning to end; the last one may be empty."""
    held, returned, before, pending, line = b"", b"", b"", b"", 1
    while True:
        raw = stream.read(CHUNK)
        fresh, held = _whole_escapes(held + raw) if raw else (held, b"")
        fresh = returned + _without_escapes(fresh)
        returned = b""
        if raw and fresh.endswith(b"\r"):  # Its line feed may be still to come.
            fresh, returned = fresh[:-1], b"\r"
        pending += _line_ends(fresh)
        if raw and len(pending) < 2 * CONTEXT:
            continue
        size = len(pending)
        limit = size - CONTEXT if raw else size
        cut = pending.rfind(b"\n", 0, limit) + 1 if raw else size
        cut = cut or limit
        data = before + pending + PADDING
        last = line + pending.count(b"\n", 0, cut)
        window = Window(data, len(before), len(before) + cut, len(before) + size, line, last)
        yield window
        line = last
        if not raw:
            return
        before = data[max(0, window.end - CONTEXT) : window.end]
        pending = pending[cut:]


def _whole_escapes(data: bytes) -> tuple[bytes, bytes]:
    """What can be cleaned now, and a torn escape sequence at the end that has to wait."""
    at = data.rfind(b"\x1b", max(0, len(data) - _LONGEST_ESCAPE))
    if at >= 0 and not _ESCAPES.match(data, at):
        return data[:at], data[at:]
    return data, b""


class LineStream:
    """Lines, text or bytes, with or without line ends, as a stream."""

    def __init__(self, lines: Iterable[str | bytes]) -> None:
        self._lines = iter(lines)

    def read(self, size: int, /) -> bytes:
        """At least ``size`` bytes, fewer at the end."""
        parts: list[bytes] = []
        got = 0
        for line in self._lines:
            data = line if isinstance(line, bytes) else line.encode("utf-8", "replace")
            if not data.endswith(b"\n"):
                data += b"\n"
            parts.append(data)
            got += len(data)
            if got >= size:
                break
        return b"".join(parts)
