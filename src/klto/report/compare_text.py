"""A comparison for people: text for a terminal, Markdown for a mailing list, and its JSON."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

from klto.report.compare import Comparison, Pair, Row, largest_delta
from klto.report.symbols import LOST, Change, SymbolChange, SymbolDiff
from klto.units import duration, size

#: Columns of a plain-text mail (Documentation/process/email-clients.rst of Linux asks for lines that no mailer
#: wraps; 75 is checkpatch's limit for commit messages, scripts/checkpatch.pl COMMIT_LOG_LONG_LINE).
MAIL_WIDTH = 75
TEXT_WIDTH = 100

SCHEMA = "klto/compare/1"

#: The sides' names in tables.
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

_GROUPS = (
    ("grown", (Change.GROWN,)),
    ("new", (Change.NEW,)),
    ("shrunk", (Change.SHRUNK,)),
    ("inlined away or dropped by the LTO link", (Change.INLINED,)),
    ("object no longer linked (configured out, or a kernel module)", (Change.UNLINKED,)),
    ("gone in the compiler, still in the source", (Change.COMPILED_AWAY,)),
    ("removed from the source", (Change.REMOVED,)),
    ("gone, source not known", (Change.GONE,)),
)


def as_json(found: Comparison) -> dict[str, Any]:
    """The comparison, schema ``klto/compare/1``: everything, not only what the text shows."""
    return {
        "schema": SCHEMA,
        "sides": [
            {"label": side.label, "arch": side.arch, "lto": side.lto, "notes": side.notes}
            for side in found.sides
        ],
        **{
            name: [{"name": r.name.strip(), "unit": r.unit, "values": list(r.values)} for r in rows]
            for name, rows in (
                ("figures", found.figures), ("sections", found.sections),
                ("directories", found.directories), ("modules", found.modules),
            )
        },
        "pairs": [_pair_json(pair) for pair in found.pairs],
    }  # fmt: skip


def _pair_json(pair: Pair) -> dict[str, Any]:
    symbols = None
    if pair.symbols is not None:
        symbols = {
            "before": pair.symbols.before,
            "after": pair.symbols.after,
            "up": pair.symbols.up,
            "down": pair.symbols.down,
            "changes": [
                {
                    "name": c.name, "change": c.change, "before": c.before, "after": c.after,
                    "object": c.object or None, "code": c.code,
                }
                for c in pair.symbols.changes
            ],
        }  # fmt: skip
    return {
        "first": pair.first.label,
        "second": pair.second.label,
        "symbols": symbols,
        "findings": [{"rule": f.rule, "message": f.message, "appeared": f.appeared} for f in pair.findings],
    }


def value_text(value: float | None, unit: str) -> str:
    """``4.2 MiB``, ``1:03``, ``924``, or ``-`` when it was not measured."""
    if value is None:
        return "-"
    return (
        size(value)
        if unit in ("bytes", "memory")
        else duration(value)
        if unit == "seconds"
        else f"{value:.0f}"
    )


def delta_text(first: float | None, value: float | None, unit: str, *, exact: bool = True) -> str:
    """The change against the first: sizes in bytes (``exact``) with a percentage, counts as they are, times and
    memory as a percentage."""
    if first is None or value is None:
        return ""
    if unit == "bytes" and (exact or not first):
        percent = f" {100 * (value - first) / first:+.1f}%" if first else ""
        return f"{value - first:+.0f}{percent}"
    if unit == "count" or not first:
        return f"{value - first:+.0f}"
    return f"{100 * (value - first) / first:+.1f}%"


def lines(found: Comparison, *, markdown: bool, top: int) -> Iterator[str]:
    """The text.

    :param markdown: for a mail: tables with pipes, 75 columns.
    :param top: rows of a table at most; 0 for all.
    """
    width = MAIL_WIDTH if markdown else TEXT_WIDTH
    names = _short_names([side.label for side in found.sides])
    for index, (side, name) in enumerate(zip(found.sides, names, strict=True)):
        what = ", ".join(
            filter(None, (side.arch, {"?": None, "none": "no LTO"}.get(side.lto, f"{side.lto} LTO")))
        )
        toolchain = side.record.toolchain if side.record is not None else None
        clang = toolchain.clang_version if toolchain is not None else ""
        yield from _wrapped(
            f"{'ABCDEFGHIJKLMNOPQRSTUVWXYZ'[index % 26]} = {name}: {what}. {clang}".rstrip(), width
        )
        for note in side.notes:
            yield from _wrapped(f"    note: {note}", width)
    out = _Tables(markdown, width, len(found.sides))
    yield from out.rows("Figures", [row for row in found.figures if any(v is not None for v in row.values)])
    for title, rows in (
        ("Sections of vmlinux", found.sections), ("Directories", found.directories),
        ("Kernel modules", found.modules),
    ):  # fmt: skip
        changed = [row for row in rows if row.differs and largest_delta(row)]
        yield from out.rows(title, changed[: top or None], len(changed))
    for index, pair in enumerate(found.pairs):
        yield from _pair_lines(pair, _LETTERS[(index + 1) % 26], out, top)


def _short_names(labels: Sequence[str]) -> list[str]:
    """Labels without the folders that all have."""
    if len(labels) < 2 or len(set(labels)) < len(labels):
        return list(labels)
    common = os.path.commonpath([os.path.dirname(os.path.abspath(label)) for label in labels])
    if common == "/":
        return list(labels)
    short = [os.path.relpath(os.path.abspath(label), common) for label in labels]
    return [min(pair, key=len) for pair in zip(labels, short, strict=True)]


def _wrapped(line: str, width: int) -> Iterator[str]:
    import textwrap

    yield from textwrap.wrap(line, width, subsequent_indent="      ", break_long_words=True) or [""]


def _pair_lines(pair: Pair, letter: str, out: _Tables, top: int) -> Iterator[str]:
    title = f"A -> {letter}"
    if pair.symbols is not None:
        yield from out.heading(f"Symbols, {title}")
        yield from out.plain(symbol_totals(pair.symbols))
        for name, kinds in _GROUPS:
            of_kind = [c for c in pair.symbols.changes if c.change in kinds]
            if of_kind:
                yield from out.symbols(f"{name}: {len(of_kind)}", letter, of_kind[: top or None])
    if pair.findings:
        yield from out.heading(f"Findings, {title}")
        for finding in pair.findings:
            sign = "+" if finding.appeared else "-"
            yield from out.plain([f"{sign} {finding.rule}: {finding.message}"])


def symbol_totals(diff: SymbolDiff) -> list[str]:
    """Two lines as scripts/bloat-o-meter prints them, with names matched to their origin."""
    added, removed = diff.count(Change.NEW), diff.count(*LOST)
    grown, shrunk = diff.count(Change.GROWN), diff.count(Change.SHRUNK)
    up, down = diff.up, diff.down
    percent = 100 * (diff.after - diff.before) / diff.before if diff.before else 0.0
    return [
        f"add/remove: {added}/{removed} grow/shrink: {grown}/{shrunk} up/down: {up}/{down} ({up + down})",
        f"Total: Before={diff.before}, After={diff.after}, chg {percent:+.2f}%",
    ]


class _Tables:
    """Tables of a given width; names are cut in their middle where they do not fit."""

    def __init__(self, markdown: bool, width: int, sides: int) -> None:
        self.markdown, self.width, self.sides = markdown, width, sides

    def heading(self, title: str) -> Iterator[str]:
        yield ""
        yield f"## {title}" if self.markdown else title
        if self.markdown:
            yield ""

    def plain(self, texts: Sequence[str]) -> Iterator[str]:
        import textwrap

        indent = "    " if self.markdown else "  "
        for text in texts:
            yield from textwrap.wrap(text, self.width, initial_indent=indent, subsequent_indent=indent)

    def rows(self, title: str, rows: Sequence[Row], total: int | None = None) -> Iterator[str]:
        """One table of figures; sides are lettered."""
        if not rows:
            return
        yield from self.heading(title)
        letters = _LETTERS[: self.sides]
        exact = not self.markdown or self.sides == 2
        head = ["", "A", *(cell for letter in letters[1:] for cell in (letter, f"{letter}-A"))]
        cells = [
            [
                row.name, value_text(row.values[0], row.unit),
                *(
                    cell
                    for value in row.values[1:]
                    for cell in (
                        value_text(value, row.unit),
                        delta_text(row.values[0], value, row.unit, exact=exact),
                    )
                ),
            ]
            for row in rows
        ]  # fmt: skip
        yield from self.table(head, cells)
        if total is not None and total > len(rows):
            yield from self.plain([f"and {total - len(rows)} more (--top 0 shows all)"])

    def symbols(self, title: str, letter: str, changes: Sequence[SymbolChange]) -> Iterator[str]:
        """One table of symbols, exact bytes."""
        yield ""
        head = [title, "A", letter, f"{letter}-A"]
        yield from self.table(
            head,
            [
                [
                    c.name,
                    str(c.before) if c.before else "-",
                    str(c.after) if c.after else "-",
                    f"{c.delta:+d}",
                ]
                for c in changes
            ],
        )

    def table(self, head: list[str], rows: list[list[str]]) -> Iterator[str]:
        """Aligned columns, the first to the left and as wide as the others allow."""
        widths = [max(3, *(len(row[i]) for row in [head, *rows])) for i in range(len(head))]
        between = 3 if self.markdown else 2
        frame = 4 if self.markdown else 2
        others = sum(widths[1:]) + between * (len(head) - 1) + frame
        widths[0] = max(8, min(widths[0], self.width - others))
        yield self._line(head, widths)
        if self.markdown:
            rules = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
            yield self._line(rules, widths)
        for row in rows:
            yield self._line(row, widths)

    def _line(self, row: list[str], widths: list[int]) -> str:
        first = _cut(row[0], widths[0]).ljust(widths[0])
        cells = [first, *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        if self.markdown:
            return "| " + " | ".join(cells) + " |"
        return ("  " + "  ".join(cells)).rstrip()


def _cut(text: str, width: int) -> str:
    if len(text) <= width:
        return text
    left = (width - 2) // 2
    return f"{text[:left]}..{text[len(text) - (width - 2 - left) :]}"
