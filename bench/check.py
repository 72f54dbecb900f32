"""``klto check -b`` beside ``llvm-readelf -S -s -r`` over the same ELF files, on one built kernel.

readelf reads the ELF files; the check also reads the bitcode of the vmlinux.o link and what make saved about it. The
rows below the first are its parts, each with Python's start. Python's modules are compiled, as installing leaves them.
"""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np

from bench.objects import LLVM, _kernel
from bench.pairs import HEADER, in_turn, quiet
from klto.check.build_dir import BuildDir
from klto.objects.elf import Elf
from klto.objects.source import read_whole

PAIRS = 7
TARGET = 1 / 3
#: Times the bytes of the largest file's tables.
MEMORY_TARGET = 3
#: "Section Types" of the gABI: SYMTAB, STRTAB, RELA, REL, DYNSYM, SYMTAB_SHNDX, RELR.
_TABLES = (2, 3, 4, 9, 11, 18, 19)

_START = """
import argparse, sys
import klto.check.run, klto.cli.check, klto.report.findings
from pathlib import Path
from klto.check.build_dir import BuildDir
from klto.check.rule import all_rules
rules, build = all_rules(), BuildDir(Path(sys.argv[1]))
"""
_ELF = f"""{_START}
for subject in build.subjects():
    for rule in rules:
        list(rule.of_object(subject))
    subject.close()
"""
_BITCODE = f"""{_START}
klto.check.run.check_link(build.link, rules)
"""


def main() -> None:
    """The ratio of times with its parts, and the peak of memory beside the largest file's tables."""
    _, build_dir = _kernel()
    build = BuildDir(build_dir)
    files = [str(build_dir / subject.name) for subject in build.subjects() if subject.elf is not None]
    files += [str(build_dir / subject.name) for _, subject in build.link.native]
    command = [sys.executable, "-m", "klto", "check", "-q", "-b", str(build_dir)]
    one_cpu = ["taskset", "-c", str(min(os.sched_getaffinity(0)))]
    readelf = [str(LLVM / "llvm-readelf"), "-S", "-s", "-r", "-W", *files]
    print(HEADER)
    name = f"klto check -b / llvm-readelf, {len(files)} files"
    print(in_turn(name, lambda: quiet(command), lambda: quiet(readelf), PAIRS).row(TARGET), flush=True)
    parts = {
        "  both on one CPU": command,
        "  ELF files alone, on one CPU": [sys.executable, "-c", _ELF, str(build_dir)],
        f"  {len(build.link.bitcode)} bitcode files alone, on one CPU": [
            sys.executable,
            "-c",
            _BITCODE,
            str(build_dir),
        ],
        "  Python's start, on one CPU": [sys.executable, "-c", _START, str(build_dir)],
    }
    for name, part in parts.items():
        found = in_turn(name, partial(quiet, [*one_cpu, *part]), lambda: quiet([*one_cpu, *readelf]), PAIRS)
        a, b = (1000 * median(side) for side in (found.a, found.b))
        print(f"{name:<44} {a:>10.1f} {b:>10.1f} {found.median:>7.3f}", flush=True)
    _memory([*one_cpu, *command], [sys.executable, "-c", _START, str(build_dir)], files)


def _memory(command: list[str], idle: list[str], files: list[str]) -> None:
    """On one CPU all is done in one process."""
    peak, start = _peak(command), _peak(idle)
    tables, largest = max((_tables(path), path) for path in files)
    for what, used in (("peak", peak), ("peak over that of Python with the same imports", peak - start)):
        verdict = "met" if used <= MEMORY_TARGET * tables else "MISSED"
        print(
            f"{what} {used / 2**20:.1f} MiB, tables of {Path(largest).name} {tables / 2**20:.1f} MiB: "
            f"{used / tables:.2f}  <= {MEMORY_TARGET} {verdict}",
            flush=True,
        )


def _peak(command: list[str]) -> int:
    """Bytes; pages of mapped files count."""
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    return used.ru_maxrss * 1024


def _tables(path: str) -> int:
    """Bytes of an ELF file's section headers, symbols, strings and relocations."""
    sections = Elf(read_whole(path), path).sections
    chosen = sections["sh_size"][np.isin(sections["sh_type"], _TABLES)]
    return int(chosen.sum()) + sections.nbytes


if __name__ == "__main__":
    main()
