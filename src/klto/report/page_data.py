"""The data of the HTML report: what its charts draw, bounded so that the file stays small."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path
from typing import Any

from klto.errors import KltoError
from klto.link.imports import Import, read_imports
from klto.record import Initcall, Link, ObjectSize, Record
from klto.report.compare import vmlinux_link
from klto.report.side import Side

#: Rows of each kind that go into the file, so that it stays below 2 MB whatever the kernel; what is left out is
#: said in it.
MOST_OBJECTS, MOST_SYMBOLS, MOST_MODULES, MOST_IMPORTS, MOST_INITCALLS = 5000, 6000, 5000, 1500, 4000

#: initcall_debug's line: init/main.c of 6.12, trace_initcall_finish_cb.
_INITCALL = re.compile(
    r"initcall (\S+?)\+0x[0-9a-f]+/0x[0-9a-f]+(?: \[\w+\])? returned -?\d+ after (\d+) usecs"
)


def chart_data(side: Side, imports: list[Import] | None) -> dict[str, Any]:
    """Everything that the page's script draws, as plain lists."""
    record = side.record
    assert record is not None
    link = vmlinux_link(record)
    return {
        "stages": [
            [s.name, s.start - record.started, s.wall_seconds, s.cpu_seconds, s.peak_bytes, s.peak_process, s.status]
            for s in record.stages
        ],
        "links": [
            [k.output, k.start - record.started, k.wall_seconds, k.peak_bytes, k.jobs, k.returncode]
            for k in sorted(record.links, key=lambda k: -(k.wall_seconds or 0.0))[:100]
        ],
        "memory": [[m.time - record.started, m.bytes, m.process] for m in record.memory],
        "modules": _modules(record, link),
        "objects": [[o.path, o.text, o.data, o.bss] for o in _objects(side)],
        "symbols": _symbols(side),
        "imports": [[i.importer, i.source, i.functions, i.instructions] for i in (imports or [])[:MOST_IMPORTS]],
        "initcalls": _initcalls(record),
    }  # fmt: skip


def imports_of(side: Side) -> tuple[list[Import] | None, str]:
    """The imports of a ThinLTO build, or None and why not."""
    record = side.record
    if side.lto == "full":
        return None, "Full LTO links all modules as one: there is nothing to import."
    if side.lto != "thin":
        return None, "Without LTO no function is imported."
    if record is None or record.toolchain is None or side.build_dir is None or side.image_path is None:
        return None, "Not known: the objects of this build are gone or have been built anew."
    try:
        return read_imports(side.build_dir, record.toolchain.linker), ""
    except KltoError as error:
        return None, f"Not known: {error.message}"


def _modules(record: Record, link: Link | None) -> list[list[object]]:
    if link is None:
        return []
    slowest = sorted(link.modules, key=lambda m: -(m.seconds or 0.0))[:MOST_MODULES]
    return [
        [m.name, None if m.start is None else m.start - record.started, m.seconds, m.bytes_in, m.bytes_out, m.cached]
        for m in slowest
    ]  # fmt: skip


def _objects(side: Side) -> list[ObjectSize]:
    """The largest objects, the others of each directory together."""
    objects = side.sizes.objects if side.sizes is not None else []
    kept = objects[:MOST_OBJECTS]
    rest: dict[str, list[ObjectSize]] = defaultdict(list)
    for row in objects[MOST_OBJECTS:]:
        rest[row.path.rpartition("/")[0]].append(row)
    for folder, rows in rest.items():
        name = f"{folder}/({len(rows)} small objects)"
        text, data, bss = (sum(getattr(row, kind) for row in rows) for kind in ("text", "data", "bss"))
        kept.append(ObjectSize(path=name, text=text, data=data, bss=bss))
    return kept


def _symbols(side: Side) -> list[list[object]]:
    """[object, name, bytes, kind] of the largest symbols, where the image is there."""
    image, definitions = side.image, side.definitions
    if image is None or definitions is None or image.elf.symtab is None:
        return []
    largest = sorted(image.symbols(), key=lambda s: -s.size)[:MOST_SYMBOLS]
    return [[definitions.object_of(s), s.name, s.size, s.kind] for s in largest]


def _initcalls(record: Record) -> list[list[object]]:
    """[level, function, object, microseconds or None] in the order in which the kernel runs them."""
    times = initcall_times(record)
    folder = str(Path(record.config.path).parent) + "/" if record.config is not None else ""
    return [
        [i.level, i.function, i.object.removeprefix(folder), _time_of(i, times)]
        for i in record.initcalls[:MOST_INITCALLS]
    ]


def _time_of(initcall: Initcall, times: dict[str, int]) -> int | None:
    return times.get(initcall.function)


def initcall_times(record: Record) -> dict[str, int]:
    """Microseconds of each initcall, from the console of a boot with ``initcall_debug``; empty without one."""
    times: dict[str, int] = {}
    for boot in record.boots:
        try:
            text = Path(boot.console).read_text(errors="replace")
        except OSError:
            continue  # The log is gone; the record does not have it.
        for match in _INITCALL.finditer(text):
            times[match[1].partition(".llvm.")[0]] = int(match[2])
    return times
