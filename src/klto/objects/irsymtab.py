"""The symbol table that LLVM puts into bitcode files for linkers, and the way to it over the other blocks.

Format: llvm/include/llvm/Object/IRSymtab.h (namespace irsymtab::storage), blocks as in
llvm/lib/Bitcode/Reader/BitcodeReader.cpp, getBitcodeFileContents. ``klto initcalls`` reads a thousand of
these in less time than a larger import takes: standard library only, and little of it.
"""

from __future__ import annotations

import struct
import sys
from array import array
from operator import add

from klto.objects.errors import MalformedObject
from klto.objects.kind import BITCODE_MAGIC, WRAPPER_MAGIC

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from klto.objects.source import Buffer

# BlockIDs of llvm/include/llvm/Bitcode/LLVMBitCodes.h, those at the top of a file.
MODULE_BLOCK_ID = 8
IDENTIFICATION_BLOCK_ID = 13
STRTAB_BLOCK_ID = 23
SYMTAB_BLOCK_ID = 25
#: SYMTAB_BLOB and STRTAB_BLOB of LLVMBitCodes.h.
_BLOB_CODE = 1

# storage::Symbol::FlagBits.
FB_VISIBILITY = 3
FB_HAS_UNCOMMON = 1 << 2
FB_UNDEFINED = 1 << 3
FB_WEAK = 1 << 4
FB_COMMON = 1 << 5
FB_INDIRECT = 1 << 6
FB_USED = 1 << 7
FB_TLS = 1 << 8
FB_MAY_OMIT = 1 << 9
FB_GLOBAL = 1 << 10
FB_FORMAT_SPECIFIC = 1 << 11
FB_UNNAMED_ADDR = 1 << 12
FB_EXECUTABLE = 1 << 13

#: storage::Header: Version, Producer, Modules, Comdats, Symbols, Uncommons, TargetTriple, SourceFileName,
#: COFFLinkerOpts, DependentLibraries; a word each for Version, an offset and a size for the others.
_HEADER = struct.Struct("<19I")
_MODULE = struct.Struct("<3I")
#: storage::Symbol: Name, IRName, ComdatIndex, Flags.
_SYMBOL = struct.Struct("<6I")
_SYMBOL_WORDS = 6
#: Versions whose layout is known. LLVM 14 to 22 write 3; 4 has a wider Uncommon::CommonSize, which is not read.
_VERSIONS = (3, 4)
_WRAPPER = struct.Struct("<5I")

#: What LLVM's writer begins a SYMTAB or STRTAB block with: DEFINE_ABBREV [literal 1, blob], abbreviation 4.
_BLOB_PRELUDE = 2 | 2 << 3 | 1 << 8 | _BLOB_CODE << 9 | 5 << 18 | 4 << 21


class UnknownSymbolTable(Exception):
    """A symbol table whose version is not known; its message says which. Never leaves klto.objects."""


def unwrap(data: Buffer, where: str) -> tuple[Buffer, int]:
    """Raw bitcode out of its wrapper, if it is in one, and the bytes before it.

    :raises MalformedObject: neither raw nor wrapped bitcode, or a wrapper that lies about its content.
    """
    base = 0
    if bytes(data[:4]) == WRAPPER_MAGIC:
        # BitstreamWrapperHeader of Bitstream/BitCodes.h: Magic, Version, Offset, Size, CPUType.
        if len(data) < _WRAPPER.size:
            raise MalformedObject(
                where, len(data), f"expected a wrapper of {_WRAPPER.size} bytes, found the end"
            )
        _, _, base, size, _ = _WRAPPER.unpack_from(data)
        if base + size > len(data):
            raise MalformedObject(
                where, 8, f"expected {size} bytes at {base} in the wrapper, found {len(data)}"
            )
        data = memoryview(data)[base : base + size]
    if bytes(data[:4]) != BITCODE_MAGIC:
        raise MalformedObject(where, base, f"expected the magic of bitcode, found {bytes(data[:4])!r}")
    return data, base


def top_level_blocks(data: Buffer, where: str, base: int = 0) -> Iterator[tuple[int, int, int, int]]:
    """The blocks of raw bitcode: (block ID, abbreviation width, first byte of the body, byte after it).

    :raises MalformedObject: when something else than a block is met.
    """
    at, end = 4, len(data)
    # getBitcodeFileContents: up to 8 bytes that an archiver left behind the last block are no error.
    while at + 8 < end:
        # All of abbreviation ID (2 bits), block ID (vbr8) and width (vbr4) fit into the first word.
        word, words = struct.unpack_from("<2I", data, at)
        if word & 3 != 1 or word & 0x200 or word & 0x2000:
            raise MalformedObject(where, base + at, f"expected ENTER_SUBBLOCK, found {word:#010x}")
        begin = at + 8
        after = begin + 4 * words
        if after > end:
            raise MalformedObject(where, base + at + 4, f"expected a block of {words} words, found the end")
        yield word >> 2 & 0x7F, word >> 10 & 7, begin, after
        at = after


