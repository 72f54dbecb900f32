"""A run as Chrome trace events, which Perfetto (ui.perfetto.dev) and chrome://tracing open.

Format: "Trace Event Format" (Google, 2016): complete events ``X`` with ``ts`` and ``dur`` in microseconds, counter
events ``C``, metadata ``M``. Spans of one thread must nest, so what ran at once goes on threads of its own.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from klto.events import LinkedModule
from klto.link.run import TIME_TRACE
from klto.record import Link, Record
from klto.report.compare import vmlinux_link
from klto.report.side import Side

_PID = 1
_STAGES, _PROOFS, _LINKS, _BACKENDS, _LINKER = 1, 2, 100, 1000, 100_000

Event = dict[str, Any]


def encode_trace(side: Side) -> str:
    """The trace as JSON."""
    record = side.record
    assert record is not None
    title = f"klto {' '.join(record.asked.argv)}"
    events = [_named("process_name", 0, title), *_run(record), *_links(record), *_backends(record)]
    events += [*_proofs(record), *_memory(record), *_linker(side)]
    return json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}, separators=(",", ":")) + "\n"


def _span(name: str, tid: int, start: float, seconds: float, category: str, **args: object) -> Event:
    """A complete event; ``start`` and ``seconds`` in seconds, 0 being the start of the run."""
    return {
        "ph": "X", "name": name, "cat": category, "pid": _PID, "tid": tid,
        "ts": round(start * 1e6), "dur": round((start + seconds) * 1e6) - round(start * 1e6), "args": args,
    }  # fmt: skip


def _named(kind: str, tid: int, name: str) -> Event:
    return {"ph": "M", "name": kind, "pid": _PID, "tid": tid, "args": {"name": name}}


def _run(record: Record) -> Iterator[Event]:
    yield _named("thread_name", _STAGES, "stages")
    ends = [s.start - record.started + (s.wall_seconds or 0.0) for s in record.stages]
    whole = max([record.wall_seconds or 0.0, *ends])
    yield _span("run", _STAGES, 0.0, whole, "run", status=record.status, exit_status=record.exit_status)
    at = 0.0
    for stage in record.stages:
        if stage.wall_seconds is None:
            continue
        # A link is seen a moment after it began: its stage begins when the one before it ended.
        start = max(at, stage.start - record.started)
        at = start + stage.wall_seconds
        yield _span(
            stage.name, _STAGES, start, stage.wall_seconds, "stage",
            status=stage.status, cpu_seconds=stage.cpu_seconds,
            peak_bytes=stage.peak_bytes, peak_process=stage.peak_process,
        )  # fmt: skip


def pack(spans: Iterable[tuple[float, float]]) -> list[int]:
    """Lanes for spans (start, seconds) sorted by start, so that none overlaps another of its lane when both are
    rounded to microseconds."""
    ends: list[int] = []
    lanes = []
    for start, seconds in spans:
        begin = round(start * 1e6)
        lane = next((index for index, end in enumerate(ends) if end <= begin), len(ends))
        if lane == len(ends):
            ends.append(0)
        ends[lane] = round((start + seconds) * 1e6)
        lanes.append(lane)
    return lanes


def _links(record: Record) -> Iterator[Event]:
    ended = [(link, link.wall_seconds) for link in record.links if link.wall_seconds is not None]
    ended.sort(key=lambda pair: pair[0].start)
    lanes = pack((link.start - record.started, wall) for link, wall in ended)
    for lane in sorted(set(lanes)):
        yield _named("thread_name", _LINKS + lane, f"links {lane + 1}")
    for (link, wall), lane in zip(ended, lanes, strict=True):
        yield _span(
            link.output, _LINKS + lane, link.start - record.started, wall, "link",
            jobs=link.jobs, bitcode_modules=link.bitcode_inputs, generated=link.generated,
            peak_bytes=link.peak_bytes, returncode=link.returncode,
        )  # fmt: skip


def _backends(record: Record) -> Iterator[Event]:
    link = vmlinux_link(record)
    timed = [t for t in map(_timed, _modules_of(link)) if t is not None]
    timed.sort(key=lambda t: t[1])
    lanes = pack((start - record.started, seconds) for _, start, seconds in timed)
    for lane in sorted(set(lanes)):
        yield _named("thread_name", _BACKENDS + lane, f"backends {lane + 1}")
    for (module, start, seconds), lane in zip(timed, lanes, strict=True):
        yield _span(
            module.name, _BACKENDS + lane, start - record.started, seconds, "backend",
            bytes_in=module.bytes_in, bytes_out=module.bytes_out,
        )  # fmt: skip


def _modules_of(link: Link | None) -> list[LinkedModule]:
    return link.modules if link is not None else []


def _timed(module: LinkedModule) -> tuple[LinkedModule, float, float] | None:
    if module.start is None or module.seconds is None or module.cached:
        return None
    return module, module.start, module.seconds


def _proofs(record: Record) -> Iterator[Event]:
    """Proofs one after the other, as they ran, from the start of the boot stage."""
    stage = next((s for s in record.stages if s.name == "boot"), None)
    if stage is None or not record.boots:
        return
    yield _named("thread_name", _PROOFS, "proofs")
    at = stage.start - record.started
    for proof in record.boots[-1].proofs:
        yield _span(proof.name, _PROOFS, at, proof.seconds, "proof", status=proof.status)
        at += proof.seconds


def _memory(record: Record) -> Iterator[Event]:
    for sample in record.memory:
        at = round((sample.time - record.started) * 1e6)
        yield {
            "ph": "C", "name": "memory of the largest process", "pid": _PID, "tid": 0, "ts": at,
            "args": {"bytes": sample.bytes},
        }  # fmt: skip


def time_trace_path(build_dir: Path) -> Path:
    """Where the vmlinux.o link of ``klto build --time-trace`` leaves the linker's own trace."""
    return build_dir / ".klto" / TIME_TRACE


def _linker(side: Side) -> Iterator[Event]:
    """lld's own phases, moved to the run's clock (``beginningOfTime`` is its epoch in microseconds:
    llvm/lib/Support/TimeProfiler.cpp, TimeTraceProfiler::write); its "Total" rows are sums, no spans."""
    record, folder = side.record, side.build_dir
    path = time_trace_path(folder) if folder is not None else None
    if record is None or path is None or not path.is_file():
        return
    try:
        found = json.loads(path.read_bytes())
        began = found["beginningOfTime"] - record.started * 1e6
        events = found["traceEvents"]
    except (ValueError, KeyError, TypeError):
        side.notes.append(f"{path} is damaged: without the linker's phases")
        return
    whole = (record.wall_seconds or 0.0) * 1e6
    if not 0 <= began <= whole:
        return  # Of another run.
    threads = set()
    for event in events:
        if event.get("ph") != "X" or str(event.get("name", "")).startswith("Total "):
            continue
        tid = _LINKER + int(event["tid"])
        threads.add(tid)
        yield {**event, "cat": "linker", "pid": _PID, "tid": tid, "ts": round(event["ts"] + began)}
    for tid in sorted(threads):
        yield _named("thread_name", tid, f"ld.lld {tid - _LINKER}")
