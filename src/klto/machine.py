"""What this machine lets this process use: processors and memory."""

from __future__ import annotations

import os

#: Memory for one compile job. clang's largest resident set over the objects of an x86_64 6.12 kernel was
#: below 300 MB; twice that leaves room for larger configurations.
_BYTES_PER_JOB = 600 << 20


def usable_cpus() -> int:
    """Processors that this process may run on (sched_getaffinity), at least 1."""
    return max(1, len(os.sched_getaffinity(0)))


def memory_bytes() -> tuple[int, int]:
    """Memory in bytes: (all there is, what can be had without swapping).

    From /proc/meminfo (MemTotal, MemAvailable), lowered to the limits of this process's cgroup (version 2).
    """
    fields = {}
    with open("/proc/meminfo") as stream:
        for line in stream:
            name, _, rest = line.partition(":")
            fields[name] = int(rest.split()[0]) * 1024
    total, available = fields["MemTotal"], fields["MemAvailable"]
    for limit, used in _cgroup_limits():
        total = min(total, limit)
        available = min(available, max(0, limit - used))
    return total, available


def _cgroup_limits() -> list[tuple[int, int]]:
    """(memory.max, memory.current) of this process's cgroup and those above it that set a limit."""
    try:
        with open("/proc/self/cgroup") as stream:
            group = next((line[3:].strip() for line in stream if line.startswith("0::")), None)
    except OSError:
        return []
    found = []
    folder = f"/sys/fs/cgroup{group}" if group else ""
    while len(folder) > len("/sys/fs/cgroup"):
        try:
            with open(f"{folder}/memory.max") as limit, open(f"{folder}/memory.current") as current:
                text = limit.read().strip()
                if text != "max":
                    found.append((int(text), int(current.read())))
        except (OSError, ValueError):
            pass  # The root group has no limit files.
        folder = os.path.dirname(folder)
    return found


def default_jobs() -> int:
    """Jobs to run at once: the usable processors, fewer when memory is short, at least 1."""
    return max(1, min(usable_cpus(), memory_bytes()[1] // _BYTES_PER_JOB))
