"""One module of a bitcode file: its properties, its assembly, its globals.

Format: llvm/include/llvm/Bitcode/LLVMBitCodes.h, whose names are used here, as
llvm/lib/Bitcode/Reader/BitcodeReader.cpp reads it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from klto.objects import irsymtab
from klto.objects.bitcode_symbols import GLOBALS, Symbol, is_alias_of_code, symbol_of
from klto.objects.bits import characters
from klto.objects.bitstream import Abbrev, Bitstream, Block, Record
from klto.objects.source import Buffer

# BlockIDs of LLVMBitCodes.h, those within a module.
_CONSTANTS_BLOCK_ID = 11
_FUNCTION_BLOCK_ID = 12
_GLOBALVAL_SUMMARY_BLOCK_ID = 20
_FULL_LTO_GLOBALVAL_SUMMARY_BLOCK_ID = 24

# IdentificationCodes and ModuleCodes.
_IDENTIFICATION_CODE_STRING, _IDENTIFICATION_CODE_EPOCH = 1, 2
_MODULE_CODE_VERSION = 1
_MODULE_CODE_TRIPLE = 2
_MODULE_CODE_DATALAYOUT = 3
_MODULE_CODE_ASM = 4
_MODULE_CODE_SECTIONNAME = 5
_MODULE_CODE_SOURCE_FILENAME = 16
_MODULE_CODE_HASH = 17
_PROPERTIES = frozenset((1, 2, 3, 4, 5, 16, 17))

#: GlobalValueSummarySymtabCodes: FS_PERMODULE, FS_PERMODULE_PROFILE, FS_PERMODULE_RELBF: [valueid, flags, instcount,
#: ...].
_FS_FUNCTION = (1, 2, 19)

# FunctionCodes: what may stand before a function's constants (BitcodeWriter.cpp, writeFunction).
_FUNC_CODE_DECLAREBLOCKS = 1
#: Any code: items() asks for membership only.
_ANY = range(1 << 32)

#: ConstantsCodes: CST_CODE_INLINEASM_OLD, _OLD2, _OLD3, CST_CODE_INLINEASM: operands before the text.
_INLINEASM = {18: 1, 23: 1, 28: 1, 30: 2}


@dataclass(frozen=True)
class InlineAsm:
    """One inline assembly statement of a function.

    :ivar text: the template, operands as "$0"; see :func:`klto.objects.assembly.expand_template`.
    """

    text: bytes
    constraints: bytes


@dataclass(frozen=True)
class Properties:
    """What the module's own records say.

    :ivar asm: module-level assembly, b"" when there is none.
    :ivar hash: MODULE_CODE_HASH, 20 bytes; None when there is none.
    :ivar summary: ``thin`` or ``full``, the kind of LTO its summary is for; None without one.
    """

    version: int
    target_triple: str
    data_layout: str
    source_filename: str
    asm: bytes
    section_names: tuple[str, ...]
    hash: bytes | None
    summary: str | None


class Module:
    """One module of a bitcode file; most files have one, ``-fsplit-lto-unit`` can make two."""

    def __init__(self, stream: Bitstream, block: Block, identification: Block | None) -> None:
        self._stream = stream
        self._block = block
        self._identification = identification
        self.strtab: Buffer | None = None

    @property
    def stream(self) -> Bitstream:
        """The bits it is in, for readers of blocks that this class leaves alone."""
        return self._stream

    @property
    def block(self) -> Block:
        """Its own block."""
        return self._block

    @cached_property
    def identification(self) -> tuple[str | None, int | None]:
        """The IDENTIFICATION block's string (the LLVM that wrote it, "LLVM19.1.7") and epoch; None for none.

        :raises MalformedObject: when the block is broken.
        """
        producer, epoch = None, None
        if self._identification is not None:
            codes = (_IDENTIFICATION_CODE_STRING, _IDENTIFICATION_CODE_EPOCH)
            for item in self._stream.items(self._identification, [], codes, None):
                if isinstance(item, Record) and item.code == _IDENTIFICATION_CODE_STRING:
                    producer = _decode(item.text())
                elif isinstance(item, Record):
                    epoch = (item.ops(1) or [0])[0]
        return producer, epoch

    @property
    def identification_bytes(self) -> bytes:
        """The block that :attr:`identification` reads, with its two words before it; b"" without one."""
        block = self._identification
        return bytes(self._stream.data[block.begin // 8 - 8 : block.end // 8]) if block is not None else b""

    @property
    def producer(self) -> str | None:
        """Who wrote it."""
        return self.identification[0]

    @property
    def epoch(self) -> int | None:
        """BITCODE_CURRENT_EPOCH of its writer."""
        return self.identification[1]

    @cached_property
    def properties(self) -> Properties:
        """Its records; the first call walks the module.

        :raises MalformedObject: when they are broken.
        """
        text: dict[int, bytes] = {}
        sections: list[str] = []
        version, summary, digest = 0, None, None
        for item in self._stream.items(self._block, [], _PROPERTIES, None):
            if isinstance(item, Block):
                if item.block_id == _GLOBALVAL_SUMMARY_BLOCK_ID:
                    summary = "thin"
                elif item.block_id == _FULL_LTO_GLOBALVAL_SUMMARY_BLOCK_ID:
                    summary = "full"
            elif item.code == _MODULE_CODE_VERSION:
                version = (item.ops(1) or [0])[0]
            elif item.code == _MODULE_CODE_SECTIONNAME:
                sections.append(_decode(item.text()))
            elif item.code == _MODULE_CODE_HASH:
                digest = self._hash(item)
            elif item.code == _MODULE_CODE_ASM:
                text[item.code] = text.get(item.code, b"") + item.text()
            else:
                text[item.code] = item.text()
        triple = _decode(text.get(_MODULE_CODE_TRIPLE, b""))
        layout = _decode(text.get(_MODULE_CODE_DATALAYOUT, b""))
        source = _decode(text.get(_MODULE_CODE_SOURCE_FILENAME, b""))
        asm = text.get(_MODULE_CODE_ASM, b"")
        return Properties(version, triple, layout, source, asm, tuple(sections), digest, summary)

    def functions(self) -> tuple[int, int]:
        """(functions, instructions in them) as LLVM counts them for its summary (FunctionSummary::instCount: without
        debug intrinsics); nothing without a summary.

        :raises MalformedObject: when the module is broken.
        """
        count = total = 0
        summaries = (_GLOBALVAL_SUMMARY_BLOCK_ID, _FULL_LTO_GLOBALVAL_SUMMARY_BLOCK_ID)
        for item in self._stream.items(self._block, [], (), None):
            if isinstance(item, Block) and item.block_id in summaries:
                for record in self._stream.items(item, [], _FS_FUNCTION, None):
                    if isinstance(record, Record):
                        count += 1
                        total += [*record.ops(3), 0, 0, 0][2]
        return count, total

    def hash_record(self) -> Record | None:
        """The record of its hash, or None when it has none."""
        records = self._stream.items(self._block, [], (_MODULE_CODE_HASH,), None)
        return next((item for item in records if isinstance(item, Record)), None)

    def _hash(self, record: Record) -> bytes:
        """HASH: [5*i32], each written with its first byte highest (BitcodeWriter.cpp, writeModuleHash)."""
        words = record.ops(6)
        if len(words) != 5:
            raise self._stream.malformed(
                record.at, f"expected 5 words in a module's hash, found {len(words)}"
            )
        return b"".join(word.to_bytes(4, "big") for word in words)

    def inline_asm(self) -> Iterator[InlineAsm]:
        """The inline assembly of all functions, one for each constant; the same text can come again.

        BitcodeWriter.cpp numbers a function's inline assembly among its constants and writes these before the
        first instruction (writeFunction), so that nothing behind an instruction is looked at. In initialisers
        of globals LLVM's verifier does not allow any.

        :raises MalformedObject: when a block on the way is broken.
        """
        return (item for item in self.assembly() if isinstance(item, InlineAsm))

    def assembly(self) -> Iterator[bytes | InlineAsm]:
        """Module-level assembly and then :meth:`inline_asm`, in one walk over the module."""
        info: dict[int, list[Abbrev]] = {}
        for item in self._stream.items(self._block, [], (_MODULE_CODE_ASM,), info):
            if isinstance(item, Record):
                yield item.text()
            elif item.block_id == _FUNCTION_BLOCK_ID:
                yield from self._of_function(item, info)

    def _of_function(self, function: Block, info: dict[int, list[Abbrev]]) -> Iterator[InlineAsm]:
        abbrevs = info.get(_FUNCTION_BLOCK_ID, [])
        for item in self._stream.items(function, abbrevs, _ANY, info):
            if isinstance(item, Record):
                if item.code != _FUNC_CODE_DECLAREBLOCKS:
                    return
            elif item.block_id == _CONSTANTS_BLOCK_ID:
                constants = self._stream.items(item, info.get(_CONSTANTS_BLOCK_ID, []), _INLINEASM, info)
                for record in constants:
                    if isinstance(record, Record):
                        yield self._inline_asm(record)

    def _inline_asm(self, record: Record) -> InlineAsm:
        """INLINEASM: [fnty (only code 30), flags, asm size, asm..., constraints size, constraints...]."""
        values = record.values()
        strings = []
        at = _INLINEASM[record.code]
        for _ in range(2):
            if at >= len(values) or at + 1 + values[at] > len(values):
                raise self._stream.malformed(
                    record.at, "expected two strings in inline assembly, found its end"
                )
            strings.append(characters(values[at + 1 : at + 1 + values[at]]))
            at += 1 + values[at]
        return InlineAsm(strings[0], strings[1])

    def symbols(self) -> Iterator[Symbol]:
        """Symbols by the module's own records: those of the IR, none of assembly, not in irsymtab's order.

        :raises MalformedObject: when the records are broken or older than module version 2.
        """
        if self.properties.version < 2 or self.strtab is None:
            raise self._stream.malformed(
                self._block.begin,
                f"expected a module of version 2 with a STRTAB, found version {self.properties.version}",
            )
        strtab = bytes(self.strtab)
        sections = self.properties.section_names
        budget = 4 * len(strtab)
        # Globals are numbered in the order of their records; an alias names its target by number.
        is_code: list[bool] = []
        for item in self._stream.items(self._block, [], GLOBALS, None):
            if isinstance(item, Record):
                ops = item.ops(10)
                offset, size = ops[:2] if len(ops) >= 8 else (0, len(strtab) + 1)
                budget -= size
                if offset + size > len(strtab) or budget < 0:
                    raise self._stream.malformed(item.at, "expected a global and its name, found none")
                name = strtab[offset : offset + size].decode("utf-8", "surrogateescape")
                symbol = symbol_of(name, item.code, ops[2:], sections)
                if is_alias_of_code(item.code, ops[2:], is_code):
                    symbol = symbol._replace(flags=symbol.flags | irsymtab.FB_EXECUTABLE)
                is_code.append(symbol.executable)
                yield symbol


def _decode(text: bytes) -> str:
    return text.decode("utf-8", "surrogateescape")
