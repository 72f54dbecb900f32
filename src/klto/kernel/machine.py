"""What this process may use of the machine: CPUs and memory, the limits of its control groups included."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil
from pathlib import Path


@dataclass(frozen=True)
class Machine:
    """CPUs and bytes of memory."""

    #: CPUs that this process may run on, no more than its CPU time quota.
    cpus: int
    memory_total: int
    #: What can be had now without swapping.
    memory_available: int


def machine(root: Path = Path("/")) -> Machine:
    """Look.

    :param root: where ``proc`` and ``sys`` are (for tests).
    """
    cpus = len(os.sched_getaffinity(0))
    meminfo = _meminfo(root / "proc/meminfo")
    total, available = meminfo["MemTotal"], meminfo.get("MemAvailable", meminfo["MemFree"])
    for folder in _own_cgroups(root):
        limit = _number(folder / "memory.max")
        if limit is not None:
            used = (_number(folder / "memory.current") or 0) - _reclaimable(folder / "memory.stat")
            total, available = min(total, limit), min(available, max(0, limit - used))
        quota = _words(folder / "cpu.max")
        if len(quota) == 2 and quota[0].isdigit():
            cpus = min(cpus, max(1, ceil(int(quota[0]) / int(quota[1]))))
    return Machine(cpus, total, available)


def _meminfo(path: Path) -> dict[str, int]:
    """/proc/meminfo in bytes (its kB are KiB, proc(5))."""
    lines = (line.split() for line in path.read_text().splitlines())
    return {words[0].rstrip(":"): int(words[1]) * 1024 for words in lines if len(words) > 1}


def _own_cgroups(root: Path) -> Iterator[Path]:
    """This process's control group and those above it (version 2; cgroups(7))."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        if line.startswith("0::/"):
            top = root / "sys/fs/cgroup"
            folder = top / line[4:]
            while folder != top and top in folder.parents:
                yield folder
                folder = folder.parent
            # In a container the top is a group with limits too; on a machine it has no such files.
            yield top


def _reclaimable(stat: Path) -> int:
    """Page cache that the group can give back, in bytes."""
    for line in _text(stat).splitlines():
        if line.startswith("inactive_file "):
            return int(line.split()[1])
    return 0


def _number(path: Path) -> int | None:
    words = _words(path)
    return int(words[0]) if words and words[0].isdigit() else None


def _words(path: Path) -> list[str]:
    return _text(path).split()


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""  # no such limit
