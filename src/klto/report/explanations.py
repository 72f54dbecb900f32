"""Explanations for people and for programs (klto/explain/1)."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Sequence

TYPE_CHECKING = False
if TYPE_CHECKING:
    from klto.explain import Explanation, Explanations, LogLine, Remedy
    from klto.explain.knowledge import Entry

SCHEMA = "klto/explain/1"
_LABEL = 10
_LINE = 160


def as_json(found: Explanations) -> str:
    """One object: ``explanations`` best first, ``unexplained`` error lines, and what else is known of the log."""
    first = found.first_error
    whole = {
        "schema": SCHEMA,
        "stage": found.stage,
        "first_error": {"line": first.number, "text": first.text} if first else None,
        "failed_targets": list(found.failed_targets),
        "explanations": [_explanation(one) for one in found.explanations],
        "unexplained": [line.text for line in found.unexplained],
        "unexplained_context": [
            {"line": line.number, "text": line.text} for line in found.unexplained_context
        ],
        "advice": [_remedy(one) for one in found.advice],
        "noise": [
            {"count": n.count, "exact": n.exact, "line": n.line.number, "text": n.line.text}
            for n in found.noise
        ],
        "log_lines": found.log_lines,
    }
    return json.dumps(whole, indent=1) + "\n"


def _explanation(one: Explanation) -> dict[str, object]:
    return {
        "id": one.id,
        "title": one.title,
        "stage": one.stage,
        "confidence": one.confidence,
        "culprit": one.culprit,
        "culprits": list(one.culprits),
        "severity": one.severity,
        "lto": one.lto,
        "confirmed": one.confirmed,
        "count": one.count,
        "count_exact": one.count_exact,
        "lines": [line.text for line in one.lines],
        "line_numbers": [line.number for line in one.lines],
        "cause": one.cause,
        "why": one.why,
        "affects": one.affects,
        "found": list(one.found),
        "remedies": [_remedy(remedy) for remedy in one.remedies],
        "references": list(one.references),
    }


def _remedy(remedy: Remedy) -> dict[str, str | None]:
    return {"text": remedy.text, "command": remedy.command}


def as_text(found: Explanations, width: int = 100) -> str:
    """For a terminal ``width`` columns wide."""
    return "\n".join(_text(found, min(max(width, 60), 120))) + "\n"


def _text(found: Explanations, width: int) -> Iterator[str]:
    if found.stage is None and not found.explanations and not found.unexplained:
        yield f"no failure found in {found.log_lines:,} lines"
        yield from _noise(found, width)
        return
    if found.stage is not None and (found.first_error or found.failed_targets):
        targets = f" ({', '.join(found.failed_targets[:3])})" if found.failed_targets else ""
        yield from _labelled("failed at", f"{found.stage}{targets}", width)
    if found.first_error is not None:
        yield from _log_line("first", found.first_error)
    for number, one in enumerate(found.explanations, 1):
        if number > 1 or found.first_error is not None:
            yield ""
        yield from _one(number, one, width)
    if found.unexplained:
        yield ""
        yield from _unknown(found, width)
    yield from _noise(found, width)


def _one(number: int, one: Explanation, width: int) -> Iterator[str]:
    yield from _labelled(f"{number}", one.title, width)
    lto = "LTO brings it out" if one.lto else "not LTO's fault"
    sure = "" if one.confirmed else ", cause not confirmed"
    yield from _labelled(
        "", f"{one.id}, stage {one.stage}, {one.severity}; {one.confidence} confidence{sure}; {lto}", width
    )
    for line in one.lines:
        yield from _log_line("", line)
    if one.count > 1:
        least = "" if one.count_exact else "at least "
        others = [name for name in one.culprits if name != one.culprit]
        named = (
            f": {one.culprit}, {', '.join(others[:4])}{' ...' if len(others) > 4 else ''}" if others else ""
        )
        yield from _labelled("", f"{least}{one.count:,} such lines{named}", width)
    yield from _labelled("cause", one.cause, width)
    if one.why:
        yield from _labelled("why LTO" if one.lto else "and LTO", one.why, width)
    if one.affects:
        yield from _labelled("affects", one.affects, width)
    for sentence in one.found:
        yield from _labelled("here", sentence, width)
    yield from _remedies(one.remedies, width)
    for reference in one.references:
        yield from _labelled("see", reference, width)


def _remedies(remedies: Sequence[Remedy], width: int) -> Iterator[str]:
    for place, remedy in enumerate(remedies):
        yield from _labelled("do" if place == 0 else "or", remedy.text, width)
        if remedy.command:
            yield " " * (_LABEL + 4) + remedy.command


def _unknown(found: Explanations, width: int) -> Iterator[str]:
    more = len(found.unexplained) - 1
    yield from _labelled(
        "unknown", "no entry knows this" + (f" (and {more} more error lines)" if more else ""), width
    )
    for line in found.unexplained_context or found.unexplained[:1]:
        yield from _log_line("", line)
    for line in found.unexplained[1:]:
        yield from _log_line("also", line)
    yield from _remedies(found.advice, width)


def _noise(found: Explanations, width: int) -> Iterator[str]:
    if found.noise:
        yield ""
    for fold in found.noise:
        least = "" if fold.exact else "at least "
        yield from _labelled(
            "noise", f"{least}{fold.count:,} like {fold.line.number}: {fold.line.text[:_LINE]}", width
        )


def _log_line(label: str, line: LogLine) -> Iterator[str]:
    text = line.text if len(line.text) <= _LINE else line.text[: _LINE - 4] + " ..."
    yield f"{label:<{_LABEL}}{line.number}: {text.strip()}"


def _labelled(label: str, text: str, width: int) -> Iterator[str]:
    indent = " " * _LABEL
    yield from textwrap.wrap(
        text, width, initial_indent=f"{label:<{_LABEL}}", subsequent_indent=indent,
        break_long_words=False, break_on_hyphens=False,
    ) or [label]  # fmt: skip


def short(found: Explanations) -> tuple[str, ...]:
    """The best explanation in at most four lines, for a build's error; none when nothing is known."""
    one = next((e for e in found.explanations if e.severity == "error"), None)
    if one is None:
        return ()
    lines = [f"{one.id} ({one.confidence} confidence): {one.title}"]
    for remedy in one.remedies[:2]:
        lines.append(f"{remedy.text}: {remedy.command}" if remedy.command else remedy.text)
    return tuple(lines)


def listing(entries: Sequence[Entry]) -> str:
    """Every entry in a line: id, stage, whether LTO's, title. ``?`` marks an unconfirmed cause."""
    wide = max(len(entry.id) for entry in entries)
    stage = max(len(entry.stage) for entry in entries)
    rows = (
        f"{entry.id:<{wide}}  {entry.stage:<{stage}}  {'lto' if entry.lto else '   '} "
        f"{' ' if entry.confirmed else '?'} {entry.title}"
        for entry in entries
    )
    return "\n".join(rows) + f"\n{len(entries)} failures\n"


def listing_json(entries: Sequence[Entry]) -> str:
    """The same for programs."""
    rows = [
        {
            "id": e.id, "title": e.title, "stage": e.stage, "severity": e.severity, "lto": e.lto,
            "confirmed": e.confirmed, "cause": " ".join(e.cause.split()), "affects": e.affects,
            "references": e.references,
        }
        for e in entries
    ]  # fmt: skip
    return json.dumps({"schema": "klto/explain-list/1", "entries": rows}, indent=1) + "\n"
