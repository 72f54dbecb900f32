"""``klto history``: what the builds of a tree were like, and where they jumped."""

from __future__ import annotations

import argparse
import os
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from klto.cli.options import add_output_options

if TYPE_CHECKING:
    from collections.abc import Iterator

    from klto.report.history import Jump, Run

#: Columns and lines of a plot.
_WIDTH, _HEIGHT = 78, 10

#: Share of the largest value that a plot is high at least.
_LEAST_SPAN = 0.02


def configure(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument(
        "-C", dest="tree", metavar="DIR", type=Path, default=Path(), help="kernel tree (default .)"
    )
    parser.add_argument(
        "-b", dest="build_dir", metavar="DIR", type=Path, help="only builds in this build dir"
    )
    parser.add_argument("-a", dest="arch", metavar="ARCH", help="only builds for this architecture")
    parser.add_argument("--all", action="store_true", help="builds of every tree")
    parser.add_argument(
        "--limit", type=int, default=20, metavar="N", help="the last N runs (default 20; 0: all)"
    )
    parser.add_argument("--no-plot", action="store_true", help="list only")
    add_output_options(parser)


def run(args: argparse.Namespace) -> int:
    """List and plot; 0."""
    from klto.report.history import find_jumps, history_path, read_history, series_of

    runs = [found for found in read_history() if _wanted(found, args)]
    # A jump of the runs that are shown can be one against runs that are not.
    jumps = [jump for of_one in series_of(runs).values() for jump in find_jumps(of_one)]
    runs = runs[-args.limit :] if args.limit > 0 else runs
    jumps = [jump for jump in jumps if jump.run in runs]
    series = series_of(runs)
    if args.json:
        import json

        print(json.dumps({
            "schema": "klto/history/1",
            "file": os.fspath(history_path()),
            "runs": [asdict(found) for found in runs],
            "jumps": [
                {
                    "metric": jump.metric.name, "build_dir": jump.run.build_dir, "started": jump.run.started,
                    "before": jump.before, "after": jump.after,
                }
                for jump in jumps
            ],
        }, indent=1))  # fmt: skip
        return 0
    if args.quiet:
        return 0
    if not runs:
        print(f"no builds on record{'' if args.all else f' of {_place(args)}'} (--all shows every tree's)")
        return 0
    for (build_dir, arch, lto), of_one in series.items():
        print(f"{build_dir}: {arch}, {lto} LTO" if lto != "none" else f"{build_dir}: {arch}, no LTO")
        print("\n".join(_lines(of_one)))
        if not args.no_plot:
            for text in _plots(of_one):
                print(text)
        print()
    for jump in jumps:
        print(_jump_line(jump))
    return 0


def _place(args: argparse.Namespace) -> str:
    place: Path = args.build_dir or args.tree
    return os.path.realpath(place)


def _wanted(found: Run, args: argparse.Namespace) -> bool:
    if args.arch is not None and found.arch != args.arch:
        return False
    if args.build_dir is not None:
        return os.path.realpath(found.build_dir) == _place(args)
    return args.all or _place(args) in (os.path.realpath(found.tree), os.path.realpath(found.build_dir))


def _date(started: float) -> str:
    return datetime.fromtimestamp(started).strftime("%Y-%m-%d %H:%M")


def _lines(runs: list[Run]) -> Iterator[str]:
    from klto.units import duration, size

    yield _columns("built", "version", "status", "build", "link", "memory", "modules", "vmlinux")
    for found in runs:
        link = duration(found.link_seconds) if found.link_seconds is not None else "-"
        memory = size(found.link_peak_bytes) if found.link_peak_bytes else "-"
        modules = "-" if found.bitcode_modules is None else str(found.bitcode_modules)
        if found.generated is not None:
            modules = f"{found.generated}/{modules}"
        wall = duration(found.wall_seconds) if found.wall_seconds is not None else "-"
        vmlinux = f"{found.vmlinux_bytes:,}" if found.vmlinux_bytes else "-"
        date = _date(found.started)
        yield _columns(date, found.version, found.status, wall, link, memory, modules, vmlinux)


def _columns(date: str, version: str, status: str, *figures: str) -> str:
    wall, link, memory, modules, vmlinux = figures
    return f"  {date:<16}  {version:<10}  {status:<11}  {wall:>7}  {link:>7}  {memory:>8}  {modules:>11}  {vmlinux}"


def _plots(runs: list[Run]) -> Iterator[str]:
    """A plot of each figure that has at least three values and changes.

    plotext's place is the process: one figure at a time.
    """
    import plotext

    from klto.report.history import METRICS

    for metric in METRICS:
        points = [(i + 1, v) for i, found in enumerate(runs) if (v := metric.of(found)) is not None]
        values = [value for _, value in points]
        if len(values) < 3 or min(values) == max(values):
            continue
        scale, unit = (1 << 20, "MiB") if metric.unit == "bytes" else (1, "s")
        plotext.clear_figure()
        plotext.theme("clear")
        plotext.plot_size(_WIDTH, _HEIGHT)
        low, high = min(values) / scale, max(values) / scale
        if high - low < _LEAST_SPAN * high:
            # A few bytes of a kernel are no slope.
            margin = (_LEAST_SPAN * high - (high - low)) / 2
            plotext.ylim(low - margin, high + margin)
        plotext.plot([i for i, _ in points], [value / scale for value in values], marker="dot")
        plotext.title(f"{metric.label}, {unit}, by run")
        plotext.xticks([i for i, _ in points] if len(points) < 16 else None)
        yield plotext.uncolorize(plotext.build()).rstrip()


def _jump_line(jump: Jump) -> str:
    from klto.report.compare_text import value_text

    before, after = (value_text(value, jump.metric.unit) for value in (jump.before, jump.after))
    percent = 100 * (jump.after - jump.before) / jump.before
    where = f"{_date(jump.run.started)} ({jump.run.build_dir})"
    return f"jump: {jump.metric.label} {before} -> {after} ({percent:+.1f}%) in the build of {where}"
