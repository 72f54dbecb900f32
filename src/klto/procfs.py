"""What running processes use, read from /proc (Documentation/filesystems/proc.rst)."""

from __future__ import annotations

import os
from dataclasses import dataclass

_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Resident:
    """A process's resident set now and at its largest, in bytes (VmRSS and VmHWM of /proc/PID/status)."""

    pid: int
    name: str
    now: int
    peak: int


def descendants(pid: int) -> list[int]:
    """``pid`` and all its living descendants (/proc/PID/task/TID/children)."""
    found, waiting = [], [pid]
    while waiting:
        current = waiting.pop()
        found.append(current)
        waiting.extend(_children(current))
    return found


def _children(pid: int) -> list[int]:
    children: list[int] = []
    try:
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/children") as stream:
                children.extend(int(word) for word in stream.read().split())
    except OSError:
        return children  # It has ended meanwhile.
    return children


def resident(pid: int) -> Resident | None:
    """The process's memory, or None when it has ended (or is a kernel thread or zombie)."""
    fields = {}
    try:
        with open(f"/proc/{pid}/status") as stream:
            for line in stream:
                key, _, value = line.partition(":")
                if key in ("Name", "VmRSS", "VmHWM"):
                    fields[key] = value.strip()
    except OSError:
        return None
    if "VmRSS" not in fields:
        return None
    return Resident(pid, fields["Name"], _kib(fields["VmRSS"]), _kib(fields.get("VmHWM", fields["VmRSS"])))


def _kib(text: str) -> int:
    return int(text.split()[0]) * 1024


def cpu_seconds(pids: list[int]) -> float:
    """User and system time of the processes and of the children they have waited for
    (utime, stime, cutime, cstime of /proc/PID/stat)."""
    total = 0
    for pid in pids:
        try:
            with open(f"/proc/{pid}/stat") as stream:
                fields = stream.read().rpartition(")")[2].split()
        except OSError:
            continue  # It has ended meanwhile; its time is in its parent's cutime.
        total += sum(int(field) for field in fields[11:15])
    return total / _TICKS


def start_time(pid: int) -> int | None:
    """When a process started, in clock ticks since boot (starttime of /proc/PID/stat); None when there is none."""
    try:
        with open(f"/proc/{pid}/stat") as stream:
            return int(stream.read().rpartition(")")[2].split()[19])
    except OSError:
        return None
