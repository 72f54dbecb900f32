"""What a file is, by its first eight bytes.

A linker shim asks this of every input of a link, in an interpreter that should cost nothing: this file
imports the interpreter's built-ins only.
"""

from __future__ import annotations

import os

from klto.objects.errors import cannot_read

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Literal

    Kind = Literal["elf", "bitcode", "archive", "thin-archive", "other"]

#: Bytes that :func:`kind_of_bytes` wants to see.
MAGIC_SIZE = 8

#: gABI chapter 4, "ELF Identification": EI_MAG0..EI_MAG3.
ELF_MAGIC = b"\x7fELF"
#: Raw bitcode, isRawBitcode() in llvm/include/llvm/Bitcode/BitcodeReader.h.
BITCODE_MAGIC = b"BC\xc0\xde"
#: Bitcode in its wrapper (0x0B17C0DE, little endian), isBitcodeWrapper() in the same header.
WRAPPER_MAGIC = b"\xde\xc0\x17\x0b"
#: ArchiveMagic and ThinArchiveMagic in llvm/include/llvm/Object/Archive.h; ARMAG and ARMAGT of GNU aout/ar.h.
ARCHIVE_MAGIC = b"!<arch>\n"
THIN_ARCHIVE_MAGIC = b"!<thin>\n"


def kind_of_bytes(data: bytes | memoryview) -> Kind:
    """The kind of an object that begins with ``data``; :data:`MAGIC_SIZE` bytes are enough."""
    head = bytes(data[:MAGIC_SIZE])
    if head[:4] == ELF_MAGIC:
        return "elf"
    if head[:4] in (BITCODE_MAGIC, WRAPPER_MAGIC):
        return "bitcode"
    if head == ARCHIVE_MAGIC:
        return "archive"
    if head == THIN_ARCHIVE_MAGIC:
        return "thin-archive"
    return "other"


def kind_of(path: str | os.PathLike[str]) -> Kind:
    """The kind of the file at ``path``; reads :data:`MAGIC_SIZE` bytes.

    :raises MalformedObject: when the file cannot be opened or read.
    """
    try:
        # A FIFO without a writer is empty then, instead of blocking.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            return kind_of_bytes(os.read(fd, MAGIC_SIZE))
        finally:
            os.close(fd)
    except OSError as error:
        raise cannot_read(path, error) from error
