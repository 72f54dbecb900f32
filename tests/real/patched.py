"""Kernels made to fail: arm64 Images with a few bytes changed, as another link would have made them."""

from __future__ import annotations

import struct
from pathlib import Path

from klto.boot.decode_image import Image
from klto.kernel.initcall_tables import read_tables


class Arm64Image:
    """The bytes of an arm64 Image. It begins at ``_text`` (arch/arm64/kernel/vmlinux.lds.S)."""

    def __init__(self, build_dir: Path, scratch: Path) -> None:
        self.vmlinux = Image(build_dir / "vmlinux", scratch)
        self.path = build_dir / "vmlinux"
        self.data = bytearray((build_dir / "arch/arm64/boot/Image").read_bytes())
        self.base = self.symbol("_text")

    def symbol(self, name: str) -> int:
        """The address of a symbol."""
        found, _ = self.vmlinux.find(name, 0)
        return found[0]

    def word(self, address: int) -> int:
        """The signed 32-bit word at an address."""
        return int(struct.unpack_from("<i", self.data, address - self.base)[0])

    def put(self, address: int, value: int) -> None:
        """Set the signed 32-bit word at an address."""
        struct.pack_into("<i", self.data, address - self.base, value)

    def swap_initcalls(self) -> tuple[str, str]:
        """Two neighbours of level 6 the other way round; their ids. Entries are distances to the function."""
        entries = read_tables(self.path)
        at = next(
            i
            for i in range(len(entries) - 1)
            if entries[i].name.endswith("6") and entries[i + 1].name.endswith("6")
        )
        one, other = entries[at].address, entries[at + 1].address
        targets = one + self.word(one), other + self.word(other)
        self.put(one, targets[1] - one)
        self.put(other, targets[0] - other)
        return entries[at].name, entries[at + 1].name

    def forget_hyp_reloc(self) -> str:
        """Take a function table's ``.hyp.reloc`` entries away; the table's name.

        Each entry of that section is the distance to a pointer that the kernel turns into a hypervisor address
        (arch/arm64/kvm/va_layout.c, kvm_apply_hyp_relocations). Those of the table of hypercalls are sent to
        a place that nothing uses, so that the pointers stay the kernel's.
        """
        begin, end = self.symbol("__hyp_reloc_begin"), self.symbol("__hyp_reloc_end")
        table = self.symbol("__kvm_nvhe_host_hcall")
        size = self._size_at(table)
        gone = 0
        for place in range(begin, end, 4):
            if table <= place + self.word(place) < table + size:
                self.put(place, self._unused() - place)
                gone += 1
        assert gone > 10, gone
        return "__kvm_nvhe_host_hcall"

    def _size_at(self, address: int) -> int:
        values, _, sizes = self.vmlinux._symbols
        return max(size for value, size in zip(values, sizes, strict=True) if value == address)

    def _unused(self) -> int:
        """Eight bytes of the kernel's boot-time data that are zero and written by nobody."""
        return self.symbol("boot_command_line") + 2000
