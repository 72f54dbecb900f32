"""ELF files as tables: sections, symbols, notes and segments are numpy arrays over the file's bytes.

Format: gABI chapters 4 and 5; names are the specification's. Both classes and both byte orders; of a 64-bit
file in the host's byte order the tables are views of the file itself, else they are converted at once.
Relocations are in :mod:`klto.objects.relocations`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from klto.objects.elf_header import (
    PHDR_SIZE,
    SHDR_SIZE,
    SHN_LORESERVE,
    SHN_UNDEF,
    SHN_XINDEX,
    SYM_SIZE,
    Header,
)
from klto.objects.elf_names import NameColumn
from klto.objects.errors import MalformedObject
from klto.objects.source import Buffer

Table = npt.NDArray[np.void]

# "Section Types, sh_type".
SHT_PROGBITS = 1
SHT_SYMTAB = 2
SHT_RELA = 4
SHT_NOTE = 7
SHT_NOBITS = 8
SHT_REL = 9
SHT_DYNSYM = 11
SHT_SYMTAB_SHNDX = 18
SHT_RELR = 19
#: gABI's proposal for compact relocations, as llvm/include/llvm/BinaryFormat/ELF.h numbers it.
SHT_CREL = 0x40000014
# "Section Attribute Flags, sh_flags".
SHF_WRITE = 0x1
SHF_ALLOC = 0x2
SHF_EXECINSTR = 0x4
SHF_COMPRESSED = 0x800
#: "Segment Types, p_type".
PT_NOTE = 4

#: Elf64_Shdr. sh_name, sh_type, sh_link and sh_info are u4, the others u8.
SECTION = np.dtype(
    [(f"sh_{name}", "u4") for name in ("name", "type")]
    + [(f"sh_{name}", "u8") for name in ("flags", "addr", "offset", "size")]
    + [(f"sh_{name}", "u4") for name in ("link", "info")]
    + [(f"sh_{name}", "u8") for name in ("addralign", "entsize")]
)
#: Elf64_Sym: st_name u4, st_info u1, st_other u1, st_shndx u2, st_value u8, st_size u8.
SYMBOL = np.dtype(
    [
        ("st_name", "u4"),
        ("st_info", "u1"),
        ("st_other", "u1"),
        ("st_shndx", "u2"),
        ("st_value", "u8"),
        ("st_size", "u8"),
    ]
)
#: Elf64_Phdr: p_type u4, p_flags u4, the others u8.
SEGMENT = np.dtype(
    [("p_type", "u4"), ("p_flags", "u4")]
    + [(f"p_{name}", "u8") for name in ("offset", "vaddr", "paddr", "filesz", "memsz", "align")]
)
_SHDR32 = np.dtype([(name, "u4") for name in SECTION.names or ()])
#: Elf32_Sym and Elf32_Phdr order their fields differently.
_SYM32 = np.dtype(
    [
        ("st_name", "u4"),
        ("st_value", "u4"),
        ("st_size", "u4"),
        ("st_info", "u1"),
        ("st_other", "u1"),
        ("st_shndx", "u2"),
    ]
)
_PHDR32 = np.dtype(
    [
        (f"p_{name}", "u4")
        for name in ("type", "offset", "vaddr", "paddr", "filesz", "memsz", "flags", "align")
    ]
)

#: Names may share bytes (a linker stores "foo" as the end of "__pfx_foo"), but no linker writes a table whose
#: names are longer together than this many times the table.
_MAX_SHARING = 8


@dataclass(frozen=True)
class Note:
    """A note: gABI chapter 5, "Note Section". ``desc`` is a view of the file."""

    name: bytes
    n_type: int
    desc: memoryview


class SymbolTable:
    """A SHT_SYMTAB or SHT_DYNSYM.

    :ivar index: of its section.
    :ivar table: dtype :data:`SYMBOL`, one entry a symbol, the null symbol included.
    """

    def __init__(self, elf: Elf, index: int) -> None:
        self._elf = elf
        self.index = index
        raw = elf.entries(index, np.dtype(SYMBOL if elf.header.is64 else _SYM32), SYM_SIZE[elf.header.is64])
        self.table = _convert(raw, SYMBOL)

    def __len__(self) -> int:
        return len(self.table)

    @cached_property
    def section(self) -> npt.NDArray[np.int64]:
        """The index of each symbol's section, SHN_XINDEX resolved; 0 when undefined, -1 for SHN_ABS,
        SHN_COMMON and the other reserved numbers, which ``table["st_shndx"]`` has.

        :raises MalformedObject: when SHN_XINDEX is used without a SHT_SYMTAB_SHNDX, or a section is none.
        """
        raw = self.table["st_shndx"]
        section = np.where(raw >= SHN_LORESERVE, -1, raw.astype(np.int64))
        extended = np.flatnonzero(raw == SHN_XINDEX)
        if len(extended):
            section[extended] = self._extended()[extended]
        wrong = np.flatnonzero(section >= self._elf.header.e_shnum)
        if len(wrong):
            raise self._elf.malformed_section(
                self.index, f"symbol {wrong[0]} of section {self.index} lies in no section"
            )
        return section

    def _extended(self) -> npt.NDArray[np.uint32]:
        sections = self._elf.sections
        found = np.flatnonzero(
            (sections["sh_type"] == SHT_SYMTAB_SHNDX) & (sections["sh_link"] == self.index)
        )
        if len(found) == 0:
            raise self._elf.malformed_section(
                self.index, f"expected a SHT_SYMTAB_SHNDX for section {self.index}, found none"
            )
        words = self._elf.entries(int(found[0]), np.dtype("u4"), 4)
        if len(words) < len(self):
            raise self._elf.malformed_section(
                int(found[0]), f"expected {len(self)} words in section {found[0]}"
            )
        return words

    @cached_property
    def names(self) -> list[str]:
        """The symbols' names, in table order."""
        link = int(self._elf.sections["sh_link"][self.index])
        return self._elf.strings(link, self.table["st_name"])

    @cached_property
    def name_column(self) -> NameColumn:
        """The same, to be searched without a string for each."""
        link = int(self._elf.sections["sh_link"][self.index])
        return self._elf.name_column(link, self.table["st_name"])

    @cached_property
    def by_name(self) -> dict[str, int]:
        """Name to index; of several symbols of one name a global one, else the first."""
        binding = self.table["st_info"] >> 4
        # Sorted so that what should win comes last: locals backwards, then the others backwards.
        order = np.lexsort((-np.arange(len(self)), binding != 0))
        names = self.names
        return {names[i]: i for i in order.tolist()}


