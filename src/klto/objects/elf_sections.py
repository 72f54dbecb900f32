"""The section names of an ELF file, without numpy: for a quick look at large files.

Format: gABI chapters 4 "ELF Header" and "Sections" (Elf64_Ehdr, Elf32_Ehdr, Elf64_Shdr, Elf32_Shdr).
"""

from __future__ import annotations

import os
import struct

from klto.objects.errors import MalformedObject
from klto.objects.kind import ELF_MAGIC
from klto.objects.source import read_whole

_SHN_XINDEX = 0xFFFF


def section_names(path: str | os.PathLike[str]) -> list[str]:
    """Names of all sections in order, the null section included.

    :raises MalformedObject: when the file is no ELF file or its section table is broken.
    """
    data, where = read_whole(path), str(path)
    if bytes(data[:4]) != ELF_MAGIC or len(data) < 52:
        raise MalformedObject(where, 0, "expected an ELF header")
    wide, order = data[4] == 2, ">" if data[5] == 2 else "<"
    try:
        if wide:
            (e_shoff,) = struct.unpack_from(order + "Q", data, 40)
            e_shentsize, e_shnum, e_shstrndx = struct.unpack_from(order + "3H", data, 58)
            header = struct.Struct(order + "II4Q2I2Q")
        else:
            (e_shoff,) = struct.unpack_from(order + "I", data, 32)
            e_shentsize, e_shnum, e_shstrndx = struct.unpack_from(order + "3H", data, 46)
            header = struct.Struct(order + "10I")
        if e_shoff == 0:
            return []
        first = header.unpack_from(data, e_shoff)
        # Counts that do not fit are in section 0: sh_size and sh_link.
        count = e_shnum or first[5]
        strings = first[6] if e_shstrndx == _SHN_XINDEX else e_shstrndx
        if count * header.size > len(data):
            raise MalformedObject(where, e_shoff, f"expected {count} section headers, the file is too short")
        sections = [header.unpack_from(data, e_shoff + index * e_shentsize) for index in range(count)]
        _, _, _, _, offset, size, *_ = sections[strings]
    except (struct.error, IndexError) as error:
        raise MalformedObject(where, None, f"expected a section table within the file ({error})") from error
    table = bytes(data[offset : offset + size])
    return [_name(table, section[0]) for section in sections]


def _name(table: bytes, at: int) -> str:
    end = table.find(b"\0", at)
    return table[at : end if end >= 0 else len(table)].decode("utf-8", "replace")
