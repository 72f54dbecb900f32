"""``klto check -b`` beside ``llvm-readelf -S -s -r`` over the same ELF files, on one built kernel."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from bench.objects import LLVM, _kernel
from bench.pairs import HEADER, in_turn, quiet
from klto.check.build_dir import BuildDir

PAIRS = 5
TARGET = 1 / 3
#: Times the bytes of the largest file's tables.
MEMORY_TARGET = 3


def main() -> None:
    """The ratio of times, and the peak of memory beside the largest file."""
    _, build_dir = _kernel()
    build = BuildDir(build_dir)
    files = [str(build_dir / subject.name) for subject in build.subjects if subject.elf is not None]
    files += [str(build_dir / subject.name) for _, subject in build.link.native]
    command = [sys.executable, "-m", "klto", "check", "-q", "-b", str(build_dir)]
    readelf = [str(LLVM / "llvm-readelf"), "-S", "-s", "-r", "-W", *files]
    print(HEADER)
    found = in_turn(
        f"klto check -b / llvm-readelf, {len(files)} files",
        lambda: quiet(command),
        lambda: quiet(readelf),
        PAIRS,
    )
    print(found.row(TARGET), flush=True)
    _memory(command, build_dir / "vmlinux.o")


def _memory(command: list[str], largest: Path) -> None:
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    peak, size = used.ru_maxrss * 1024, largest.stat().st_size
    verdict = "met" if peak <= MEMORY_TARGET * size else "MISSED"
    print(
        f"peak {peak >> 20} MiB, {largest.name} {size >> 20} MiB: {peak / size:.2f}  <= {MEMORY_TARGET} {verdict}"
    )


if __name__ == "__main__":
    main()