class Elf:
    """An ELF file.

    :param data: the whole file; tables are views of it.
    :param where: how errors name it.
    """

    def __init__(self, data: Buffer, where: str) -> None:
        self.data = data
        self.where = where
        self.header = Header(data, where)

    def close(self) -> None:
        """Forget all that was read, and the file with it: tables know their file, so that nothing else would soon."""
        vars(self).clear()

    def malformed(self, offset: int, problem: str) -> MalformedObject:
        """The error for a problem at a byte of this file."""
        return MalformedObject(self.where, offset, problem)

    def malformed_section(self, index: int, problem: str) -> MalformedObject:
        """The error for a problem with a section: it points to the section's header."""
        return self.malformed(self.header.place(index), problem)

    def _dtype(self, dtype: np.dtype[Any]) -> np.dtype[Any]:
        return dtype.newbyteorder(self.header.order)

    @cached_property
    def sections(self) -> Table:
        """The section headers, dtype :data:`SECTION`; section 0 included."""
        header = self.header
        dtype = self._dtype(SECTION if header.is64 else _SHDR32)
        raw = (
            np.frombuffer(self.data, dtype, header.e_shnum, header.e_shoff)
            if header.e_shnum
            else np.empty(0, dtype)
        )
        assert dtype.itemsize == SHDR_SIZE[header.is64]
        return _convert(raw, SECTION)

    @cached_property
    def segments(self) -> Table:
        """The program headers, dtype :data:`SEGMENT`."""
        header = self.header
        dtype = self._dtype(SEGMENT if header.is64 else _PHDR32)
        raw = (
            np.frombuffer(self.data, dtype, header.e_phnum, header.e_phoff)
            if header.e_phnum
            else np.empty(0, dtype)
        )
        assert dtype.itemsize == PHDR_SIZE[header.is64]
        return _convert(raw, SEGMENT)

    @cached_property
    def section_names(self) -> list[str]:
        """The sections' names, in table order."""
        if self.header.e_shstrndx == SHN_UNDEF:
            return [""] * len(self.sections)
        return self.strings(self.header.e_shstrndx, self.sections["sh_name"])

    @cached_property
    def section_name_column(self) -> NameColumn:
        """The same, to be searched without a string for each."""
        if self.header.e_shstrndx == SHN_UNDEF:
            return NameColumn(b"\0", np.zeros(len(self.sections), np.uint32), self.where)
        return self.name_column(self.header.e_shstrndx, self.sections["sh_name"])

    def content(self, index: int) -> memoryview:
        """A section's bytes in the file, as they are: compressed ones stay compressed; none of SHT_NOBITS.

        :raises MalformedObject: for a section that there is not or that runs past the file.
        """
        if not 0 <= index < len(self.sections):
            raise self.malformed(
                self.header.e_shoff, f"expected a section below {len(self.sections)}, found {index}"
            )
        section = self.sections[index]
        if section["sh_type"] == SHT_NOBITS:
            return memoryview(b"")
        offset, size = int(section["sh_offset"]), int(section["sh_size"])
        if offset + size > len(self.data):
            raise self.malformed_section(
                index, f"expected {size} bytes at {offset:#x} in section {index}, found the end of the file"
            )
        return memoryview(self.data)[offset : offset + size]

    def entries(self, index: int, dtype: np.dtype[Any], size: int) -> npt.NDArray[Any]:
        """A section's content as an array of ``dtype``, in the file's byte order.

        :raises MalformedObject: when its size is no multiple of an entry's or sh_entsize says otherwise.
        """
        content = self.content(index)
        entsize = int(self.sections["sh_entsize"][index])
        if len(content) % size or entsize not in (size, 0):
            found = f"{len(content)} bytes and sh_entsize {entsize}"
            raise self.malformed_section(
                index, f"expected entries of {size} bytes in section {index}, found {found}"
            )
        return np.frombuffer(content, self._dtype(dtype))

    def strings(self, index: int, offsets: npt.NDArray[Any]) -> list[str]:
        """The strings at ``offsets`` of string table ``index``, in that order.

        :raises MalformedObject: for an offset outside of the table, or strings without end.
        """
        table = bytes(self.content(index))
        unique, inverse = np.unique(offsets, return_inverse=True)
        if len(unique) == 0:
            return []
        if int(unique[-1]) >= len(table):
            if len(unique) == 1 and int(unique[0]) == 0:
                return [""] * len(inverse)
            raise self.malformed_section(
                index, f"expected a string at {unique[-1]} of section {index}, found its end"
            )
        nul = np.flatnonzero(np.frombuffer(table, np.uint8) == 0)
        place = np.searchsorted(nul, unique)
        if int(place[-1]) >= len(nul):
            raise self.malformed_section(
                index, f"expected a string that ends at {unique[-1]} of section {index}, found none"
            )
        ends = nul[place]
        if int((ends - unique).sum()) > _MAX_SHARING * len(table):
            raise self.malformed_section(
                index, f"expected strings of their own in section {index}, found shared ones"
            )
        pairs = zip(unique.tolist(), ends.tolist(), strict=True)
        found = [table[begin:end].decode("utf-8", "surrogateescape") for begin, end in pairs]
        return [found[i] for i in inverse.tolist()]

    def name_column(self, index: int, offsets: npt.NDArray[Any]) -> NameColumn:
        """As :meth:`strings`, without making them.

        :raises MalformedObject: for an offset outside of the table, or a string without end.
        """
        table = self.content(index)
        if len(offsets) and b"\0" not in bytes(table[int(offsets.max()) :]):
            if int(offsets.max()) == 0 and not len(table):
                return NameColumn(b"\0", offsets, self.where)
            raise self.malformed_section(
                index, f"expected a string that ends at {offsets.max()} of section {index}, found none"
            )
        return NameColumn(table, offsets, self.where)

    @cached_property
    def symbol_tables(self) -> list[SymbolTable]:
        """SHT_SYMTAB and SHT_DYNSYM sections, in file order; the gABI allows one of each.

        :raises MalformedObject: when there are more.
        """
        found: list[SymbolTable] = []
        for kind in (SHT_SYMTAB, SHT_DYNSYM):
            indexes = np.flatnonzero(self.sections["sh_type"] == kind)
            if len(indexes) > 1:
                raise self.malformed_section(
                    int(indexes[1]), f"expected one section of type {kind}, found {len(indexes)}"
                )
            found += [SymbolTable(self, int(index)) for index in indexes]
        return sorted(found, key=lambda table: table.index)

    @property
    def symtab(self) -> SymbolTable | None:
        """The SHT_SYMTAB, None in a stripped file."""
        for table in self.symbol_tables:
            if self.sections["sh_type"][table.index] == SHT_SYMTAB:
                return table
        return None

    def notes(self) -> Iterator[Note]:
        """The notes of all SHT_NOTE sections, or of PT_NOTE segments in a file without sections."""
        if len(self.sections):
            for index in np.flatnonzero(self.sections["sh_type"] == SHT_NOTE).tolist():
                row = self.sections[index]
                yield from self._notes(self.content(index), int(row["sh_offset"]), int(row["sh_addralign"]))
            return
        for segment in self.segments[self.segments["p_type"] == PT_NOTE]:
            offset, size = int(segment["p_offset"]), int(segment["p_filesz"])
            if offset + size > len(self.data):
                raise self.malformed(offset, f"expected {size} bytes in a PT_NOTE segment, found the end")
            content = memoryview(self.data)[offset : offset + size]
            yield from self._notes(content, offset, int(segment["p_align"]))

    def _notes(self, content: memoryview, base: int, align: int) -> Iterator[Note]:
        """namesz, descsz, type, a word each; name and descriptor padded to 4 bytes, or to 8 if aligned so."""
        pad = 7 if align == 8 else 3
        at, end = 0, len(content)
        while at < end:
            begin = at + 12
            if begin > end:
                raise self.malformed(base + at, f"expected a note's header of 12 bytes, found {end - at}")
            namesz, descsz, n_type = struct.unpack_from(f"{self.header.order}3I", content, at)
            desc = (begin + namesz + pad) & ~pad
            if desc + descsz > end:
                raise self.malformed(
                    base + at, f"expected a note of {namesz} and {descsz} bytes, found {end - begin}"
                )
            yield Note(
                bytes(content[begin : begin + namesz]).rstrip(b"\0"), n_type, content[desc : desc + descsz]
            )
            at = (desc + descsz + pad) & ~pad

    @property
    def producers(self) -> list[str]:
        """What compilers and linkers have written into .comment, each once."""
        found: dict[str, None] = {}
        for index, name in enumerate(self.section_names):
            if name == ".comment":
                parts = bytes(self.content(index)).split(b"\0")
                found.update(dict.fromkeys(part.decode("utf-8", "replace") for part in parts if part))
        return list(found)


def _convert(raw: npt.NDArray[Any], dtype: np.dtype[Any]) -> Table:
    """``raw`` with the fields of ``dtype`` in the host's byte order; ``raw`` itself if it is that already."""
    if raw.dtype == dtype:
        return raw
    table = np.empty(len(raw), dtype)
    for name in dtype.names or ():
        table[name] = raw[name]
    table.flags.writeable = False
    return table
