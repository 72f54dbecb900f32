"""The section names of an ELF file, without numpy: for a quick look at large files."""

from __future__ import annotations

import os

from klto.objects.elf_header import SHN_UNDEF, Header
from klto.objects.errors import MalformedObject
from klto.objects.source import read_whole


def section_names(path: str | os.PathLike[str]) -> list[str]:
    """Names of all sections in order, the null section included; empty ones in a file without names.

    :raises MalformedObject: when the file is no ELF file or its section table is broken.
    """
    header = Header(read_whole(path), os.fspath(path))
    numbers = range(header.e_shnum)
    if header.e_shstrndx == SHN_UNDEF:
        return ["" for _ in numbers]
    offset, size = header.section(header.e_shstrndx)[4:6]
    table = bytes(header.data[offset : offset + size])
    # No writer shares more than the ends of names.
    budget = 8 * len(table)
    names = []
    for number in numbers:
        begin = header.section(number)[0]
        end = table.find(b"\0", begin)
        budget -= max(0, end - begin)
        if end < 0 or budget < 0:
            raise MalformedObject(header.where, offset, f"expected a name for section {number}")
        names.append(table[begin:end].decode("utf-8", "surrogateescape"))
    return names
