"""``klto compare``: two or more builds side by side."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from klto.cli.options import add_output_options


def configure(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument(
        "paths",
        nargs="+",
        metavar="PATH",
        type=Path,
        help="build dirs, run records (.klto/record.json or copies of it) or images; the first is the base",
    )
    parser.add_argument(
        "--format",
        choices=("text", "json", "markdown"),
        default="text",
        help="markdown: for a mailing list, 75 columns wide",
    )
    parser.add_argument(
        "--top", type=int, default=10, metavar="N", help="rows of a table (default 10; 0: all)"
    )
    parser.add_argument(
        "--no-imports", action="store_true", help="do not ask the linker what ThinLTO imports"
    )
    add_output_options(parser)


def run(args: argparse.Namespace) -> int:
    """0; by an error 2."""
    from klto.report.compare import compare
    from klto.report.compare_text import as_json, lines
    from klto.report.side import open_side

    form = "json" if args.json else args.format
    found = compare([open_side(path) for path in args.paths], with_imports=not args.no_imports)
    if form == "json":
        import json

        json.dump(as_json(found), sys.stdout, indent=1)
        print()
    elif not args.quiet:
        print("\n".join(lines(found, markdown=form == "markdown", top=max(0, args.top))))
    return 0
