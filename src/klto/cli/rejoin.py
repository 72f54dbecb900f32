"""``klto rejoin``: merges the split sections of a relocatable object."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def configure(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("source", metavar="IN", type=Path, help="a relocatable object")
    parser.add_argument(
        "-o", dest="output", metavar="OUT", type=Path, required=True, help="write the result here"
    )
    parser.add_argument(
        "-e",
        dest="entry",
        metavar="SYMBOL",
        help="the entry, whose section comes first (default: as IN has it)",
    )
    parser.add_argument("--linker", metavar="LD", help="an ld.lld (default: the newest that is found)")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout, nothing else there")
    parser.add_argument("-q", "--quiet", action="store_true", help="print errors only")


def run(args: argparse.Namespace) -> int:
    """Merge, and say what was proven."""
    from dataclasses import asdict

    from klto.check.rejoin import rejoin

    done = rejoin(args.source, args.output, _linker(args.linker), args.entry)
    if args.json:
        import json

        text = json.dumps({"schema": "klto/rejoin/1", "output": str(args.output), **asdict(done)}, indent=1)
        sys.stdout.write(f"{text}\n")
    elif not args.quiet:
        merged = (
            ", ".join(f"{joined.name} of {len(joined.parts)}" for joined in done.joined) or "nothing to merge"
        )
        print(
            f"{args.output}: {merged}; {done.executable_before} executable sections are "
            f"{done.executable_after} now; {done.symbols} symbols and {done.relocations} relocations are where they "
            "were" + (f"; entry {done.entry}" if done.entry else "")
        )
    return 0


def _linker(given: str | None) -> Path:
    import shutil

    from klto.errors import UsageError
    from klto.kernel.toolchain import find_toolchain

    if given is None:
        return find_toolchain(None, None, None).ld_lld
    found = shutil.which(given)
    if found is None:
        raise UsageError(f"--linker {given}: no such program")
    return Path(found)
