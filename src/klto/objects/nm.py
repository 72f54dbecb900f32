"""Symbols with the letters that llvm-nm gives them, for what has to agree with the kernel's nm pipelines.

Letters: getNMSectionTagAndName and getSymbolNMTypeChar of llvm/tools/llvm-nm/llvm-nm.cpp; symbol flags as in
llvm/include/llvm/Object/ELFObjectFile.h and llvm/lib/Object/ModuleSymbolTable.cpp. Standard library only.
"""

from __future__ import annotations

import struct

from klto.objects import irsymtab
from klto.objects.elf_header import (
    SHN_ABS,
    SHN_COMMON,
    SHN_LORESERVE,
    SHN_UNDEF,
    SHN_XINDEX,
    SYM_SIZE,
    Header,
)
from klto.objects.errors import MalformedObject

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from klto.objects.source import Buffer

# gABI chapter 4: "Section Types", "Section Attribute Flags", "Symbol Binding", "Symbol Types".
_SHT_SYMTAB, _SHT_NOBITS, _SHT_SYMTAB_SHNDX = 2, 8, 18
_SHF_WRITE, _SHF_ALLOC, _SHF_EXECINSTR = 1, 2, 4
_STB_LOCAL, _STB_GLOBAL, _STB_WEAK, _STB_GNU_UNIQUE = 0, 1, 2, 10
_STT_OBJECT, _STT_SECTION, _STT_FILE, _STT_COMMON, _STT_GNU_IFUNC = 1, 3, 4, 5, 10
#: e_machine to the prefixes of its mapping symbols (aaelf32 and aaelf64, "Mapping symbols"; RISC-V psABI).
_MAPPING = {40: ("$a", "$t", "$d"), 183: ("$x", "$d"), 243: ("$x", "$d", ".L0 ")}
#: Elf32_Sym and Elf64_Sym for struct, and where name, info, shndx and value are in them.
_SYM = (("3I2BH", (0, 3, 5, 1)), ("I2BH2Q", (0, 1, 3, 4)))


def letter_of_ir(flags: int) -> str:
    """llvm-nm's letter for an irsymtab symbol; a blank for what it leaves out."""
    if flags & irsymtab.FB_FORMAT_SPECIFIC:
        return " "
    if flags & irsymtab.FB_UNDEFINED:
        return "w" if flags & irsymtab.FB_WEAK else "U"
    if flags & irsymtab.FB_WEAK:
        return "W"
    if flags & irsymtab.FB_COMMON:
        return "C"
    letter = "t" if flags & irsymtab.FB_EXECUTABLE else "d"
    return letter.upper() if flags & irsymtab.FB_GLOBAL else letter


class ElfSymbols:
    """The SHT_SYMTAB of an ELF file, read one symbol at a time.

    For some symbols of many small files; :class:`klto.objects.elf.Elf` is for all symbols of large ones.

    :raises MalformedObject: when the file is broken.
    """

    def __init__(self, data: Buffer, where: str) -> None:
        self._header = header = Header(data, where)
        self._symtab = self._strtab = self._shndx = memoryview(b"")
        self._place = 0
        index = self._find(_SHT_SYMTAB, 0)
        if index is None:
            return
        self._place = header.place(index)
        self._symtab = self._content(index)
        link = header.section(index)[6]
        if link >= header.e_shnum:
            raise MalformedObject(
                where, self._place, f"expected section {index} to have names in a section, found {link}"
            )
        self._strtab = self._content(link)
        if len(self._symtab) % SYM_SIZE[header.is64]:
            raise MalformedObject(where, self._place, f"expected whole symbols in section {index}")
        extended = self._find(_SHT_SYMTAB_SHNDX, index)
        if extended is not None:
            self._shndx = self._content(extended)

    def __len__(self) -> int:
        return len(self._symtab) // SYM_SIZE[self._header.is64]

    def _find(self, kind: int, link: int) -> int | None:
        for index in range(self._header.e_shnum):
            section = self._header.section(index)
            if section[1] == kind and link in (0, section[6]):
                return index
        return None

    def _content(self, index: int) -> memoryview:
        section = self._header.section(index)
        begin, end = section[4], section[4] + section[5]
        if end > len(self._header.data):
            raise MalformedObject(self._header.where, begin, f"expected section {index} within the file")
        return memoryview(self._header.data)[begin:end]

    def matching(self, needle: bytes) -> Iterator[tuple[str, str, int]]:
        """Symbols whose name holds ``needle``: letter, name and value.

        :raises MalformedObject: when a symbol points out of the file.
        """
        strtab = bytes(self._strtab)
        if needle not in strtab:
            return
        header = self._header
        layout, (name_at, info_at, shndx_at, value_at) = _SYM[header.is64]
        # Names may share bytes, but a small table must not stand for large names.
        budget = 8 * len(header.data)
        for number, symbol in enumerate(struct.iter_unpack(header.order + layout, self._symtab)):
            begin = symbol[name_at]
            end = strtab.find(b"\0", begin)
            if end < 0:
                raise MalformedObject(
                    header.where, self._place, f"expected a name for symbol {number}, found none"
                )
            budget -= end - begin
            if budget < 0:
                raise MalformedObject(
                    header.where, self._place, f"expected a name of its own for symbol {number}"
                )
            if strtab.find(needle, begin, end) >= 0:
                name = strtab[begin:end].decode("utf-8", "surrogateescape")
                yield self._letter(number, symbol[info_at], symbol[shndx_at], name), name, symbol[value_at]

    def _letter(self, number: int, info: int, shndx: int, name: str) -> str:
        binding, kind = info >> 4, info & 15
        if kind in (_STT_FILE, _STT_SECTION) or name.startswith(_MAPPING.get(self._header.e_machine, ())):
            return " "
        if shndx == SHN_UNDEF:
            weak = "v" if kind == _STT_OBJECT else "w"
            return weak if binding == _STB_WEAK else "U"
        if kind == _STT_GNU_IFUNC:
            return "i"
        if binding == _STB_WEAK:
            return "V" if kind == _STT_OBJECT else "W"
        if kind == _STT_COMMON or shndx == SHN_COMMON:
            return "C"
        if shndx == SHN_ABS:
            letter = "a"
        elif binding == _STB_GNU_UNIQUE:
            return "u"
        else:
            letter = self._letter_of_section(number, shndx) if binding in (_STB_LOCAL, _STB_GLOBAL) else "?"
        return letter if binding == _STB_LOCAL else letter.upper()

    def _letter_of_section(self, number: int, shndx: int) -> str:
        if shndx == SHN_XINDEX:
            if 4 * number + 4 > len(self._shndx):
                raise MalformedObject(
                    self._header.where, self._place, f"expected SHT_SYMTAB_SHNDX for symbol {number}"
                )
            (shndx,) = struct.unpack_from(f"{self._header.order}I", self._shndx, 4 * number)
        elif shndx >= SHN_LORESERVE:
            return "?"
        if shndx >= self._header.e_shnum:
            raise MalformedObject(
                self._header.where, self._place, f"expected a section for symbol {number}, found {shndx}"
            )
        name, kind, flags = self._header.section(shndx)[:3]
        if flags & _SHF_EXECINSTR:
            return "t"
        if kind == _SHT_NOBITS:
            return "b"
        if flags & _SHF_ALLOC:
            return "d" if flags & _SHF_WRITE else "r"
        if self._section_name(name).startswith(b".debug"):
            return "N"
        return "?" if flags & _SHF_WRITE else "n"

    def _section_name(self, offset: int) -> bytes:
        return bytes(self._content(self._header.e_shstrndx)[offset : offset + 16])
