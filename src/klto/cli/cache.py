"""``klto cache``: look after the link cache."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from klto.cli.options import add_output_options, size


def configure(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument(
        "action",
        choices=("stats", "verify", "prune"),
        help="stats: what it holds; verify: compare every entry with its checksum; prune: bring it to --max-size",
    )
    parser.add_argument("--cache-dir", type=Path, metavar="DIR", help="default: the one in the user's cache")
    parser.add_argument("--max-size", type=size, metavar="SIZE", help="for prune: 500M, 5G (default), 0")
    add_output_options(parser)


def run(args: argparse.Namespace) -> int:
    """Do it; 0, or 3 when verify dropped entries."""
    from klto.build.plan import default_cache_dir
    from klto.errors import FindingsError, UsageError
    from klto.link import prune
    from klto.link.store import DEFAULT_LIMIT
    from klto.units import size as human

    folder = (args.cache_dir or default_cache_dir()).absolute()
    root = str(folder)
    if folder.exists() and not (folder.is_dir() and os.access(folder, os.R_OK | os.X_OK)):
        raise UsageError(f"no link cache: {root} is no folder that can be read")
    result: dict[str, int | str] = {"schema": "klto/cache/1", "cache_dir": root}
    status = 0
    if args.action == "verify":
        looked, dropped = prune.verify(root, lambda text: print(f"klto: {text}", file=sys.stderr))
        result |= {"verified": looked, "dropped": dropped}
        text = f"{looked} entries verified, {dropped} dropped"
        status = FindingsError.exit_status if dropped else 0
    elif args.action == "prune":
        removed, freed = prune.prune(root, DEFAULT_LIMIT if args.max_size is None else args.max_size)
        result |= {"removed": removed, "freed_bytes": freed}
        text = f"{removed} entries removed, {human(freed)} freed"
    else:
        text = ""
    found = prune.stats(root)
    result |= {"partitions": found.partitions, "entries": found.entries, "bytes": found.bytes}
    if args.json:
        import json

        print(json.dumps(result, indent=2))
    elif not args.quiet:
        kept = f"{found.entries} entries, {human(found.bytes)}, for {found.partitions} sets of options"
        print("\n".join(line for line in (text, f"{kept}: {root}") if line))
    return status
