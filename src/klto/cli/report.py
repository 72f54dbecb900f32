"""``klto report``: a build as one HTML file, or as a trace for Perfetto."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from klto.cli.options import add_output_options, add_tree_options


def configure(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument(
        "records",
        nargs="*",
        metavar="RECORD",
        type=Path,
        help="build dirs or run records; the last is reported, and compared with the first",
    )
    add_tree_options(parser)
    parser.add_argument(
        "-o", dest="output", metavar="FILE", type=Path, help="the HTML file (default klto-report.html)"
    )
    parser.add_argument(
        "--trace", metavar="FILE", type=Path, help="write Chrome trace events instead, which Perfetto opens"
    )
    add_output_options(parser)


def run(args: argparse.Namespace) -> int:
    """Write the file; 0."""
    from klto.errors import UsageError
    from klto.files import write_whole
    from klto.report.side import check_comparable, find_build_dir, open_record

    if args.records and args.build_dir:
        raise UsageError("give records or -b DIR, not both")
    paths = args.records or [find_build_dir(args.tree, args.build_dir, args.arch)]
    sides = [open_record(path) for path in paths]
    if args.trace is not None:
        from klto.report.trace import encode_trace

        if args.output is not None:
            raise UsageError("give -o or --trace, not both")
        if len(sides) > 1:
            raise UsageError(f"a trace is of one build, {len(sides)} were given")
        path, text = args.trace, encode_trace(sides[0])
    else:
        from klto.report.page import render

        check_comparable(sides)
        path, text = args.output or Path("klto-report.html"), render(sides)
    if path.is_dir():
        raise UsageError(f"cannot write {path}: it is a directory", "name a file")
    write_whole(path, text)
    if args.json:
        import json

        print(json.dumps({"schema": "klto/report/1", "file": os.fspath(path), "bytes": path.stat().st_size}))
    elif not args.quiet:
        print(path)
    return 0
