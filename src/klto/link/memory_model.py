"""How much memory a link and the steps after it take, from the bytes that go in.

One linear model for the link itself, for its budget and for ``klto plan``. Its coefficients are in calibration.json,
which ``python -m bench.plan calibrate`` measures and writes; ``on`` there says on what.
"""

from __future__ import annotations

import json
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

#: Written by bench/plan.py.
CALIBRATION = os.path.join(os.path.dirname(__file__), "calibration.json")


class MemoryModel:
    """The coefficients; bytes, and bytes for each byte.

    :ivar base: of a link of nothing: LLVM's shared library and its tables.
    :ivar per_bitcode: ThinLTO: the file itself, its summary, its native object, the output.
    :ivar per_native: an input without bitcode: itself and the output.
    :ivar pool: of backends at work, whatever they work on.
    :ivar per_backend: for the largest modules that can be at work at once.
    :ivar per_full: full LTO, all of whose bitcode is in memory at once, as IR.
    :ivar objtool: (base, for each byte of bitcode without debug information) by version of the kernel: 6.1's takes half
        of 6.12's.
    """

    __slots__ = ("base", "objtool", "per_backend", "per_bitcode", "per_full", "per_native", "pool")

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.base: float = values["base"]
        self.per_bitcode: float = values["per_bitcode"]
        self.per_native: float = values["per_native"]
        self.pool: float = values["pool"]
        self.per_backend: float = values["per_backend"]
        self.per_full: float = values["per_full"]
        self.objtool: dict[str, list[float]] = values["objtool"]

    def link(self, modules: Sequence[int], native_bytes: int, *, full: bool, jobs: int) -> float:
        """Bytes of the linker's largest resident set.

        :param modules: bytes of each bitcode module.
        :param jobs: backends at once; 0: every module comes from the cache.
        """
        total = self.base + self.per_native * native_bytes
        if full:
            return total + self.per_full * sum(modules)
        total += self.per_bitcode * sum(modules)
        if jobs:
            total += self.pool + self.per_backend * sum(sorted(modules, reverse=True)[:jobs])
        return total

    def objtool_of(self, version: str, bitcode_bytes: int) -> float:
        """Bytes of objtool's largest resident set over vmlinux.o (x86).

        :param version: the kernel's; the newest calibrated one that is not newer counts, else the oldest.
        """
        ordered = sorted(self.objtool, key=_numbers)
        older = [name for name in ordered if _numbers(name) <= _numbers(version)]
        base, per_byte = self.objtool[older[-1] if older else ordered[0]]
        return base + per_byte * bitcode_bytes


def _numbers(version: str) -> list[int]:
    """``6.12.117-rc1`` as 6, 12."""
    return [int(part) for part in version.split(".")[:2] if part.isdigit()]


_loaded: list[MemoryModel] = []


def load_model() -> MemoryModel:
    """The model that came with klto."""
    if not _loaded:
        with open(CALIBRATION, encoding="utf-8") as stream:
            _loaded.append(MemoryModel(json.load(stream)["memory"]))
    return _loaded[0]
