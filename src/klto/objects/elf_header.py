"""The ELF header and the numbers it points to: all that must be known before any table can be read.

Format: gABI chapter 4, "ELF Header" and "Section Header"; names are the specification's. Standard library
only, so that ``klto initcalls`` can read symbols without numpy (see :mod:`klto.objects.elf_symbols`).
"""

from __future__ import annotations

import struct

from klto.objects.errors import MalformedObject
from klto.objects.kind import ELF_MAGIC

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Literal

    from klto.objects.source import Buffer

# e_ident: EI_CLASS, EI_DATA, EI_VERSION.
_ELFCLASS32, _ELFCLASS64 = 1, 2
_ELFDATA2LSB, _ELFDATA2MSB = 1, 2
_EV_CURRENT = 1
#: Special section indexes.
SHN_UNDEF = 0
SHN_LORESERVE = 0xFF00
SHN_ABS = 0xFFF1
SHN_COMMON = 0xFFF2
SHN_XINDEX = 0xFFFF
#: e_phnum of a file whose number of segments does not fit; see "ELF Header", e_phnum.
_PN_XNUM = 0xFFFF

#: Bytes of Elf32_Ehdr/Elf64_Ehdr, Shdr, Phdr and Sym.
_EHDR = (52, 64)
SHDR_SIZE = (40, 64)
PHDR_SIZE = (32, 56)
SYM_SIZE = (16, 24)
#: Elf32_Shdr and Elf64_Shdr have the same fields in the same order.
SHDR_FIELDS = ("10I", "2I4Q2I2Q")


class Header:
    """An ELF header, with the numbers that did not fit into it filled in. Values; do not assign.

    :ivar is64: ELFCLASS64.
    :ivar order: byte order as :mod:`struct` has it, ``<`` or ``>``.
    :ivar e_shnum: sections; 0 when there is no section table.
    """

    __slots__ = (
        "data",
        "e_entry",
        "e_flags",
        "e_machine",
        "e_phnum",
        "e_phoff",
        "e_shnum",
        "e_shoff",
        "e_shstrndx",
        "e_type",
        "is64",
        "order",
        "where",
    )

    def __init__(self, data: Buffer, where: str) -> None:
        self.data = data
        self.where = where
        ident = bytes(data[:16])
        if ident[:4] != ELF_MAGIC:
            raise MalformedObject(where, 0, f"expected the magic of ELF, found {ident[:4]!r}")
        if len(ident) < 16 or ident[4] not in (_ELFCLASS32, _ELFCLASS64):
            raise MalformedObject(
                where, 4, f"expected class 1 (32 bit) or 2 (64 bit), found {ident[4:5].hex()}"
            )
        if ident[5] not in (_ELFDATA2LSB, _ELFDATA2MSB) or ident[6] != _EV_CURRENT:
            raise MalformedObject(
                where, 5, f"expected byte order 1 or 2 and version 1, found {ident[5:7].hex()}"
            )
        self.is64 = ident[4] == _ELFCLASS64
        self.order: Literal["<", ">"] = "<" if ident[5] == _ELFDATA2LSB else ">"
        size = _EHDR[self.is64]
        if len(data) < size:
            raise MalformedObject(where, len(data), f"expected an ELF header of {size} bytes, found the end")
        word = "Q" if self.is64 else "I"
        fields: tuple[int, ...] = struct.unpack_from(f"{self.order}2HI3{word}I6H", data, 16)
        self.e_type, self.e_machine, _, self.e_entry, self.e_phoff, self.e_shoff, self.e_flags = fields[:7]
        _, phentsize, self.e_phnum, shentsize, self.e_shnum, self.e_shstrndx = fields[7:]
        self._read_extended(shentsize)
        self._check_table("section", self.e_shoff, self.e_shnum, shentsize, SHDR_SIZE[self.is64])
        self._check_table("program", self.e_phoff, self.e_phnum, phentsize, PHDR_SIZE[self.is64])
        if self.e_shnum and self.e_shstrndx >= self.e_shnum:
            raise MalformedObject(
                where, size - 2, f"expected e_shstrndx below {self.e_shnum}, found {self.e_shstrndx}"
            )

    def _read_extended(self, shentsize: int) -> None:
        """Numbers of SHN_LORESERVE and more are in section 0: sh_size, sh_link and sh_info."""
        if not self.e_shoff:
            self.e_shnum = 0
            return
        if self.e_shnum and self.e_shstrndx != SHN_XINDEX and self.e_phnum != _PN_XNUM:
            return
        self._check_table("section", self.e_shoff, 1, shentsize, SHDR_SIZE[self.is64])
        first = self.section(0)
        if not self.e_shnum:
            self.e_shnum = first[5]
        if self.e_shstrndx == SHN_XINDEX:
            self.e_shstrndx = first[6]
        if self.e_phnum == _PN_XNUM:
            self.e_phnum = first[7]

    def _check_table(self, what: str, offset: int, count: int, entry: int, expected: int) -> None:
        if count and entry != expected:
            # e_phentsize and e_shentsize are the fifth and the third half word from the header's end.
            place = _EHDR[self.is64] - (6 if what == "section" else 10)
            raise MalformedObject(
                self.where, place, f"expected {what} headers of {expected} bytes, found {entry}"
            )
        if count and offset + count * expected > len(self.data):
            raise MalformedObject(
                self.where, offset, f"expected {count} {what} headers, found the end of the file"
            )

    def section(self, index: int) -> tuple[int, ...]:
        """A section header: sh_name, type, flags, addr, offset, size, link, info, addralign, entsize."""
        return struct.unpack_from(self.order + SHDR_FIELDS[self.is64], self.data, self.place(index))

    def place(self, index: int) -> int:
        """Byte offset of a section header: where errors about the section point to."""
        return self.e_shoff + index * SHDR_SIZE[self.is64]
