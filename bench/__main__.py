"""``python -m bench [NAME...]``."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path

from bench.pairs import first_line, machine


def main(wanted: list[str]) -> None:
    """Run the named benchmarks, or all."""
    known = sorted(
        p.stem for p in Path(__file__).parent.glob("*.py") if p.stem not in ("__init__", "__main__", "pairs")
    )
    unknown = set(wanted) - set(known)
    if unknown:
        sys.exit(f"no such benchmark: {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    # With it every start of klto compiles klto.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    print(machine())
    print(first_line("clang-19", "--version"), "/", first_line("make", "--version"))
    for name in wanted or known:
        print(f"\n{name}")
        importlib.import_module(f"bench.{name}").main()


if __name__ == "__main__":
    main(sys.argv[1:])
