"""vmlinux and kernel modules as a decoder needs them: symbols to addresses, and what an address is."""

from __future__ import annotations

import os
import shutil
import struct
from bisect import bisect_right
from functools import cached_property
from pathlib import Path

import numpy as np

from klto.boot.decode_log import without_hash
from klto.errors import UsageError
from klto.objects.elf import SHT_NOBITS, Elf
from klto.objects.source import read_whole

#: ELF: e_type ET_REL; sh_flags SHF_WRITE, SHF_ALLOC, SHF_EXECINSTR; st_info types (gABI, chapter 4).
_ET_REL = 1
_WRITE, _ALLOC, _EXEC = 1, 2, 4
_STT_SECTION, _STT_FILE = 3, 4
#: Elf64_Ehdr.e_type and Elf64_Shdr.sh_addr: offsets in bytes (gABI, chapter 4).
_E_TYPE_AT, _SH_ADDR_AT, _SHDR_BYTES = 16, 16, 64

#: Where the sections of a module are put: anywhere but at 0, and none on another.
_MODULE_BASE = 0x1000000

#: What kernel/kallsyms.c leaves out, so that it does not end the symbol before it (scripts/mksysmap and
#: scripts/kallsyms.c, 6.1 and 6.12); arm64's mapping symbols among it.
_UNSEEN = ("$", ".L", "__pfx_", "__crc_", "__kstrtab", "__kcfi_typeid_", "__kvm_nvhe_$")


