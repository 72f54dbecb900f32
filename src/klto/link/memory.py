"""How much memory a link will take, how much it may take, and how many backends at once follow from that.

The model was fitted to ld.lld 19's largest resident set on cold and cached links of the x86_64 6.12 test kernel and of
every second, fourth and eighth of its objects (3.3 to 23.5 MB of bitcode, 1, 2 and 4 backends); the links it is
tested on are others (tests/real/test_memory_real.py), and bench/README.md has the table. What this machine has
measured before corrects it.
"""

from __future__ import annotations

import json
import os

from klto.machine import memory_bytes
from klto.report.units import size as human

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from klto.link.inputs import Inputs

#: Bytes of a link of nothing: LLVM's shared library and its tables.
_BASE = 66e6
#: Bytes for each byte of bitcode: the file itself, its summary, its native object, the output.
_PER_BITCODE = 5.25
#: Bytes for each byte of native input: itself and the output.
_PER_NATIVE = 2.0
#: Bytes of the backends at work: some for the pool, and so many for each byte of the largest modules that can
#: be at work at once.
_POOL, _PER_BACKEND = 10e6, 42.0
#: Bytes for each byte of bitcode in full LTO: all of it is in memory at once, as IR.
_PER_FULL = 29.0

#: An estimate is right within this factor; a link is refused only when it is hopeless beyond it.
TOLERANCE = 1.25

#: The environment variables: the limit in bytes that the user set, and the file of what was measured here.
ENV_MEMORY, ENV_MEASURED = "KLTO_MEMORY", "KLTO_MEASURED"

#: Measurements that count, and bytes of their file after which the older half is dropped.
_RECENT, _MOST_BYTES = 9, 1 << 17

#: Share of the available memory, and bytes, that a link leaves to others when no limit is set.
_RESERVE_SHARE, _RESERVE = 0.05, 256 << 20


def estimate(inputs: Inputs, full: bool, jobs: int, *, corrected: bool = True) -> int:
    """Bytes of the linker's largest resident set.

    :param jobs: backends at once; 0: every module comes from the cache.
    :param corrected: by what was measured on this machine.
    """
    total = _BASE + _PER_NATIVE * inputs.native_bytes
    if full:
        total += _PER_FULL * inputs.bitcode_bytes
    else:
        largest = sorted((module.size for module in inputs.modules), reverse=True)[:jobs]
        total += _PER_BITCODE * inputs.bitcode_bytes + (_POOL if jobs else 0) + _PER_BACKEND * sum(largest)
    return int(total * (_correction("full" if full else "thin") if corrected else 1.0))


def least(inputs: Inputs, full: bool) -> int:
    """Bytes below which the link cannot be done at all: for ThinLTO that of a link of finished modules."""
    return estimate(inputs, full, 0)


class Budget:
    """What a link may use. Values; do not assign but ``hopeless``.

    :ivar limit: bytes that the user allows and that klto keeps the linker within; None when he set none.
    :ivar available: bytes that the machine had when the link began.
    :ivar hopeless: why the link is refused, empty when it is not.
    """

    __slots__ = ("available", "hopeless", "limit")

    def __init__(self, limit: int | None, available: int) -> None:
        self.limit = limit
        self.available = available
        self.hopeless = ""

    @property
    def usable(self) -> int:
        """Bytes to plan with."""
        if self.limit is not None:
            return self.limit
        return int(self.available - max(_RESERVE, _RESERVE_SHARE * self.available))

    def jobs_for(self, inputs: Inputs, full: bool, wanted: int) -> int:
        """Backends at once that fit, at least 1; sets ``hopeless``."""
        need = least(inputs, full)
        # What is available at this moment may be more in the next: only full LTO, which takes all at once, is refused.
        if (full or self.limit is not None) and need > max(0, self.usable) * TOLERANCE:
            allowed = f"{human(self.usable)} {'allowed' if self.limit is not None else 'available'}"
            kind = "full" if full else "thin"
            self.hopeless = f"is not begun: {kind} LTO needs about {human(need)} here, {allowed}"
            if full:
                self.hopeless += f"; --lto thin needs about {human(estimate(inputs, False, 1))}"
            elif self.limit is not None:
                self.hopeless += f"; --memory {_setting(need)} could work"
        jobs = wanted
        while jobs > 1 and estimate(inputs, full, jobs) > self.usable:
            jobs -= 1
        return max(1, jobs)

    def advice(self, reached: int) -> str:
        """What to do when one backend alone has needed too much."""
        if self.limit is None:
            return f"{human(self.available)} were available when it started: end what else uses memory"
        return f"{human(self.limit)} are allowed: the smallest setting that could work is --memory {_setting(reached)}"


