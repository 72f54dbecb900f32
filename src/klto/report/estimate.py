"""What an LTO link will need, from the bitcode it will read.

Memory is what the link itself expects (klto.link.memory); time and disk are multiples of the bitcode, calibrated by
``python -m bench.plan calibrate`` on kernels that the tests do not use. What it was calibrated on, and how far off it
was there, is part of the calibration.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from klto.link.memory import estimate_finish, estimate_link
from klto.link.memory_model import CALIBRATION

#: Modes of LTO that are estimated.
MODES = ("thin", "full")


class Calibration(msgspec.Struct, frozen=True):
    """Apart from memory, which klto.link.memory_model reads from the same file.

    :ivar on: what it was measured on, for people.
    :ivar cpu_per_instruction: reference links (klto.link.reference) for each instruction of the modules' summaries, by
        mode: of bitcode's bytes, debug information and names can be most.
    :ivar serial_per_instruction: of them, what a thin link does before and after its backends.
    :ivar link_order_per_pair: reference links for each two sections with SHF_LINK_ORDER of one name: for each of them
        ``ld.lld -r`` goes over those before it (lld/ELF/LinkerScript.cpp, addInputSec).
    :ivar functions_left: of the functions in the summaries, those that vmlinux.o has, by mode.
    :ivar instructions_per_byte: of bitcode without debug information, where it is not there to be counted.
    :ivar memory_error: the largest relative error over the calibrating links, by mode.
    :ivar cpu_error: the same of CPU time.
    :ivar vmlinux_o_per_byte: bytes of vmlinux.o for each byte of bitcode, by mode.
    :ivar disk_per_byte: of vmlinux.o: itself, vmlinux and what scripts/link-vmlinux.sh leaves beside them.
    """

    on: str
    cpu_per_instruction: dict[str, float]
    serial_per_instruction: float
    link_order_per_pair: float
    functions_left: dict[str, float]
    instructions_per_byte: float
    memory_error: dict[str, float]
    cpu_error: dict[str, float]
    vmlinux_o_per_byte: dict[str, float]
    disk_per_byte: float


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
    """Of one mode with a number of backends. Bytes and seconds; ``cpu`` is the link's CPU seconds.

    ``finish`` is the largest process after the link, named ``finish_process``; None where nothing is known of it.
    ``memory`` is the larger of it and the link, and ``largest`` names which. ``ordering`` is the part of ``seconds``
    that goes into sections in link order, in one thread.
    """

    mode: str
    jobs: int
    link: Range
    finish: Range | None
    finish_process: str
    memory: Range
    largest: str
    cpu: Range
    seconds: Range
    disk: Range
    ordering: float


@dataclass(frozen=True)
class Subject:
    """What is to be linked.

    :ivar modules: bytes of each bitcode module.
    :ivar native_bytes: of the inputs without bitcode.
    :ivar instructions: of all modules (klto.objects); None where they cannot be counted.
    :ivar kernel: as klto.link.memory.kernel_key names it.
    :ivar error: what is added to the ranges when the modules are themselves a guess.
    :ivar patchable: functions that come with a section of their own with SHF_LINK_ORDER.
    """

    modules: Sequence[int]
    native_bytes: int
    instructions: int | None
    kernel: str
    error: float = 0.0
    patchable: int = 0


def load_calibration() -> Calibration:
    """The calibration that came with klto."""
    return msgspec.json.decode(Path(CALIBRATION).read_bytes(), type=Calibration)


def estimate(
    mode: str,
    jobs: int,
    subject: Subject,
    reference: float,
    calibration: Calibration,
    *,
    measured: Path | None,
) -> Estimate:
    """What a vmlinux.o link with an empty cache, and the steps after it, will need.

    :param reference: CPU seconds of the reference link here.
    :param measured: the file of what links took on this machine before; None: not corrected by it.
    """
    full, modules, total = mode == "full", subject.modules, sum(subject.modules)
    error = max(_LEAST_MEMORY_ERROR, calibration.memory_error[mode]) + subject.error
    link = _range(estimate_link(modules, subject.native_bytes, full, jobs, measured), error)
    after = estimate_finish(measured, total, subject.kernel, full)
    finish = _range(after[1], error) if after is not None else None
    process = after[0] if after is not None else ""
    memory, largest = link, "link"
    if finish is not None and finish.middle > link.middle:
        memory, largest = finish, process
    instructions = subject.instructions or calibration.instructions_per_byte * total
    cpu = calibration.cpu_per_instruction[mode] * instructions * reference
    wall = cpu
    # Full LTO generates code in one thread; the backends of ThinLTO share it but for the longest module.
    if not full:
        serial = calibration.serial_per_instruction * instructions * reference
        backends = max(0.0, cpu - serial)
        wall = serial + max(backends / jobs, backends * max(modules, default=0) / max(total, 1))
    ordered = calibration.functions_left[mode] * subject.patchable
    ordering = calibration.link_order_per_pair * ordered**2 / 2 * reference
    cpu, wall = cpu + ordering, wall + ordering  # In one thread, when the backends are done.
    vmlinux_o = calibration.vmlinux_o_per_byte[mode] * total
    # What the link cache keeps is the objects that vmlinux.o is made of.
    cache = 0.0 if full else vmlinux_o
    time_error = max(_LEAST_CPU_ERROR, calibration.cpu_error[mode]) + subject.error
    return Estimate(
        mode, jobs, link, finish, process, memory, largest,
        _range(cpu, time_error),
        _range(wall, time_error),
        _range(calibration.disk_per_byte * vmlinux_o + cache, _DISK_ERROR + subject.error),
        ordering,
    )  # fmt: skip
