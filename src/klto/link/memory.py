"""How much memory a link will take, how much it may take, and how many backends at once follow from that.

The model is klto.link.memory_model's, the same for the link, its budget, what comes after it and ``klto plan``; what
this machine has measured before corrects it.
"""

from __future__ import annotations

import json
import os

from klto.link.memory_model import load_model
from klto.machine import memory_bytes
from klto.units import size as human

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from klto.link.inputs import Inputs

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
    sizes = [module.size for module in inputs.modules]
    path = os.environ.get(ENV_MEASURED) if corrected else None
    return estimate_link(sizes, inputs.native_bytes, full, jobs, path)


def estimate_link(
    modules: Sequence[int], native_bytes: int, full: bool, jobs: int, path: str | os.PathLike[str] | None
) -> int:
    """As :func:`estimate`, from the bytes of each bitcode module; ``path``: the file of what was measured here."""
    found = load_model().link(modules, native_bytes, full=full, jobs=jobs)
    return int(found * _correction(path, "full" if full else "thin"))


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


#: Bitcode within this factor of a kernel's makes another like it: what its steps after the link took says more than
#: the model.
_LIKE = 1.5


def remember_finish(
    path: str | os.PathLike[str], process: str, bitcode_bytes: int, peak: int, kernel: str, full: bool
) -> None:
    """Keep what the largest process after the link has used (objtool, pahole, kallsyms...).

    :param kernel: as :func:`kernel_key` names it.
    """
    if bitcode_bytes:
        line: dict[str, object] = {
            "kind": "finish",
            "process": process,
            "bitcode": bitcode_bytes,
            "peak": peak,
            "kernel": kernel,
            "full": full,
        }
        append_measured(path, line)


def estimate_finish(
    path: str | os.PathLike[str] | None, bitcode_bytes: int, kernel: str, full: bool
) -> tuple[str, int] | None:
    """(name, bytes) of the largest process after the link; None where nothing is known.

    A kernel of the same key, kind of LTO and like size that was built here says most; else it is objtool's memory by
    the model, on x86 and without debug information, which makes bitcode many times larger and objtool hardly.

    :param path: the file of what was measured here.
    :param kernel: as :func:`kernel_key` names it.
    """
    like = [
        each
        for each in (measured(path, "finish") if path else [])
        if (each.get("kernel"), each.get("full")) == (kernel, full)
        and each.get("bitcode", 0) > 0
        and 1 / _LIKE <= each["bitcode"] / max(1, bitcode_bytes) <= _LIKE
    ]
    if like:
        best = min(reversed(like), key=lambda each: abs(each["bitcode"] - bitcode_bytes))
        return str(best.get("process", "?")), int(best["peak"] / best["bitcode"] * bitcode_bytes)
    version, arch, *debug = kernel.split()
    if arch != "x86_64" or debug:
        return None
    return "objtool", int(load_model().objtool_of(version, bitcode_bytes))


def kernel_key(version: str, arch: str, debug: bool) -> str:
    """Which kernels are held against each other: those of ``6.12 x86_64``, those of ``6.12 arm64 debug``...

    :param debug: whether it has debug information (CONFIG_DEBUG_INFO).
    """
    return f"{'.'.join(version.split('.')[:2])} {arch}{' debug' if debug else ''}"


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


def measured(path: str | os.PathLike[str], kind: str) -> list[dict[str, Any]]:
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


def _correction(path: str | os.PathLike[str] | None, kind: str) -> float:
    """By what factor this machine's links were larger than estimated; of cold links of a size that says something."""
    ratios = [
        each["peak"] / each["estimate"]
        for each in (measured(path, kind) if path else [])
        if each.get("estimate", 0) > 0 and each.get("peak", 0) > 0 and each.get("bitcode", 0) > 1e6
    ]
    return min(2.0, max(0.5, sorted(ratios)[len(ratios) // 2])) if ratios else 1.0
