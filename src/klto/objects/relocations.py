"""Relocations of ELF files: REL, RELA, RELR and CREL, a section's or a whole file's, as numpy arrays.

Format: gABI chapter 4, "Relocation"; SHT_RELR as in chapter 5, "Relative Relocation Table"; SHT_CREL as in
decodeCrel of llvm/include/llvm/Object/ELF.h. REL, RELA and CREL all give the same table.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from klto.objects.elf import SHT_CREL, SHT_REL, SHT_RELA, SHT_RELR, Elf, Table
from klto.objects.errors import MalformedObject

#: Elf64_Rela with r_info taken apart: r_offset u8, r_type u4, r_sym u4, r_addend i8 (0 where it is implicit).
RELOCATION = np.dtype([("r_offset", "u8"), ("r_type", "u4"), ("r_sym", "u4"), ("r_addend", "i8")])
#: r_info as the file has it: ELF64_R_SYM is the high word, so which half comes first depends on byte order.
_RELA64 = {
    "<": np.dtype([("r_offset", "<u8"), ("r_type", "<u4"), ("r_sym", "<u4"), ("r_addend", "<i8")]),
    ">": np.dtype([("r_offset", ">u8"), ("r_sym", ">u4"), ("r_type", ">u4"), ("r_addend", ">i8")]),
}
_KINDS = (SHT_REL, SHT_RELA, SHT_CREL)
#: A relocation belongs to a place in the file, which takes bytes too: a table that would unpack to more than
#: this many times the file is not real.
_MAX_UNPACKED = 4


@dataclass(frozen=True)
class Relocations:
    """All relocations of a file but RELR's: three arrays of one length, in the order of the file's sections.

    :ivar entries: dtype :data:`RELOCATION`.
    :ivar section: u4, the section that each relocation applies to (sh_info; 0 for those of a whole image).
    :ivar table: u4, the section that each relocation stands in.
    """

    entries: Table
    section: npt.NDArray[np.uint32]
    table: npt.NDArray[np.uint32]

    def __len__(self) -> int:
        return len(self.entries)


class RelocationReader:
    """The relocation sections of one ELF file.

    :raises MalformedObject: when they are larger together than the file, as they are when they overlap.
    """

    def __init__(self, elf: Elf) -> None:
        self._elf = elf
        kinds = elf.sections["sh_type"]
        #: Indexes of REL, RELA and CREL sections, in file order.
        self.indexes: list[int] = np.flatnonzero(np.isin(kinds, _KINDS)).tolist()
        #: Indexes of RELR sections.
        self.relr_indexes: list[int] = np.flatnonzero(kinds == SHT_RELR).tolist()
        sizes = elf.sections["sh_size"][self.indexes + self.relr_indexes].astype(float)
        if float(sizes.sum()) > len(elf.data):
            raise elf.malformed(
                elf.header.e_shoff,
                f"expected relocations within {len(elf.data)} bytes, found sections that overlap",
            )

    def of(self, index: int) -> Table:
        """The relocations in section ``index`` (REL, RELA or CREL), dtype :data:`RELOCATION`.

        :raises MalformedObject: when it is another section, or broken.
        """
        elf = self._elf
        kind = int(elf.sections["sh_type"][index]) if index < len(elf.sections) else 0
        if kind == SHT_RELA:
            return self._rela(index)
        if kind == SHT_REL:
            return self._rel(index)
        if kind == SHT_CREL:
            return self._crel(index)
        raise elf.malformed_section(index, f"expected relocations in section {index}, found type {kind}")

    def _rela(self, index: int) -> Table:
        header = self._elf.header
        if header.is64:
            raw = self._elf.entries(index, _RELA64[header.order], 24)
            return raw if raw.dtype == RELOCATION else _table(*(raw[name] for name in RELOCATION.names or ()))
        raw = self._elf.entries(index, np.dtype([("o", "u4"), ("i", "u4"), ("a", "i4")]), 12)
        return _table(raw["o"], raw["i"] & 0xFF, raw["i"] >> 8, raw["a"])

    def _rel(self, index: int) -> Table:
        if self._elf.header.is64:
            raw = self._elf.entries(index, np.dtype([("o", "u8"), ("i", "u8")]), 16)
            return _table(raw["o"], raw["i"] & 0xFFFFFFFF, raw["i"] >> 32, 0)
        raw = self._elf.entries(index, np.dtype([("o", "u4"), ("i", "u4")]), 8)
        return _table(raw["o"], raw["i"] & 0xFF, raw["i"] >> 8, 0)

    def _crel(self, index: int) -> Table:
        """A ULEB128 header: count * 8, bit 2 for addends, bits 0 and 1 how far offsets are shifted; then
        differences, the low bits of each one's first byte saying which of symbol, type and addend change.
        """
        reader = _Leb128(self._elf, index)
        head = reader.uleb()
        count, flag_bits, shift = head >> 3, 3 if head & 4 else 2, head & 3
        self._check_unpacked(index, count * RELOCATION.itemsize, _MAX_UNPACKED)
        table = np.empty(count, RELOCATION)
        offset = symbol = kind = addend = 0
        for i in range(count):
            first = reader.byte()
            offset += (first & 0x7F) >> flag_bits
            if first & 0x80:
                offset += reader.uleb() << (7 - flag_bits)
            if first & 1:
                symbol += reader.sleb()
            if first & 2:
                kind += reader.sleb()
            if first & 4 and flag_bits == 3:
                addend += reader.sleb()
            words = (offset << shift) & (1 << 64) - 1, kind & 0xFFFFFFFF, symbol & 0xFFFFFFFF
            table[i] = (*words, (addend + (1 << 63)) % (1 << 64) - (1 << 63))
        return table

    def relr(self, index: int) -> npt.NDArray[np.uint64]:
        """The addresses that SHT_RELR section ``index`` relocates, u8, ascending.

        An even word is an address; an odd one has a bit for each of the 63 (or 31) words after the last one.

        :raises MalformedObject: when the section is broken.
        """
        elf = self._elf
        size = 8 if elf.header.is64 else 4
        bits = size * 8 - 1
        words = elf.entries(index, np.dtype(f"u{size}"), size).astype(np.uint64)
        is_map = (words & np.uint64(1)) == 1
        if len(words) and is_map[0]:
            raise elf.malformed_section(
                index, f"expected an address first in section {index}, found a bitmap"
            )
        count = (~is_map).astype(np.int64)
        for bit in range(1, bits + 1):
            count += is_map & ((words >> np.uint64(bit)) & np.uint64(1) == 1)
        self._check_unpacked(index, int(count.sum()) * size, 1)
        # Where each word's first place is: behind its address and the bitmaps since then.
        number = np.arange(len(words))
        last = np.maximum.accumulate(np.where(is_map, 0, number))
        base = words[last] + np.where(is_map, ((number - last - 1) * bits + 1) * size, 0).astype(np.uint64)
        found = np.empty(int(count.sum()), np.uint64)
        place = np.cumsum(count) - count
        found[place[~is_map]] = words[~is_map]
        for bit in range(bits):
            hit = np.flatnonzero(is_map & ((words >> np.uint64(bit + 1)) & np.uint64(1) == 1))
            found[place[hit]] = base[hit] + np.uint64(bit * size)
            place[hit] += 1
        return found

    def _check_unpacked(self, index: int, size: int, limit: int) -> None:
        if size > limit * len(self._elf.data):
            raise self._elf.malformed_section(
                index, f"expected fewer relocations in section {index} of so small a file"
            )

    @cached_property
    def all(self) -> Relocations:
        """Every relocation of the file, gathered at once.

        :raises MalformedObject: when a section is broken.
        """
        elf = self._elf
        if elf.header.is64 and len(self.indexes) > 64 and self._all_rela_in_host_order():
            return self._gathered()
        indexes = np.array(self.indexes, np.uint32)
        lengths = [self._length(index) for index in self.indexes]
        entries = np.empty(sum(lengths), RELOCATION)
        at = 0
        for index, length in zip(self.indexes, lengths, strict=True):
            entries[at : at + length] = self.of(index)
            at += length
        section = elf.sections["sh_info"][indexes]
        return Relocations(entries, np.repeat(section, lengths), np.repeat(indexes, lengths))

    def _length(self, index: int) -> int:
        row = self._elf.sections[index]
        if row["sh_type"] == SHT_CREL:
            count = _Leb128(self._elf, index).uleb() >> 3
            self._check_unpacked(index, count * RELOCATION.itemsize, _MAX_UNPACKED)
            return count
        return len(self.of(index))

    def _all_rela_in_host_order(self) -> bool:
        rows = self._elf.sections[self.indexes]
        return (
            _RELA64[self._elf.header.order] == RELOCATION
            and bool((rows["sh_type"] == SHT_RELA).all())
            and bool((rows["sh_offset"] % 8 == 0).all())
            and bool((rows["sh_size"] % 24 == 0).all())
            and bool(np.isin(rows["sh_entsize"], (0, 24)).all())
        )

    def _gathered(self) -> Relocations:
        """With a section a function there are tens of thousands of tables, too many to take one by one."""
        elf = self._elf
        indexes = np.array(self.indexes, np.uint32)
        rows = elf.sections[indexes]
        starts, sizes = rows["sh_offset"], rows["sh_size"]
        outside = np.flatnonzero(
            (starts > len(elf.data)) | (sizes > len(elf.data) - np.minimum(starts, len(elf.data)))
        )
        if len(outside):
            self.of(int(indexes[outside[0]]))
        words = np.frombuffer(elf.data, np.uint64, len(elf.data) // 8)
        counts = (sizes // 24).astype(np.int64)
        before = np.cumsum(counts) - counts
        first = np.repeat((starts // 8).astype(np.int64) - 3 * before, counts) + 3 * np.arange(
            int(counts.sum())
        )
        entries = np.empty((len(first), 3), np.uint64)
        for column in range(3):
            np.take(words, first + column, out=entries[:, column])
        return Relocations(
            entries.view(RELOCATION).reshape(-1),
            np.repeat(rows["sh_info"], counts),
            np.repeat(indexes, counts),
        )


def _table(offset: Any, kind: Any, symbol: Any, addend: Any) -> Table:
    table = np.empty(len(offset), RELOCATION)
    table["r_offset"], table["r_type"], table["r_sym"], table["r_addend"] = offset, kind, symbol, addend
    return table


class _Leb128:
    """LEB128 integers, one after the other, of a section (DWARF 5, 7.6)."""

    def __init__(self, elf: Elf, index: int) -> None:
        self._elf = elf
        self._index = index
        self._content = bytes(elf.content(index))
        self._at = 0

    def _malformed(self, problem: str) -> MalformedObject:
        begin = int(self._elf.sections["sh_offset"][self._index])
        return self._elf.malformed(begin + self._at, f"{problem} in section {self._index}")

    def byte(self) -> int:
        """The next byte."""
        if self._at >= len(self._content):
            raise self._malformed("expected more")
        self._at += 1
        return self._content[self._at - 1]

    def _bits(self) -> tuple[int, int]:
        value = shift = 0
        while True:
            byte = self.byte()
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value, shift
            if shift > 70:
                raise self._malformed("expected integers of 64 bits, found a longer one")

    def uleb(self) -> int:
        """The next integer, without a sign."""
        return self._bits()[0]

    def sleb(self) -> int:
        """The next integer, with a sign."""
        value, shift = self._bits()
        return value - (1 << shift) if value >> (shift - 1) & 1 else value
