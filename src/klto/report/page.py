"""The HTML report: one file that needs no network, no server and no other file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from html import escape
from importlib import resources
from typing import Any

from klto import __version__
from klto.process import quote
from klto.record import Record
from klto.report.compare import Comparison, compare, vmlinux_link
from klto.report.compare_text import delta_text, symbol_totals, value_text
from klto.report.page_data import chart_data, imports_of
from klto.report.side import Side
from klto.units import duration, size

#: The parts of D3 that the charts use, in the order in which they need each other.
_D3 = (
    "d3-array", "d3-color", "d3-format", "d3-interpolate", "d3-time", "d3-time-format", "d3-scale",
    "d3-selection", "d3-axis", "d3-hierarchy",
)  # fmt: skip
_SCRIPTS = ("tables.js", "timeline.js", "treemap.js", "main.js")

#: Rows of a compared table on the page.
_TOP = 25

#: No request may leave the page, whatever is in it.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"


def render(sides: Sequence[Side]) -> str:
    """The page: of the last side, and a comparison when there are several."""
    side = sides[-1]
    record = side.record
    assert record is not None
    imports, why = imports_of(side)
    data = chart_data(side, imports)
    comparison = compare(list(sides), with_imports=False) if len(sides) > 1 else None
    title = _title(side)
    body = "\n".join(
        [
            _header(title, side, record, comparison is not None),
            '<main id="main">',
            _section("summary", "Summary", _summary(record)),
            *([_section("comparison", "Comparison", _comparison(comparison))] if comparison else []),
            _section("timeline", "Timeline", _TIMELINE),
            _section("size", "Size by directory", _TREEMAP if data["objects"] else _missing(side)),
            _section("imports", "Imports across modules", _IMPORTS if imports else f"<p>{escape(why)}</p>"),
            _section("initcalls", "Initcalls", _initcalls(data["initcalls"])),
            _section("findings", "Findings", _findings(record)),
            _section("made", "How it was made", _made(side, record)),
            "</main>",
            f"<footer>klto {escape(__version__)}. Charts: D3 (ISC licence, Mike Bostock).</footer>",
        ]
    )
    # "<" cannot end the script element early, and U+2028 is no line end to JSON.
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=True).replace("<", "\\u003c")
    scripts = "".join(f"<script>{_script(f'd3/{name}.min.js')}</script>\n" for name in _D3)
    scripts += "".join(f"<script>{_script(name)}</script>\n" for name in _SCRIPTS)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{_web("report.css")}</style>
</head>
<body>
{body}
<script type="application/json" id="data">{text}</script>
{scripts}</body>
</html>
"""


def _web(name: str) -> str:
    return resources.files("klto.report").joinpath("web", *name.split("/")).read_text(encoding="utf-8")


def _script(name: str) -> str:
    return _web(name).replace("</script", "<\\/script")


def _section(name: str, title: str, content: str) -> str:
    return f'<section id="{name}" aria-labelledby="{name}-h"><h2 id="{name}-h">{title}</h2>\n{content}\n</section>'


def _title(side: Side) -> str:
    record = side.record
    tree = record.tree if record is not None else None
    what = f"Linux {tree.version}, {tree.arch}" if tree is not None else side.label
    lto = "" if side.lto == "?" else ", no LTO" if side.lto == "none" else f", {side.lto} LTO"
    return f"{what}{lto}"


def _header(title: str, side: Side, record: Record, compared: bool) -> str:
    names = [
        ("summary", "Summary"), *([("comparison", "Comparison")] if compared else []),
        ("timeline", "Timeline"), ("size", "Size"), ("imports", "Imports"), ("initcalls", "Initcalls"),
        ("findings", "Findings"), ("made", "How it was made"),
    ]  # fmt: skip
    links = "".join(f'<li><a href="#{name}">{text}</a></li>' for name, text in names)
    begun = datetime.fromtimestamp(record.started, UTC).strftime("%Y-%m-%d %H:%M UTC")
    message = f'<p class="message">{escape(record.message)}</p>' if record.message else ""
    notes = "".join(f'<p class="note">{escape(note)}</p>' for note in side.notes)
    return f"""<a class="skip" href="#main">Skip to the report</a>
<header>
<div class="top"><h1>{escape(title)}</h1>
<button type="button" id="theme" class="noprint">Dark or light</button></div>
<p><span class="status {escape(record.status)}">{escape(record.status)}</span>
built {begun} in {duration(record.wall_seconds or 0.0)}</p>
{message}{notes}
<nav aria-label="Sections" class="noprint"><ul>{links}</ul></nav>
</header>"""


