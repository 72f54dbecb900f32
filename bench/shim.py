"""What the linker shim adds to a link that is not klto's."""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

from bench.pairs import in_turn, quiet
from klto.link.shim import install_shims

PAIRS = 100
TARGET_MS = 5.0


def main() -> None:
    """``ld.lld --version`` through the shim and without it, and a final link's long command line."""
    linker = Path("/usr/lib/llvm-19/bin/ld.lld")
    with tempfile.TemporaryDirectory() as folder:
        shim = install_shims(Path(folder) / "bin", "ld.lld", linker).folder / "ld.lld"
        _measure("--version", shim, linker, ["--version"])
        inputs = [f"drivers/some/where/object{number}.o" for number in range(2000)]
        _measure("--version and 2000 inputs", shim, linker, ["--version", *inputs])


def _measure(name: str, shim: Path, linker: Path, arguments: list[str]) -> None:
    found = in_turn(name, lambda: quiet([shim, *arguments]), lambda: quiet([linker, *arguments]), PAIRS)
    added = statistics.median(a - b for a, b in zip(found.a, found.b, strict=True)) * 1000
    verdict = "met" if added <= TARGET_MS else "MISSED"
    print(f"shim, {name:<38} adds {added:.2f} ms (median of {PAIRS} pairs)  <= {TARGET_MS} ms {verdict}")


if __name__ == "__main__":
    main()
