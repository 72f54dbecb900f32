"""``klto explain``: the failure in a build or boot log."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from klto.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from klto.explain import Explanations


def configure(parser: argparse.ArgumentParser) -> None:
    """Its options."""
    parser.add_argument(
        "log", metavar="LOG", nargs="?", help="a build or boot log, .gz .xz .bz2 too; - or a pipe: stdin"
    )
    parser.add_argument("-b", dest="build_dir", metavar="DIR", type=Path, help="look at this build dir too")
    parser.add_argument("--format", choices=("text", "json"), default="text", help="default: text")
    parser.add_argument("--json", dest="format", action="store_const", const="json", help="as --format json")
    parser.add_argument("--list", action="store_true", help="list every failure that is known")


def run(args: argparse.Namespace) -> int:
    """Explain; 0 whatever was found, 2 by an error when there is nothing to read."""
    from klto.report.explanations import as_json, as_text, listing, listing_json

    if args.list:
        from klto.explain.knowledge import entries

        _write(listing_json(entries()) if args.format == "json" else listing(entries()))
        return 0
    if args.build_dir is not None and not args.build_dir.is_dir():
        raise UsageError(
            f"no build dir {args.build_dir}", "-b takes the folder that holds .config and vmlinux"
        )
    found = _explained(args)
    if args.format == "json":
        _write(as_json(found))
    else:
        _write(as_text(found, shutil.get_terminal_size((100, 24)).columns))
    return 0


def _explained(args: argparse.Namespace) -> Explanations:
    from klto.explain import explain_file, explain_log

    if args.log not in (None, "-"):
        return explain_file(Path(args.log), args.build_dir)
    if args.log is None and args.build_dir is not None:
        log = args.build_dir / ".klto" / "build.log"
        if not log.is_file():
            raise UsageError(
                f"{args.build_dir} has no log of a build by klto", "name the log: klto explain LOG -b DIR"
            )
        return explain_file(log, args.build_dir)
    if args.log is None and os.isatty(sys.stdin.fileno()):
        raise UsageError("no log to read", "klto explain build.log, or: make ... 2>&1 | klto explain")
    return explain_log(sys.stdin.buffer, args.build_dir)


def _write(text: str) -> None:
    sys.stdout.buffer.write(text.encode("utf-8", "replace"))