def _cards(values: Sequence[tuple[str, str, str]]) -> str:
    rows = (
        f'<div><dt>{escape(name)}</dt><dd>{escape(value)}<span class="more">{escape(more)}</span></dd></div>'
        for name, value, more in values
    )
    return f'<dl class="cards">{"".join(rows)}</dl>'


def _summary(record: Record) -> str:
    cards: list[tuple[str, str, str]] = []
    for artifact in record.artifacts:
        if not artifact.path.endswith((".ko", "System.map")):
            cards.append(
                (artifact.path.rpartition("/")[2], size(artifact.bytes), f"{artifact.bytes:,} bytes")
            )
    link = vmlinux_link(record)
    if link is not None and link.wall_seconds is not None:
        cached = "" if link.generated is None else f", {link.bitcode_inputs - link.generated} from the cache"
        cards.append(("Link", duration(link.wall_seconds), f"{link.bitcode_inputs} modules{cached}"))
        if link.peak_bytes:
            cards.append(("Link's memory", size(link.peak_bytes), f"peak, {link.jobs} backends at once"))
    else:
        cards.append(("Link", "none", "vmlinux.o was up to date"))
    peaks = [s for s in record.stages if s.peak_bytes]
    if peaks:
        worst = max(peaks, key=lambda s: s.peak_bytes or 0)
        cards.append(("Largest process", size(worst.peak_bytes or 0), f"{worst.peak_process}, {worst.name}"))
    found = record.verification
    if found is not None:
        others = f"{found.native} native, {found.kernel_modules} kernel modules"
        cards.append(("Objects", f"{found.bitcode:,} bitcode", others))
    cards.append(("Findings", str(len(record.findings)), "see below" if record.findings else ""))
    for boot in record.boots:
        passed = sum(p.status == "passed" for p in boot.proofs)
        more = f"{passed} of {len(boot.proofs)} proofs passed, {boot.accelerator}"
        cards.append(("Boot", duration(boot.seconds), more))
    return _cards(cards)


def _table(
    head: Sequence[str], rows: Sequence[Sequence[str]], caption: str, words: tuple[int, ...] = ()
) -> str:
    """A table of text; columns to the right but for the first and those of ``words``. The first is as narrow as it
    can be when it has no title."""
    narrow = ' class="narrow"' if words and not head[0] else ""
    kind = [' class="words"' if index in words else "" for index in range(len(head))]
    cells = "".join(f'<th scope="col"{k}>{escape(name)}</th>' for name, k in zip(head, kind, strict=True))
    lines = "".join(
        f'<tr><th scope="row"{narrow}>{escape(row[0])}</th>'
        + "".join(f"<td{k}>{escape(cell)}</td>" for cell, k in zip(row[1:], kind[1:], strict=True))
        + "</tr>"
        for row in rows
    )
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}"><table>'
        f"<caption>{escape(caption)}</caption><thead><tr>{cells}</tr></thead><tbody>{lines}</tbody></table></div>"
    )


def _comparison(found: Comparison | None) -> str:
    assert found is not None
    letters = [chr(ord("A") + index % 26) for index in range(len(found.sides))]
    sides = [
        [letter, side.label, side.lto, "; ".join(side.notes)]
        for letter, side in zip(letters, found.sides, strict=True)
    ]
    tables: list[str] = []
    parts = [_table(["", "Build", "LTO", "Notes"], sides, "Builds compared", (1, 2, 3))]
    head = ["", "A", *(cell for letter in letters[1:] for cell in (letter, f"{letter}-A"))]
    for title, rows in (
        ("Figures", [r for r in found.figures if any(v is not None for v in r.values)]),
        ("Sections", [r for r in found.sections if r.differs][:_TOP]),
        ("Directories", [r for r in found.directories if r.differs][:_TOP]),
        ("Kernel modules", [r for r in found.modules if r.differs][:_TOP]),
    ):
        if rows:
            lines = [
                [
                    row.name.strip(),
                    value_text(row.values[0], row.unit),
                    *(
                        cell
                        for value in row.values[1:]
                        for cell in (value_text(value, row.unit), delta_text(row.values[0], value, row.unit))
                    ),
                ]
                for row in rows
            ]
            tables.append(_table(head, lines, title))
    parts.append(f'<div class="beside">{"".join(tables)}</div>')
    for letter, pair in zip(letters[1:], found.pairs, strict=True):
        if pair.symbols is not None:
            parts.append(
                "".join(f"<p><code>{escape(text)}</code></p>" for text in symbol_totals(pair.symbols))
            )
            changes = [
                [c.name, c.change, str(c.before), str(c.after), f"{c.delta:+d}"]
                for c in pair.symbols.changes[:_TOP]
            ]
            parts.append(
                _table(
                    ["Symbol", "Change", "A", letter, f"{letter}-A"], changes, f"Symbols, A to {letter}", (1,)
                )
            )
        for finding in pair.findings:
            verb = "appeared" if finding.appeared else "vanished"
            parts.append(f"<p>Finding {verb}: <b>{escape(finding.rule)}</b> {escape(finding.message)}</p>")
    return "\n".join(parts)


