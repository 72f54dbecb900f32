"""Decoded panics, for people and for machines."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from klto.boot.decode import Decoded, DecodedReport, Frame
from klto.boot.decode_tools import Location

#: How a line begins, by what the address is for.
_SIGNS = {"pc": "=>", "return": "  ", "maybe": " ?", "target": "->", "fault": "@ "}


def decoded_text(decoded: Decoded, *, quiet_frames: bool = False) -> str:
    """All reports as text, with a line end.

    :param quiet_frames: leave out what was only found on the stack, where there is a better call trace.
    """
    lines: list[str] = []
    for report in decoded.reports:
        lines += [*_report(report, f"{decoded.source}/", quiet_frames=quiet_frames), ""]
    if not decoded.reports:
        lines.append("no panic, oops, BUG, WARNING or CFI failure in this log")
    lines += [f"note: {note}" for note in decoded.notes]
    return "\n".join(lines).rstrip() + "\n"


def _report(report: DecodedReport, source: str, *, quiet_frames: bool) -> Iterator[str]:
    yield f"line {report.number}: {report.title}"
    traced = any(frame.role == "return" for frame in report.frames)
    for frame in report.frames:
        if not (quiet_frames and traced and frame.role == "maybe"):
            yield from _frame(frame, source)


def _frame(frame: Frame, source: str) -> Iterator[str]:
    sign = _SIGNS[frame.role]
    place = f"{frame.function}+{frame.offset:#x}" if frame.function else frame.line.strip()
    module = f" [{frame.module}]" if frame.module else ""
    address = f"  {frame.address:#x}" if frame.address is not None else ""
    what = f"  {frame.what}" if frame.what and not frame.what.startswith("text") else ""
    yield f" {sign} {place}{module}{address if not frame.module else ''}{what}"
    inlined, holder = frame.locations[:-1], frame.locations[-1:]
    for location in inlined:
        yield f"      {_line(location, source)}  {location.function}, inlined"
    for location in holder:
        yield f"      {_line(location, source)}  {location.function}"
    if frame.instruction:
        yield f"      {frame.instruction}"
    for note in frame.notes:
        yield f"      ({note})"


def _line(location: Location, source: str) -> str:
    """``kernel/fork.c:12``: relative to the source tree, as everything in a kernel's messages is."""
    file = location.file.removeprefix(source).removeprefix("./")
    return f"{file}:{location.line}" if location.line else (file or "no line")


def decoded_json(decoded: Decoded, log: str) -> dict[str, Any]:
    """The same as ``klto/decode/1``."""
    return {
        "schema": "klto/decode/1",
        "log": log,
        "vmlinux": str(decoded.vmlinux),
        "notes": list(decoded.notes),
        "reports": [
            {
                "kind": report.kind,
                "title": report.title,
                "line": report.number,
                "frames": [_frame_json(frame) for frame in report.frames],
            }
            for report in decoded.reports
        ],
    }


def _frame_json(frame: Frame) -> dict[str, Any]:
    return {
        "role": frame.role,
        "text": frame.line,
        "module": frame.module,
        "address": None if frame.address is None else f"{frame.address:#x}",
        "function": frame.function,
        "offset": frame.offset,
        "what": frame.what,
        "locations": [{"function": at.function, "file": at.file, "line": at.line} for at in frame.locations],
        "instruction": frame.instruction,
        "notes": list(frame.notes),
    }
