"""Timing two things in turn."""

from __future__ import annotations

import math
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Ratio:
    """Seconds of A and of B by pair; the median of A/B is what a claim is about."""

    name: str
    a: tuple[float, ...]
    b: tuple[float, ...]

    @property
    def median(self) -> float:
        """The median of the pairs' ratios."""
        return statistics.median(x / y for x, y in zip(self.a, self.b, strict=True))

    def interval(self) -> tuple[float, float]:
        """Where the median of very many pairs' ratios lies, as far as these tell: a 95 % confidence interval.

        By order statistics (the sign test's), which assumes nothing of how the ratios are spread. With fewer than six
        pairs there is none; the least and the largest ratio are returned then.
        """
        ratios = sorted(x / y for x, y in zip(self.a, self.b, strict=True))
        count, below, rank = len(ratios), 0, 0
        while (below := below + math.comb(count, rank)) <= 0.025 * 2**count:
            rank += 1
        rank = max(rank, 1)
        return ratios[rank - 1], ratios[count - rank]

    def swapped(self, name: str) -> Ratio:
        """B/A."""
        return Ratio(name, self.b, self.a)

    def row(self, target: float) -> str:
        """One line of a table: medians in milliseconds, the ratio, the target, whether it is met."""
        a, b = (statistics.median(side) * 1000 for side in (self.a, self.b))
        verdict = "met" if self.median <= target else "MISSED"
        return f"{self.name:<44} {a:>10.1f} {b:>10.1f} {self.median:>7.3f}  <= {target:<6.3g} {verdict}"


HEADER = f"{'what':<44} {'A ms':>10} {'B ms':>10} {'A/B':>7}  target"


def in_turn(
    name: str, a: Callable[[], object], b: Callable[[], object], pairs: int, *, warm_up: bool = True
) -> Ratio:
    """Time A B A B...; one pair before does not count."""
    if warm_up:
        a()
        b()
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(pairs):
        for side, call in zip(times, (a, b), strict=True):
            begun = time.perf_counter()
            call()
            side.append(time.perf_counter() - begun)
    return Ratio(name, tuple(times[0]), tuple(times[1]))


def quiet(argv: Sequence[str | Path], **more: object) -> None:
    """Run a command whose output is of no interest, and which must succeed."""
    subprocess.run(
        [str(a) for a in argv],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=True,
        **more,
    )  # type: ignore[call-overload]


def machine() -> str:
    """The class of machine and the versions that a figure depends on."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 30
    cpus = len(os.sched_getaffinity(0))
    linux, python = platform.release().split("-")[0], platform.python_version()
    return f"{model}, {cpus} CPUs, {memory} GiB, Linux {linux}, Python {python}"


def first_line(*argv: str) -> str:
    """What a tool says of its version."""
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout.splitlines()[0]
