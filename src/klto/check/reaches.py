"""How far relocations reach."""

from __future__ import annotations

from typing import NamedTuple


class Reach(NamedTuple):
    """Smallest and largest distance in bytes, as the linker checks it."""

    low: int
    high: int

    @property
    def text(self) -> str:
        """``[-1048576, 1048575]``, as ld.lld prints it."""
        return f"[{self.low}, {self.high}]"


def _signed(bits: int) -> Reach:
    return Reach(-(1 << (bits - 1)), (1 << (bits - 1)) - 1)


#: e_machine to type to reach. lld/ELF/Arch/*.cpp (LLVM 19), relocate(): checkInt and checkIntUInt.
#: AArch64: aaelf64, "Static AArch64 relocations"; x86: x86-64 psABI, "Relocation Types"; RISC-V: psABI,
#: "Relocations"; Arm: aaelf32, "Static Thumb relocations"; LoongArch: psABI, "Relocations".
_REACHES: dict[int, dict[str, Reach]] = {
    183: {
        "R_AARCH64_TSTBR14": _signed(16),
        "R_AARCH64_CONDBR19": _signed(21),
        "R_AARCH64_ADR_PREL_LO21": _signed(21),
        "R_AARCH64_LD_PREL_LO19": _signed(21),
        "R_AARCH64_PREL16": Reach(-(1 << 15), (1 << 16) - 1),
        "R_AARCH64_CALL26": _signed(28),
        "R_AARCH64_JUMP26": _signed(28),
        "R_AARCH64_ADR_PREL_PG_HI21": _signed(33),
        "R_AARCH64_PREL32": Reach(-(1 << 31), (1 << 32) - 1),
    },
    62: {
        "R_X86_64_PC8": _signed(8),
        "R_X86_64_PC16": _signed(16),
        "R_X86_64_PC32": _signed(32),
        "R_X86_64_PLT32": _signed(32),
    },
    3: {"R_386_PC8": _signed(8), "R_386_PC16": _signed(17)},
    243: {
        "R_RISCV_RVC_BRANCH": _signed(9),
        "R_RISCV_RVC_JUMP": _signed(12),
        "R_RISCV_BRANCH": _signed(13),
        "R_RISCV_JAL": _signed(21),
    },
    40: {
        "R_ARM_THM_JUMP8": _signed(9),
        "R_ARM_THM_JUMP11": _signed(12),
        "R_ARM_THM_PC8": Reach(0, 1023),
        "R_ARM_THM_PC12": Reach(-4095, 4095),
        "R_ARM_THM_ALU_PREL_11_0": Reach(-4095, 4095),
        "R_ARM_LDR_PC_G0": Reach(-4095, 4095),
        "R_ARM_THM_JUMP19": _signed(21),
        "R_ARM_THM_JUMP24": _signed(25),
        "R_ARM_THM_CALL": _signed(25),
        "R_ARM_JUMP24": _signed(26),
        "R_ARM_CALL": _signed(26),
    },
    258: {
        "R_LARCH_B16": _signed(18),
        "R_LARCH_PCREL20_S2": _signed(22),
        "R_LARCH_B21": _signed(23),
        "R_LARCH_B26": _signed(28),
    },
}
#: What a linker bridges by itself is no hazard in assembly: calls get thunks, and 16 MiB and more is not short.
SHORT_BELOW = 1 << 24


def reaches(machine: int) -> dict[str, Reach]:
    """Every ranged type of a machine."""
    return _REACHES.get(machine, {})


def short_reaches(machine: int) -> dict[str, Reach]:
    """Those of short range: conditional branches, and loads and addresses relative to the instruction."""
    return {name: reach for name, reach in reaches(machine).items() if reach.high < SHORT_BELOW}
