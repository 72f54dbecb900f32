"""Every run of ``klto build`` in one line each: an SQLite file in the user's data directory."""

from __future__ import annotations

import os
import sqlite3
import statistics
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from klto.errors import UsageError
from klto.files import make_directory, user_data_dir
from klto.record import Record
from klto.report.compare import vmlinux_link

#: Kept in SQLite's user_version; a file of a later klto is refused.
_VERSION = 1

#: Seconds to wait for another klto that writes.
_PATIENCE = 5.0

#: Earlier runs that a run is held against.
_BEFORE = 5


@dataclass(frozen=True)
class Run:
    """A run's summary: bytes and seconds; None where it was not measured.

    :ivar bitcode_bytes: input of the vmlinux.o link; with ``generated`` (modules whose code was generated) it
        says how much work the link had.
    """

    build_dir: str
    started: float
    tree: str
    version: str
    arch: str
    lto: str
    status: str
    clang: str
    config_sha256: str
    wall_seconds: float | None
    link_seconds: float | None
    link_cpu_seconds: float | None
    link_jobs: int | None
    link_peak_bytes: int | None
    finish_peak_bytes: int | None
    bitcode_modules: int | None
    bitcode_bytes: int | None
    generated: int | None
    image_bytes: int | None
    vmlinux_bytes: int | None
    text_bytes: int | None
    data_bytes: int | None
    bss_bytes: int | None


_COLUMNS = [field.name for field in fields(Run)]


def summarise(record: Record, build_dir: Path) -> Run:
    """The line that a record becomes."""
    link = vmlinux_link(record)
    stages = {stage.name: stage for stage in record.stages}
    sizes: dict[str, int] = {}
    for section in record.sizes.sections if record.sizes is not None else ():
        sizes[section.kind] = sizes.get(section.kind, 0) + section.bytes
    artifacts = {os.path.basename(artifact.path): artifact.bytes for artifact in record.artifacts}
    finish = stages.get("finish")
    return Run(
        build_dir=os.path.abspath(build_dir),
        started=record.started,
        tree=record.tree.path if record.tree else "",
        version=record.tree.version if record.tree else "",
        arch=record.tree.arch if record.tree else "",
        lto=record.config.lto if record.config else "",
        status=record.status,
        clang=record.toolchain.clang_version if record.toolchain else "",
        config_sha256=record.config.sha256 if record.config else "",
        wall_seconds=record.wall_seconds,
        link_seconds=link.wall_seconds if link else None,
        link_cpu_seconds=link.cpu_seconds if link else None,
        link_jobs=link.jobs if link else None,
        link_peak_bytes=link.peak_bytes if link else None,
        finish_peak_bytes=finish.peak_bytes if finish else None,
        bitcode_modules=link.bitcode_inputs if link else None,
        bitcode_bytes=link.bitcode_bytes if link else None,
        generated=link.generated if link else None,
        image_bytes=next((artifacts[n] for n in ("bzImage", "Image", "Image.gz") if n in artifacts), None),
        vmlinux_bytes=artifacts.get("vmlinux"),
        text_bytes=sizes.get("text"),
        data_bytes=sizes.get("data"),
        bss_bytes=sizes.get("bss"),
    )


def history_path() -> Path:
    """Where it is kept."""
    return user_data_dir() / "history.sqlite3"


@contextmanager
def _opened(path: Path) -> Iterator[sqlite3.Connection]:
    """The file, made when it is missing.

    :raises UsageError: when it cannot be read or written, is damaged, or of a later klto.
    """
    try:
        with closing(sqlite3.connect(path, timeout=_PATIENCE)) as connection:
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if version > _VERSION:
                raise UsageError(f"{path} is of a later klto (version {version})", "use that klto")
            if version == 0:
                with connection:
                    columns = ", ".join(_COLUMNS)
                    connection.execute(
                        f"CREATE TABLE IF NOT EXISTS runs ({columns}, PRIMARY KEY (build_dir, started))"
                    )
                    connection.execute(f"PRAGMA user_version = {_VERSION}")
            yield connection
    except sqlite3.Error as error:
        raise UsageError(
            f"cannot use the history {path}: {error}", "move it away to begin a new one"
        ) from error


def append(run: Run, path: Path | None = None) -> None:
    """Add a run; the same run once only.

    :raises UsageError: when the history cannot be written.
    """
    path = path or history_path()
    make_directory(path.parent)
    with _opened(path) as connection, connection:
        marks = ", ".join("?" * len(_COLUMNS))
        connection.execute(f"INSERT OR REPLACE INTO runs VALUES ({marks})", astuple(run))


def read_history(path: Path | None = None) -> list[Run]:
    """All runs, oldest first; none when there is no history yet.

    :raises UsageError: when it cannot be read.
    """
    path = path or history_path()
    if not path.exists():
        return []
    with _opened(path) as connection:
        rows = connection.execute(f"SELECT {', '.join(_COLUMNS)} FROM runs ORDER BY started").fetchall()
    return [Run(*row) for row in rows]


@dataclass(frozen=True)
class Metric:
    """A figure that is watched. A change counts as a jump above ``share`` of the earlier value, and when it is
    larger than four times what the earlier runs differ from each other."""

    name: str
    label: str
    unit: str
    share: float

    def of(self, run: Run) -> float | None:
        """The value; a link's time and memory only when all of its code was generated, else they say little."""
        if (
            self.name.startswith("link_")
            and run.generated is not None
            and run.generated != run.bitcode_modules
        ):
            return None
        value: float | None = getattr(run, self.name)
        return value


METRICS = (
    Metric("vmlinux_bytes", "vmlinux", "bytes", 0.01),
    Metric("image_bytes", "boot image", "bytes", 0.01),
    Metric("link_seconds", "link", "seconds", 0.25),
    Metric("link_peak_bytes", "link's memory", "bytes", 0.15),
)


@dataclass(frozen=True)
class Jump:
    """A figure that changed at a run, against the median of the runs before."""

    metric: Metric
    run: Run
    before: float
    after: float


def find_jumps(runs: Sequence[Run]) -> list[Jump]:
    """The jumps in one series (runs of one build dir and LTO mode, oldest first).

    After a jump the series begins anew: the same change is pointed out once.
    """
    found = []
    for metric in METRICS:
        before: list[float] = []
        for run in runs:
            value = metric.of(run)
            if value is None or run.status != "done":
                continue
            if before:
                middle = statistics.median(before[-_BEFORE:])
                spread = statistics.median(abs(v - middle) for v in before[-_BEFORE:])
                if abs(value - middle) > max(metric.share * middle, 4 * spread):
                    found.append(Jump(metric, run, middle, value))
                    before.clear()
            before.append(value)
    return sorted(found, key=lambda jump: jump.run.started)


def series_of(runs: Sequence[Run]) -> dict[tuple[str, str, str], list[Run]]:
    """Runs by build dir, architecture and LTO mode."""
    found: dict[tuple[str, str, str], list[Run]] = {}
    for run in runs:
        found.setdefault((run.build_dir, run.arch, run.lto), []).append(run)
    return found
