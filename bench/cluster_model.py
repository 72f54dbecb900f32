"""What a cluster of 1 to 1,024 cores makes of an LTO link: a discrete-event model of klto's scheduling.

Fed with what ``bench cluster`` has measured: the CPU seconds of each backend, and what a module costs each of the
processes that it goes through. A 20,000-module kernel is drawn from the recorded backends, with a fixed seed.
"""

from __future__ import annotations

import heapq
import json
import random
from dataclasses import dataclass
from typing import Any

from bench.cluster import MEASURED
from klto.files import user_cache_dir

CORES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
AIM_CORES, AIM, LARGE = 64, 0.85, 20_000


@dataclass(frozen=True)
class Costs:
    """Seconds for each module, all measured but for the network and the number of helpers.

    :ivar look: CPU of reading, hashing and packing it and of its symbols, by ``helpers`` at a time on the link's
        machine.
    :ivar client: CPU of the link's own process. ``scheduler``: of Dask's. Both without what they take by the second,
        as far as two runs of different length tell it apart. ``worker``: of a worker's, backends aside.
    :ivar network: bytes for each module there and back; ``speed``: bytes a second of the link's machine, 1 Gbit/s.
    :ivar start: seconds before the thin link and after the final link, once.
    """

    thin_link: float
    final_link: float
    look: float
    client: float
    scheduler: float
    worker: float
    network: float
    start: float
    helpers: int = 4
    speed: float = 125e6

    def stages(self) -> dict[str, float]:
        """What lies between a module and its backend, one module after the other, all stages at once."""
        return {
            "looking at modules, packing": self.look / self.helpers,
            "the link's process": self.client,
            "scheduler": self.scheduler,
            "network": self.network / self.speed,
        }


def costs_of(run: dict[str, Any], other: dict[str, Any], cpus: int) -> Costs:
    """The costs that a run has shown.

    :param other: a run of the same link that took another time.
    """
    count = run["modules"]

    def by_module(name: str) -> float:
        """Seconds for each module; the more of them, the more a second takes besides."""
        longer: float = run["backend_seconds"] - other["backend_seconds"]
        by_second = min(0.5, max(0.0, (run[name] - other[name]) / longer))
        rest = float(run[name] - by_second * run["backend_seconds"])
        return float(max(0.0, rest) / count / (1 - by_second))

    between = run["backend_seconds"] + run["thin_link_seconds"] + run["final_link_seconds"]
    return Costs(
        thin_link=run["thin_link_seconds"] / count,
        final_link=run["final_link_seconds"] / count,
        look=run["helper_cpu_seconds"] / count,
        client=by_module("client_cpu_seconds"),
        scheduler=by_module("scheduler_cpu_seconds"),
        worker=run["worker_cpu_seconds"] / count,
        network=(run["bytes_sent"] + run["bytes_received"]) / count,
        start=max(0.0, run["wall_seconds"] - between),
        helpers=min(4, cpus),
    )


def makespan(seconds: list[float], cores: int, costs: Costs) -> float:
    """Seconds of the backends: longest first, each no sooner than the stages before have let it through."""
    free = [0.0] * cores
    at = dict.fromkeys(costs.stages(), 0.0)
    end = 0.0
    for length in sorted(seconds, reverse=True):
        ready = 0.0
        for stage, cost in costs.stages().items():
            ready = at[stage] = max(at[stage], ready) + cost
        done = max(heapq.heappop(free), ready) + costs.worker + length
        heapq.heappush(free, done)
        end = max(end, done)
    return end


def total(seconds: list[float], cores: int, costs: Costs) -> float:
    """Seconds of the whole link."""
    ends = costs.start + (costs.thin_link + costs.final_link) * len(seconds)
    return ends + makespan(seconds, cores, costs)


def on_one_machine(seconds: list[float], workers: int, costs: Costs, cpus: int) -> float:
    """The same where workers, scheduler and link share the processors."""
    each = costs.look + costs.client + costs.scheduler + costs.worker
    busy = (sum(seconds) + each * len(seconds)) / cpus
    ends = costs.start + (costs.thin_link + costs.final_link) * len(seconds)
    return ends + max(makespan(seconds, workers, costs), busy)


def limit(seconds: list[float], cores: int, costs: Costs) -> str:
    """What takes most of the time."""
    count = len(seconds)
    parts = {
        "backends": (sum(seconds) + costs.worker * count) / cores,
        "longest backend": max(seconds),
        "thin link": costs.thin_link * count,
        "final link": costs.final_link * count,
        **{stage: cost * count for stage, cost in costs.stages().items()},
    }
    return max(parts, key=lambda name: parts[name])


def main() -> None:
    """Check the model against what was measured, then print the tables."""
    path = user_cache_dir() / MEASURED
    if not path.exists():
        print("not measured: run bench cluster first")
        return
    measured = json.loads(path.read_text())
    seconds: list[float] = measured["seconds"]
    runs, cpus = measured["runs"], measured["cpus"]
    costs = costs_of(runs["1"], runs["2"], cpus)
    for workers, run in runs.items():
        modelled = on_one_machine(seconds, int(workers), costs, cpus)
        print(
            f"{workers} worker(s) on this machine: measured {run['wall_seconds']:.1f} s, "
            f"modelled from the run with one {modelled:.1f} s ({modelled / run['wall_seconds'] - 1:+.0%})"
        )
    costs = costs_of(runs["2"], runs["1"], 4)
    print("for each module, ms: " + ", ".join(f"{k} {1000 * v:.2f}" for k, v in costs.stages().items()))
    large = random.Random(LARGE).choices(seconds, k=LARGE)
    for times in (seconds, large):
        alone, between = total(times, 1, costs), makespan(times, 1, costs)
        print(f"{len(times)} modules, {sum(times):.0f} CPU seconds of backends; modelled, not measured")
        for cores in CORES:
            took, inner = total(times, cores, costs), makespan(times, cores, costs)
            share = alone / took / cores
            aim = ""
            if (len(times), cores) == (LARGE, AIM_CORES):
                aim = f"  >= {AIM:.0%} {'met' if share >= AIM else 'MISSED'}"
            print(
                f"{cores:5} cores {took:8.1f} s  {alone / took:6.1f} x  {share:4.0%}"
                f"  without thin and final link {between / inner / cores:4.0%}"
                f"  most: {limit(times, cores, costs)}{aim}"
            )