_TIMELINE = """<div id="timeline-chart" class="chart"></div>
<div id="backends"></div>
<div id="stage-table"></div>"""

_TREEMAP = """<div class="tools noprint"><nav id="crumbs" aria-label="Directory shown"></nav>
<label>Count <select id="kind"><option value="all">all</option><option value="text">text</option>
<option value="data">data</option><option value="bss">bss</option></select></label></div>
<p class="hint noprint">Choose a rectangle to go into it (Enter on the keyboard, Tab to move, Escape to go up).</p>
<div id="treemap" class="chart"></div>
<div id="tree-table"></div>"""

_IMPORTS = """<p id="import-sum"></p><div id="import-matrix"></div><div id="import-table"></div>"""


def _missing(side: Side) -> str:
    return f"<p>Not measured: {escape('; '.join(side.notes) or 'this record has no sizes by object')}.</p>"


def _initcalls(rows: list[list[object]]) -> str:
    if not rows:
        return "<p>None on record.</p>"
    timed = sum(row[3] is not None for row in rows)
    hint = (
        f"{timed} with times from the boot."
        if timed
        else "Times: not measured (boot with initcall_debug in the kernel's command line to have them)."
    )
    return f'<p>{len(rows)} in the order in which the kernel runs them. {hint}</p><div id="initcall-table"></div>'


def _findings(record: Record) -> str:
    if not record.findings:
        return "<p>None.</p>"
    items = []
    for finding in record.findings:
        where = ", ".join(str(finding[key]) for key in ("artifact", "section", "symbol") if finding.get(key))
        remedies = "".join(f"<li>{escape(_text(r))}</li>" for r in finding.get("remedies") or [])
        references = "".join(f"<li>{escape(_text(r))}</li>" for r in finding.get("references") or [])
        level = escape(_text(finding.get("level")))
        items.append(
            f"<article><h3>{escape(_text(finding.get('rule')))} "
            f'<span class="status {level}">{level}</span></h3>'
            f"<p>{escape(_text(finding.get('message')))}</p><p><code>{escape(where)}</code></p>"
            + (f"<p>What to do:</p><ul>{remedies}</ul>" if remedies else "")
            + (f"<p>Where it comes from:</p><ul>{references}</ul>" if references else "")
            + "</article>"
        )
    return "".join(items)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else "" if value is None else json.dumps(value)


def _made(side: Side, record: Record) -> str:
    command = f"cd {quote([record.asked.directory])} && {quote(['klto', *record.asked.argv])}"
    rows: list[tuple[str, str]] = []
    if record.tree is not None:
        rows.append(("Tree", f"{record.tree.path} (Linux {record.tree.version}, {record.tree.arch})"))
    if record.config is not None:
        rows += [
            ("Configuration", record.config.path),
            ("its SHA-256", record.config.sha256),
            ("LTO", record.config.lto),
        ]
    tools = record.toolchain
    if tools is not None:
        rows += [
            ("Toolchain", tools.spelling), ("Compiler", f"{tools.clang_version} ({tools.clang})"),
            ("Linker", f"{tools.linker_version} ({tools.linker})"),
        ]  # fmt: skip
    machine = record.machine
    memory = f"{size(machine.memory_bytes)} of memory, {size(machine.memory_available)} available"
    rows.append(("Machine", f"{machine.cpus} CPUs, {memory}"))
    rows += [("Log", record.log or "none"), ("klto", record.klto_version)]
    rows += [("Note", note) for note in record.notes]
    body = "".join(
        f"<div><dt>{escape(name)}</dt><dd><code>{escape(value)}</code></dd></div>" for name, value in rows
    )
    asked = record.asked.requests
    options = ""
    if asked:
        lines = "\n".join(f"{name}={value}" for name, value in sorted(asked.items()))
        options = (
            f"<details><summary>{len(asked)} options asked for</summary><pre>{escape(lines)}</pre></details>"
        )
    return (
        f'<pre class="command" tabindex="0" aria-label="Command">{escape(command)}</pre>'
        f'<dl class="made">{body}</dl>{options}'
    )