def blob_of(data: Buffer, width: int, begin: int, end: int, where: str, base: int = 0) -> Buffer:
    """The one blob of a SYMTAB or STRTAB block.

    :raises MalformedObject: when the block holds none.
    """
    if width == 3 and begin + 12 <= end:
        prelude, high = struct.unpack_from("<2I", data, begin)
        if prelude & 0xFFFFFF == _BLOB_PRELUDE:
            bits = prelude >> 24 | high << 8
            size, at, used = bits & 31, 24 + 6, 6
            while bits & 32 and used < 36:
                bits >>= 6
                size |= (bits & 31) << (used // 6 * 5)
                at += 6
                used += 6
            first = begin + (at + 31) // 32 * 4
            if not bits & 32 and first + size <= end:
                return data[first : first + size]
    return _blob_by_the_book(data, width, begin, end, where, base)


def _blob_by_the_book(data: Buffer, width: int, begin: int, end: int, where: str, base: int) -> Buffer:
    from klto.objects.bitstream import Bitstream, Block, Record

    stream = Bitstream(data, where, base)
    for item in stream.items(Block(0, width, 8 * begin, 8 * end), [], (_BLOB_CODE,), None):
        if isinstance(item, Record):
            first, size = item.blob()
            if first + size > end:
                break
            return data[first : first + size]
    raise MalformedObject(where, base + begin, "expected a block with a blob, found none")


class SymbolTable:
    """An irsymtab: what a linker sees of a bitcode file. Values; do not assign.

    :param at: where its block begins in the file, for errors.
    :ivar version: storage::Header::Version.
    :ivar producer: LLVM's version and revision, as the writer has it.
    :ivar modules: for each module of the file (first symbol, symbol after the last, first uncommon).
    """

    __slots__ = (
        "_at",
        "_strtab",
        "_symbols",
        "_symtab",
        "_where",
        "dependent_libraries",
        "modules",
        "producer",
        "source_file_name",
        "target_triple",
        "version",
    )

    def __init__(self, symtab: Buffer, strtab: Buffer, where: str, at: int) -> None:
        if len(symtab) < _HEADER.size:
            raise MalformedObject(where, at, f"expected a symbol table header, found {len(symtab)} bytes")
        header = _HEADER.unpack_from(symtab)
        self.version = header[0]
        if self.version not in _VERSIONS:
            raise UnknownSymbolTable(f"a symbol table of version {self.version}")
        self._where, self._at = where, at
        self._symtab, self._strtab = symtab, strtab
        self.producer = self._str(header[1], header[2])
        modules = self._range("modules", header[3], header[4], _MODULE.size)
        self.modules = list(_MODULE.iter_unpack(modules))
        self._symbols = self._range("symbols", header[7], header[8], _SYMBOL.size)
        self.target_triple = self._str(header[11], header[12])
        self.source_file_name = self._str(header[13], header[14])
        libraries = struct.iter_unpack("<2I", self._range("libraries", header[17], header[18], 8))
        self.dependent_libraries = tuple(self._str(offset, size) for offset, size in libraries)

    def _range(self, what: str, offset: int, count: int, size: int) -> memoryview:
        end = offset + count * size
        if end > len(self._symtab):
            raise MalformedObject(
                self._where,
                self._at,
                f"expected {count} {what} at {offset} of the symbol table, found its end",
            )
        return memoryview(self._symtab)[offset:end]

    def _str(self, offset: int, size: int) -> str:
        if offset + size > len(self._strtab):
            raise MalformedObject(
                self._where, self._at, f"expected {size} bytes at {offset} of the string table, found its end"
            )
        return str(self._strtab[offset : offset + size], "utf-8", "surrogateescape")

    def __len__(self) -> int:
        return len(self._symbols) // _SYMBOL.size

    def raw(self) -> tuple[memoryview, Buffer]:
        """The symbols as they stand in the file (storage::Symbol, little endian), and the bytes of their names."""
        return self._symbols, self._strtab

    def columns(self) -> tuple[list[str], array[int], array[int]]:
        """Of each symbol its name, its IR name's size (0: it comes from assembly, or has none), and its flags.

        Columns, since a loop over the symbols of a kernel's modules would take longer than all the rest.

        :raises MalformedObject: for a name outside of the string table.
        """
        words = array("I", bytes(self._symbols))
        if sys.byteorder == "big":
            words.byteswap()
        offsets, sizes = words[0::_SYMBOL_WORDS], words[1::_SYMBOL_WORDS]
        end = len(self._strtab)
        if max(map(add, offsets, sizes), default=0) > end:
            raise MalformedObject(
                self._where, self._at, f"expected names within {end} bytes of strings, found one beyond"
            )
        # A name stands once in the string table and belongs to a symbol or two: a small table must not stand
        # for large names.
        if sum(sizes) > 4 * (end + len(self._symtab)):
            raise MalformedObject(
                self._where, self._at, "expected a name of its own for each symbol, found shared ones"
            )
        strings = bytes(self._strtab)
        if strings.isascii():
            text = strings.decode()
            names = [text[offset : offset + size] for offset, size in zip(offsets, sizes, strict=True)]
        else:
            pairs = zip(offsets, sizes, strict=True)
            names = [
                strings[offset : offset + size].decode("utf-8", "surrogateescape") for offset, size in pairs
            ]
        return names, words[3::_SYMBOL_WORDS], words[5::_SYMBOL_WORDS]

    def named(self, prefix: bytes) -> Iterator[tuple[str, int]]:
        """Name and flags of the symbols whose names begin with ``prefix``, without a look at other names.

        :raises MalformedObject: for such a name that runs out of the string table.
        """
        strtab = bytes(self._strtab)
        begins = set()
        at = strtab.find(prefix)
        while at >= 0:
            begins.add(at)
            at = strtab.find(prefix, at + 1)
        budget = 4 * (len(strtab) + len(self._symtab))
        for offset, size, _, _, _, flags in _SYMBOL.iter_unpack(self._symbols):
            if offset in begins and size >= len(prefix):
                budget -= size
                if budget < 0:
                    raise MalformedObject(
                        self._where, self._at, "expected names of their own, found shared ones"
                    )
                yield self._str(offset, size), flags
