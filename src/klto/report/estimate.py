"""What an LTO link will need, from the bitcode it will read.

Linear models, calibrated by ``python -m bench.plan calibrate`` on kernels that the tests do not use; what they were
calibrated on, and how far off they were there, is part of the calibration (calibration.json).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

import msgspec

#: Modes of LTO that are estimated.
MODES = ("thin", "full")


class Coefficients(msgspec.Struct, frozen=True):
    """Of one mode. Memory in bytes: ``base`` + ``per_byte`` of all bitcode + ``per_backend_byte`` of the largest
    modules that are generated at once. ``cpu_per_byte``: reference links (klto.link.reference) for each byte.
    ``*_error``: the largest relative error over the calibrating links."""

    base: float
    per_byte: float
    per_backend_byte: float
    cpu_per_byte: float
    memory_error: float
    cpu_error: float


class Objtool(msgspec.Struct, frozen=True):
    """Memory of one kernel version's objtool, for each byte of vmlinux.o; bytes."""

    base: float
    per_byte: float


class AfterLink(msgspec.Struct, frozen=True):
    """Steps after the link, for each byte of vmlinux.o: objtool's memory (x86 only) by kernel version, as 6.1's is
    half of 6.12's, and the disk that vmlinux.o, vmlinux and the temporary images take. ``vmlinux_o_per_byte``:
    bytes of vmlinux.o for a byte of bitcode, by mode."""

    vmlinux_o_per_byte: dict[str, float]
    objtool: dict[str, Objtool]
    disk_per_byte: float
    cache_per_byte: float


class Calibration(msgspec.Struct, frozen=True):
    """``on``: what it was measured on, for people."""

    on: str
    modes: dict[str, Coefficients]
    after: AfterLink


@dataclass(frozen=True)
class Range:
    """A prediction and how far it may be off."""

    low: float
    middle: float
    high: float


def _range(middle: float, error: float) -> Range:
    return Range(middle * (1 - error), middle, middle * (1 + error))


#: Ranges are never narrower than this: kernels differ more than the calibrating ones did.
_LEAST_MEMORY_ERROR, _LEAST_CPU_ERROR, _DISK_ERROR = 0.25, 0.35, 0.35


@dataclass(frozen=True)
class Estimate:
    """Of one mode with a number of backends. Bytes and seconds; ``objtool`` is None where it does not run.

    ``memory`` is the largest of the link and what comes after it, and ``largest`` names which.
    """

    mode: str
    jobs: int
    link: Range
    objtool: Range | None
    memory: Range
    largest: str
    seconds: Range
    disk: Range


def _objtool_of(version: str, known: dict[str, Objtool]) -> Objtool:
    """The one of the newest calibrated kernel that is not newer than ``version``, else of the oldest."""
    ordered = sorted(known, key=_numbers)
    older = [name for name in ordered if _numbers(name) <= _numbers(version)]
    return known[older[-1] if older else ordered[0]]


def _numbers(version: str) -> list[int]:
    """``6.12.117-rc1`` as 6, 12."""
    return [int(number) for number in re.findall(r"\d+", version)[:2]]


def load_calibration() -> Calibration:
    """The calibration that came with klto."""
    raw = resources.files("klto.report").joinpath("calibration.json").read_bytes()
    return msgspec.json.decode(raw, type=Calibration)


def estimate(
    mode: str,
    jobs: int,
    modules: Sequence[int],
    reference: float,
    calibration: Calibration,
    *,
    objtool: str | None,
    extra_error: float = 0.0,
) -> Estimate:
    """What a vmlinux.o link and the steps after it will need.

    :param modules: bytes of each bitcode module.
    :param reference: CPU seconds of the reference link here.
    :param objtool: the kernel's version where its objtool runs over vmlinux.o (x86), else None.
    :param extra_error: added to the ranges when the modules are themselves a guess.
    """
    c, after = calibration.modes[mode], calibration.after
    total = sum(modules)
    at_once = sum(sorted(modules, reverse=True)[:jobs]) if mode == "thin" else 0
    memory_error = max(_LEAST_MEMORY_ERROR, c.memory_error) + extra_error
    link = _range(c.base + c.per_byte * total + c.per_backend_byte * at_once, memory_error)
    vmlinux_o = after.vmlinux_o_per_byte[mode] * total
    checked = None
    if objtool is not None:
        tool = _objtool_of(objtool, after.objtool)
        checked = _range(tool.base + tool.per_byte * vmlinux_o, memory_error)
    largest = "objtool" if checked is not None and checked.middle > link.middle else "link"
    memory = checked if checked is not None and largest == "objtool" else link
    cpu = c.cpu_per_byte * total * reference
    # Full LTO generates code in one thread; the backends of ThinLTO share it but for the longest module.
    wall = cpu if mode == "full" else max(cpu / jobs, cpu * max(modules, default=0) / max(total, 1))
    cache = after.cache_per_byte * total if mode == "thin" else 0.0
    return Estimate(
        mode, jobs, link, checked, memory, largest,
        _range(wall, max(_LEAST_CPU_ERROR, c.cpu_error) + extra_error),
        _range(after.disk_per_byte * vmlinux_o + cache, _DISK_ERROR + extra_error),
    )  # fmt: skip