class Image:
    """A linked kernel, or a kernel module, at addresses of its own.

    Modules are relocatable: all their sections begin at 0, and an address would mean one place in each.
    ``file`` is then a copy whose section headers say other addresses, which LLVM's tools honour.

    :param scratch: a directory for that copy.
    :raises MalformedObject: when it is no ELF file, or damaged.
    :raises UsageError: when it has no symbols.
    """

    def __init__(self, path: Path, scratch: Path) -> None:
        self.path = path
        self.elf = Elf(read_whole(path), str(path))
        if self.elf.symtab is None:
            raise UsageError(f"{path}: has no symbol table", "give a build dir whose vmlinux is not stripped")
        (kind,) = struct.unpack_from(f"{self.elf.header.order}H", self.elf.data, _E_TYPE_AT)
        self._ends: list[int] = []
        self.addresses = np.array(self.elf.sections["sh_addr"], dtype=np.uint64)
        self.is_module = kind == _ET_REL
        self.file = self._placed(scratch) if self.is_module else path

    def _placed(self, scratch: Path) -> Path:
        """A copy with a place for every section that is loaded: code first and together, as the kernel puts it, so
        that symbols have the sizes that kallsyms gives them (kernel/module/main.c, layout_sections)."""
        copy = scratch / f"{len(os.listdir(scratch))}-{self.path.name}"
        shutil.copyfile(self.path, copy)
        sections, at, last = self.elf.sections, _MODULE_BASE, None
        with copy.open("r+b") as file:
            for index in sorted(np.flatnonzero(sections["sh_flags"] & _ALLOC).tolist(), key=self._region):
                if last is not None and self._region(index) != last:
                    self._ends.append(at)
                    at = (at | 0xFFFF) + 1
                last = self._region(index)
                align = max(1, int(sections["sh_addralign"][index]))
                at = (at + align - 1) // align * align
                self.addresses[index] = at
                file.seek(self.elf.header.e_shoff + index * _SHDR_BYTES + _SH_ADDR_AT)
                file.write(struct.pack(f"{self.elf.header.order}Q", at))
                at += int(sections["sh_size"][index])
        self._ends.append(at)
        return copy

    def _region(self, index: int) -> int:
        """Which of a module's memories a section goes to: those for init code and data are others."""
        flags = int(self.elf.sections["sh_flags"][index])
        kind = 0 if flags & _EXEC else 2 if flags & _WRITE else 1
        return kind + 3 * self.elf.section_names[index].startswith(".init")

    @cached_property
    def has_lines(self) -> bool:
        """Whether there is debug information."""
        return ".debug_info" in self.elf.section_names

    @cached_property
    def _symbols(self) -> tuple[list[int], list[str], list[int]]:
        """Addresses, names and sizes of what is defined, by address."""
        table = self.elf.symtab
        assert table is not None
        rows, section = table.table, table.section
        kinds = rows["st_info"] & 15
        loaded = np.zeros(len(self.addresses) + 1, dtype=bool)
        loaded[: len(self.addresses)] = (self.elf.sections["sh_flags"] & _ALLOC) != 0
        known = (
            (section > 0) & (section < len(self.addresses)) & (kinds != _STT_SECTION) & (kinds != _STT_FILE)
        )
        numbers = np.flatnonzero(known)
        numbers = numbers[loaded[section[numbers]]]
        values = rows["st_value"][numbers].astype(np.uint64)
        if self.is_module:
            values = values + self.addresses[section[numbers]]
        order = np.argsort(values, kind="stable")
        names = table.names
        return (
            values[order].tolist(),
            [names[i] for i in numbers[order].tolist()],
            rows["st_size"][numbers][order].tolist(),
        )

    @cached_property
    def _by_name(self) -> dict[str, list[int]]:
        found: dict[str, list[int]] = {}
        for position, name in enumerate(self._symbols[1]):
            found.setdefault(without_hash(name), []).append(position)
        return found

    def find(self, name: str, size: int) -> tuple[list[int], bool]:
        """Addresses of the symbols of a name, those of the right size if there are any; whether the size fits.

        :param size: as kallsyms has it: the distance to the next symbol; 0 for any.
        """
        values, _, _ = self._symbols
        positions = self._by_name.get(name, [])
        fitting = [p for p in positions if not size or size in self._sizes(p)]
        found = sorted({values[p] for p in (fitting or positions)})
        return found, bool(fitting)

    def _sizes(self, position: int) -> set[int]:
        """Sizes that kallsyms may give a symbol: to the next of all, or of those that it shows."""
        values, names, sizes = self._symbols
        own, found = values[position], {sizes[position]}
        first = True
        for other in range(position + 1, min(position + 64, len(values))):
            if values[other] == own:
                continue
            if first:
                found.add(values[other] - own)
                first = False
            if not names[other].startswith(_UNSEEN):
                found.add(values[other] - own)
                break
        end = next((end for end in self._ends if end > own), None)
        if (
            end is not None
        ):  # the last symbol of a module reaches to the end of its memory, which is whole pages
            size = end - own
            found |= {size, ((end - _MODULE_BASE) | 0xFFF) + 1 + _MODULE_BASE - own}
        return found

    def covering(self, address: int) -> tuple[str, int] | None:
        """The symbol at or before an address in the same section, and the address's distance from it."""
        values, names, _ = self._symbols
        position = bisect_right(values, address) - 1
        if position < 0 or self.section_at(values[position]) != self.section_at(address):
            return None
        while position > 0 and names[position].startswith(_UNSEEN):
            position -= 1
        return without_hash(names[self._best_name(position)]), address - values[position]

    def _best_name(self, position: int) -> int:
        """Of the names of one address that of a function or object with a size, before mere labels."""
        values, names, sizes = self._symbols
        same = [position]
        while same[-1] > 0 and values[same[-1] - 1] == values[position]:
            same.append(same[-1] - 1)
        return min(
            same, key=lambda p: (names[p].startswith(_UNSEEN), sizes[p] == 0, "$" in names[p], len(names[p]))
        )

    def section_at(self, address: int) -> int | None:
        """The section that is loaded at an address."""
        sections = self.elf.sections
        begin = self.addresses
        inside = (sections["sh_flags"] & _ALLOC != 0) & (begin <= np.uint64(address))
        inside &= np.uint64(address) - begin < sections["sh_size"]
        found = np.flatnonzero(inside & (begin > 0))
        return int(found[0]) if len(found) else None

    def what(self, address: int) -> str:
        """What an address is: text, data, jump table or unmapped, with the section's name."""
        index = self.section_at(address)
        if index is None:
            return "unmapped"
        name = self.elf.section_names[index]
        flags = int(self.elf.sections["sh_flags"][index])
        symbol = self.covering(address)
        if symbol and (symbol[0].endswith(".cfi_jt") or "switch.table" in symbol[0]):
            return f"jump table ({name})"
        if flags & _EXEC:
            return f"text ({name})"
        if not flags & _WRITE and self._points_to_text(index, address):
            return f"jump table ({name})"
        return f"{'data' if flags & _WRITE else 'read-only data'} ({name})"

    def _points_to_text(self, index: int, address: int) -> bool:
        """Whether the words around an address in read-only data are addresses of code, or distances to it.

        A switch's jump table has no symbol. Two neighbours that lead into text are taken for one.
        """
        if int(self.elf.sections["sh_type"][index]) == SHT_NOBITS or self.is_module:
            return False
        content, start = self.elf.content(index), address - int(self.addresses[index])
        at = start & ~7
        words = [
            struct.unpack_from(f"{self.elf.header.order}Q", content, at + step)[0]
            for step in (0, 8)
            if at + step + 8 <= len(content)
        ]
        return len(words) == 2 and all(self._is_text(word) for word in words)

    def _is_text(self, address: int) -> bool:
        if not 0 < address < 1 << 64:
            return False
        index = self.section_at(address)
        return index is not None and bool(int(self.elf.sections["sh_flags"][index]) & _EXEC)

    def string_at(self, name: str) -> str | None:
        """The string that a symbol names, up to its NUL."""
        positions = self._by_name.get(name)
        if not positions:
            return None
        address = self._symbols[0][positions[0]]
        index = self.section_at(address)
        if index is None or int(self.elf.sections["sh_type"][index]) == SHT_NOBITS:
            return None
        content = bytes(self.elf.content(index))[address - int(self.addresses[index]) :][:1024]
        return content.split(b"\0", 1)[0].decode("utf-8", "replace")
