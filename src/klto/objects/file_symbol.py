"""The name of the source file that a native object says it was made from: its STT_FILE symbol.

LLVM makes it the first symbol of every object (llvm/lib/MC/ELFObjectWriter.cpp) and gives the base name of the
module's source file. Standard library only: the link's own process reads it from every object that it has made.
"""

from __future__ import annotations

import os
import struct

from klto.objects.elf_header import SHDR_FIELDS, SHDR_SIZE, SYM_SIZE

#: e_ident[EI_CLASS] and [EI_DATA] of the objects read here: ELFCLASS64, ELFDATA2LSB (gABI chapter 4).
_IDENT = b"\x7fELF\x02\x01"
_SHT_SYMTAB = 2
_STT_FILE = 4

#: Longest name looked at, in bytes (PATH_MAX, include/uapi/linux/limits.h).
_LONGEST = 4096


def file_symbol(path: str) -> str | None:
    """The object's source file, None when it does not say or is no 64-bit little-endian ELF file.

    :raises OSError: when it cannot be read.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return _file_symbol(descriptor)
    except (struct.error, IndexError):
        return None  # Cut short, or its tables lead nowhere.
    finally:
        os.close(descriptor)


def _file_symbol(descriptor: int) -> str | None:
    header = os.pread(descriptor, 64, 0)
    if header[:6] != _IDENT:
        return None
    (offset,) = struct.unpack_from("<Q", header, 40)
    (count,) = struct.unpack_from("<H", header, 60)
    size = SHDR_SIZE[1]
    table = os.pread(descriptor, size * count, offset)
    for fields in struct.iter_unpack(f"<{SHDR_FIELDS[1]}", table[: len(table) // size * size]):
        if fields[1] != _SHT_SYMTAB:
            continue
        symbol = os.pread(descriptor, SYM_SIZE[1], fields[4] + SYM_SIZE[1])
        name, info = struct.unpack_from("<IB", symbol)
        if info & 15 != _STT_FILE:
            return None
        strings = struct.unpack_from(f"<{SHDR_FIELDS[1]}", table, size * fields[6])
        text, end, _ = os.pread(descriptor, _LONGEST, strings[4] + name).partition(b"\0")
        return os.fsdecode(text) if end and name < strings[5] else None
    return None
