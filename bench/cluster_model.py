"""What a cluster of 1 to 1,024 cores makes of an LTO link: a discrete-event model of klto's scheduling.

Fed with the seconds of each backend that a distributed link has recorded in the link cache (``times/*.json``), or
with the file that ``KLTO_MODEL_TIMES`` names; the costs below are parameters, each with where it comes from. A
20,000-module kernel is drawn from the recorded times, with a fixed seed.
"""

from __future__ import annotations

import heapq
import json
import os
import random
from dataclasses import dataclass
from pathlib import Path

from klto.files import user_cache_dir

CORES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


@dataclass(frozen=True)
class Costs:
    """Seconds, and bytes a second.

    :ivar thin_link: for each module: 0.4 s for 924 modules.
    :ivar prepare: this side's work for each module before its job can be sent: 3.8 CPU seconds for 924 modules
        that all came from the cache, the linker's and Python's start taken off; on a busy machine.
    :ivar task: the scheduler's for each task: about a millisecond by distributed's own documentation.
    :ivar final_link: for each module: 0.5 s for 924 modules.
    :ivar network: of this machine's link, 1 Gbit/s.
    :ivar moved: bytes to and from a worker for each module, compressed.
    """

    thin_link: float = 0.4 / 924
    prepare: float = 2.5 / 924
    task: float = 0.001
    final_link: float = 0.5 / 924
    network: float = 125e6
    moved: float = 40e3


def makespan(seconds: list[float], cores: int, costs: Costs) -> float:
    """Seconds of the backends: longest first, each job leaving this side no sooner than the scheduler and the
    network let it."""
    gap = max(costs.task, costs.moved / costs.network)
    free = [0.0] * cores
    ready = end = 0.0
    for length in sorted(seconds, reverse=True):
        ready += gap
        begin = max(heapq.heappop(free), ready)
        heapq.heappush(free, begin + length)
        end = max(end, begin + length)
    return end


def total(seconds: list[float], cores: int, costs: Costs) -> float:
    """Seconds of the whole link."""
    serial = (costs.thin_link + costs.prepare + costs.final_link) * len(seconds)
    return serial + makespan(seconds, cores, costs)


def limit(seconds: list[float], cores: int, costs: Costs) -> str:
    """What most of the time goes into that more cores would not help."""
    count = len(seconds)
    parts = {
        "backends": sum(seconds) / cores,
        "longest backend": max(seconds),
        "thin link": costs.thin_link * count,
        "preparation": costs.prepare * count,
        "final link": costs.final_link * count,
        "scheduler": costs.task * count,
        "network": costs.moved / costs.network * count,
    }
    return max(parts, key=lambda name: parts[name])


def recorded() -> list[float]:
    """Backends' seconds of the largest link on record."""
    named = os.environ.get("KLTO_MODEL_TIMES")
    files = [Path(named)] if named else list((user_cache_dir() / "link" / "times").glob("*.json"))
    found = [[float(s) for s in json.loads(file.read_text()).values()] for file in files]
    return max(found, key=len, default=[])


def main() -> None:
    """Print the table."""
    seconds = recorded()
    if not seconds:
        print("no distributed link on record: link one with klto build --cluster local:2")
        return
    costs = Costs()
    large = random.Random(20_000).choices(seconds, k=20_000)
    for times in (seconds, large):
        alone = total(times, 1, costs)
        print(f"{len(times)} modules, {sum(times):.0f} CPU seconds of backends; modelled, not measured")
        for cores in CORES:
            took = total(times, cores, costs)
            share = alone / took / cores
            most = limit(times, cores, costs)
            print(f"{cores:5} cores {took:8.1f} s  {alone / took:6.1f} x  {share:4.0%}  most: {most}")
