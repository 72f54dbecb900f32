"""Two or more builds compared: a table of figures, sections, directories, symbols, kernel modules, findings."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from klto.errors import KltoError, UsageError
from klto.link.imports import read_imports
from klto.record import Link, ObjectSize, Record
from klto.report.attribution import directory_of
from klto.report.image import Image
from klto.report.side import Side, check_comparable
from klto.report.symbols import SymbolDiff, Trees, diff_symbols

VMLINUX_O = "vmlinux.o"


@dataclass(frozen=True)
class Row:
    """One figure of all sides; None: not measured.

    :ivar unit: bytes (of files and sections), memory (bytes too), seconds or count.
    """

    name: str
    unit: str
    values: tuple[float | None, ...]

    @property
    def differs(self) -> bool:
        """Whether any side has another value than the first."""
        return len(set(self.values)) > 1


@dataclass(frozen=True)
class FindingChange:
    """A finding that one side has and the other has not."""

    rule: str
    message: str
    appeared: bool


@dataclass(frozen=True)
class Pair:
    """The first side against one other. ``symbols`` is None where an image is gone."""

    first: Side
    second: Side
    symbols: SymbolDiff | None
    findings: tuple[FindingChange, ...]


@dataclass(frozen=True)
class Comparison:
    """The whole; rows in every table have one value a side."""

    sides: tuple[Side, ...]
    figures: tuple[Row, ...]
    sections: tuple[Row, ...]
    directories: tuple[Row, ...]
    modules: tuple[Row, ...]
    pairs: tuple[Pair, ...]


def compare(sides: list[Side], *, with_imports: bool = True) -> Comparison:
    """Compare the first of ``sides`` with each of the others.

    :param with_imports: ask the linker for the functions imported, where a ThinLTO build dir is there.
    :raises UsageError: for fewer than two, or different architectures.
    :raises MalformedObject: when an image is broken.
    """
    if len(sides) < 2:
        raise UsageError("nothing to compare with", "give two or more build dirs, records or images")
    check_comparable(sides)
    for side in sides:
        if side.image is not None and not _has_symbols(side.image):
            side.notes.append("its image is stripped: symbols not known")
    return Comparison(
        tuple(sides),
        tuple(_figures(sides, with_imports)),
        tuple(_sections(sides)),
        tuple(_directories(sides)),
        tuple(_modules(sides)),
        tuple(_pair(sides[0], other) for other in sides[1:]),
    )


def _pair(first: Side, second: Side) -> Pair:
    symbols = None
    if _has_symbols(first.image) and _has_symbols(second.image):
        assert first.image is not None
        assert second.image is not None
        began = first.record.started if first.record else 0.0
        trees = Trees(first.source_tree, second.source_tree, began)
        symbols = diff_symbols(first.image, second.image, first.definitions, second.definitions, trees)
    return Pair(first, second, symbols, tuple(_findings(first.record, second.record)))


def _has_symbols(image: Image | None) -> bool:
    return image is not None and image.elf.symtab is not None


def vmlinux_link(record: Record | None) -> Link | None:
    """The vmlinux.o link of a run, None when it had none."""
    links = record.links if record is not None else []
    return next((link for link in reversed(links) if Path(link.output).name == VMLINUX_O), None)


def _figures(sides: list[Side], with_imports: bool) -> Iterable[Row]:
    def row(name: str, unit: str, value: Callable[[Side], float | None]) -> Row:
        return Row(name, unit, tuple(value(side) for side in sides))

    yield row("boot image", "bytes", lambda s: _artifact(s.record, ("bzImage", "Image", "Image.gz")))
    yield row("vmlinux file", "bytes", lambda s: _file_size(s))
    for kind in ("text", "data", "bss"):
        yield row(f"  {kind}", "bytes", lambda s, kind=kind: _berkeley(s, kind))  # type: ignore[misc]
    yield row("kernel modules", "bytes", lambda s: _all_modules(s.record))
    yield row("build", "seconds", lambda s: s.record.wall_seconds if s.record else None)
    yield row("objects compiled", "count", lambda s: s.record.objects_compiled if s.record else None)
    yield row("link", "seconds", _of_link(lambda link: link.wall_seconds))
    yield row("  CPU", "seconds", _of_link(lambda link: link.cpu_seconds))
    yield row("  peak memory", "memory", _of_link(lambda link: link.peak_bytes))
    yield row("  bitcode modules", "count", _of_link(lambda link: link.bitcode_inputs))
    yield row("  generated anew", "count", _of_link(lambda link: link.generated))
    yield row("  from the cache", "count", _of_link(_cached))
    if with_imports:
        yield row("  functions imported", "count", functions_imported)
    yield row("objtool and after", "seconds", lambda s: _stage_seconds(s.record, "finish"))
    yield row("largest process", "memory", lambda s: _peak(s.record))
    yield row(
        "boot", "seconds", lambda s: s.record.boots[-1].seconds if s.record and s.record.boots else None
    )
    yield row("findings", "count", lambda s: len(s.record.findings) if s.record else None)


def _of_link(value: Callable[[Link], float | None]) -> Callable[[Side], float | None]:
    def of(side: Side) -> float | None:
        link = vmlinux_link(side.record)
        return value(link) if link is not None else None

    return of


def _cached(link: Link) -> int | None:
    return link.bitcode_inputs - link.generated if link.generated is not None else None


def functions_imported(side: Side) -> int | None:
    """Functions that ThinLTO imports across modules, asked of the linker; None where that cannot be."""
    record, folder = side.record, side.build_dir
    if record is None or folder is None or record.toolchain is None or side.lto != "thin":
        return None
    if side.image_path is None:
        return None  # The objects are another build's.
    try:
        return sum(edge.functions for edge in read_imports(folder, record.toolchain.linker))
    except KltoError as error:
        side.notes.append(f"imports not known: {error.message}")
        return None


def _file_size(side: Side) -> int | None:
    if side.image_path is not None:
        return side.image_path.stat().st_size
    return _artifact(side.record, ("vmlinux",))


def _artifact(record: Record | None, names: tuple[str, ...]) -> int | None:
    made = record.artifacts if record is not None else []
    return next((a.bytes for a in made if Path(a.path).name in names), None)


def _all_modules(record: Record | None) -> int | None:
    made = [a.bytes for a in record.artifacts if a.path.endswith(".ko")] if record is not None else []
    return sum(made) if made else None


def _berkeley(side: Side, kind: str) -> int | None:
    if side.image is not None:
        size: int = getattr(side.image.berkeley, kind)
        return size
    return None


def _stage_seconds(record: Record | None, name: str) -> float | None:
    stages = record.stages if record is not None else []
    return next((s.wall_seconds for s in stages if s.name == name), None)


def _peak(record: Record | None) -> int | None:
    return max((s.peak_bytes for s in record.stages if s.peak_bytes), default=None) if record else None


def _sections(sides: list[Side]) -> Iterable[Row]:
    tables = [{s.name: s.bytes for s in side.sizes.sections} if side.sizes else None for side in sides]
    yield from _rows(tables)


def _rows(tables: list[dict[str, int] | None]) -> list[Row]:
    """One row a name of any table; 0 where a table lacks it, None where there is no table. Largest change
    against the first table before."""
    names: dict[str, None] = {}
    for table in tables:
        names.update(dict.fromkeys(table or ()))
    rows = [
        Row(name, "bytes", tuple(table.get(name, 0) if table is not None else None for table in tables))
        for name in names
    ]
    rows.sort(key=lambda row: (-largest_delta(row), row.name))
    return rows


def largest_delta(row: Row) -> float:
    """The largest difference of a value from the first one."""
    first = row.values[0]
    return max((abs(v - first) for v in row.values[1:] if v is not None and first is not None), default=0)


def _directories(sides: list[Side]) -> list[Row]:
    tables = [
        directory_sizes(side.sizes.objects) if side.sizes and side.sizes.objects else None for side in sides
    ]
    return _rows(tables)


def directory_sizes(objects: list[ObjectSize], depth: int = 2) -> dict[str, int]:
    """Bytes (text, data and bss) by directory."""
    sizes: dict[str, int] = defaultdict(int)
    for row in objects:
        sizes[directory_of(row.path, depth)] += row.text + row.data + row.bss
    return dict(sizes)


def _modules(sides: list[Side]) -> list[Row]:
    tables = [
        {a.path: a.bytes for a in side.record.artifacts if a.path.endswith(".ko")} if side.record else None
        for side in sides
    ]
    return _rows(tables)


def _findings(first: Record | None, second: Record | None) -> Iterable[FindingChange]:
    if first is None or second is None:
        return
    before, after = ({_key(f): f for f in record.findings} for record in (first, second))
    for key in sorted(after.keys() - before.keys()):
        yield FindingChange(key[0], str(after[key].get("message", "")), True)
    for key in sorted(before.keys() - after.keys()):
        yield FindingChange(key[0], str(before[key].get("message", "")), False)


def _key(finding: dict[str, object]) -> tuple[str, str, str]:
    """What makes two findings the same: rule, artifact by name, symbol by origin."""
    rule, artifact, symbol = (str(finding.get(name) or "") for name in ("rule", "artifact", "symbol"))
    return rule, Path(artifact).name, symbol.partition(".llvm.")[0]