def _setting(need: int) -> str:
    return f"{-(-need * 11 // 10 >> 20)}M" if need else "1M"


def budget_of(environment: Mapping[str, str]) -> Budget:
    """The budget that ``klto build`` has set, and what is available now."""
    limit = environment.get(ENV_MEMORY)
    return Budget(int(limit) if limit else None, memory_bytes()[1])


def remember(inputs: Inputs, full: bool, jobs: int, peak: int) -> None:
    """Keep what a link has really used, for the next estimates on this machine."""
    path = os.environ.get(ENV_MEASURED)
    if not path:
        return
    line: dict[str, object] = {
        "kind": "full" if full else "thin",
        "bitcode": inputs.bitcode_bytes,
        "jobs": jobs,
        "estimate": estimate(inputs, full, jobs, corrected=False),
        "peak": peak,
    }
    append_measured(path, line)


#: Bytes of objtool for each byte of bitcode that went into the vmlinux.o it checks, when this machine has not seen
#: one: 504 MB for the 23.5 MB of the x86_64 6.12 test kernel.
_PER_OBJTOOL = 21.5


def remember_finish(path: str | os.PathLike[str], process: str, bitcode_bytes: int, peak: int) -> None:
    """Keep what the largest process after the link has used (objtool, pahole, kallsyms...)."""
    if bitcode_bytes:
        line: dict[str, object] = {
            "kind": "finish",
            "process": process,
            "bitcode": bitcode_bytes,
            "peak": peak,
        }
        append_measured(path, line)


def estimate_finish(
    path: str | os.PathLike[str], bitcode_bytes: int, objtool: bool
) -> tuple[str, int] | None:
    """(name, bytes) of the largest process after the link; None where nothing is known.

    :param path: the file of what was measured here.
    :param objtool: whether vmlinux.o goes through objtool (x86).
    """
    seen = [each for each in measured(path, "finish") if each.get("bitcode", 0) > 0]
    if seen:
        # A kernel of like size says most: debug information makes bitcode large and objtool hardly larger.
        like = min(
            reversed(seen),
            key=lambda each: max(each["bitcode"], bitcode_bytes) / min(each["bitcode"], bitcode_bytes),
        )
        return str(like.get("process", "?")), int(like["peak"] / like["bitcode"] * bitcode_bytes)
    return ("objtool", int(_PER_OBJTOOL * bitcode_bytes)) if objtool else None


def append_measured(path: str | os.PathLike[str], line: dict[str, object]) -> None:
    """Add a line to the file of measurements; one that cannot be written changes nothing."""
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        if os.path.exists(path) and os.path.getsize(path) > _MOST_BYTES:
            with open(path, encoding="utf-8", errors="replace") as stream:
                lines = stream.readlines()
            aside = f"{os.fspath(path)}.{os.getpid()}"
            with open(aside, "w", encoding="utf-8") as out:
                out.writelines(lines[len(lines) // 2 :])
            os.replace(aside, path)
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            os.write(descriptor, (json.dumps(line) + "\n").encode())
        finally:
            os.close(descriptor)
    except OSError:
        return  # Estimates stay what they were.


def measured(path: str | os.PathLike[str], kind: str) -> list[dict[str, float]]:
    """What was measured here of a kind, the newest last; torn lines are left out."""
    found = []
    try:
        with open(path, encoding="utf-8", errors="replace") as stream:
            for line in stream:
                try:
                    value = json.loads(line)
                except ValueError:
                    continue
                if isinstance(value, dict) and value.get("kind") == kind:
                    found.append(value)
    except OSError:
        return []
    return found[-_RECENT:]


def _correction(kind: str) -> float:
    """By what factor this machine's links were larger than estimated; of cold links of a size that says something."""
    path = os.environ.get(ENV_MEASURED)
    ratios = [
        each["peak"] / each["estimate"]
        for each in (measured(path, kind) if path else [])
        if each.get("estimate", 0) > 0 and each.get("peak", 0) > 0 and each.get("bitcode", 0) > 1e6
    ]
    return min(2.0, max(0.5, sorted(ratios)[len(ratios) // 2])) if ratios else 1.0
