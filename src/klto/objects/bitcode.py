"""LLVM bitcode files without LLVM: who wrote them, for what, from what, with which symbols and assembly.

Format: llvm/include/llvm/Bitcode/LLVMBitCodes.h, whose names are used here, as
llvm/lib/Bitcode/Reader/BitcodeReader.cpp reads it; the module records' layouts are those of module version 2
(LLVM 5 and later), in which names lie in the STRTAB block.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from klto.objects import irsymtab
from klto.objects.assembly import Include, expand_template, included_files, labels, referenced_names
from klto.objects.bitstream import Abbrev, Bitstream, Block, Record, characters
from klto.objects.errors import MalformedObject
from klto.objects.irsymtab import SymbolTable, UnknownSymbolTable
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
_MODULE_CODE_GLOBALVAR = 7
_MODULE_CODE_FUNCTION = 8
_MODULE_CODE_ALIAS = 14
_MODULE_CODE_SOURCE_FILENAME = 16
_MODULE_CODE_HASH = 17
_MODULE_CODE_IFUNC = 18
_PROPERTIES = frozenset((1, 2, 3, 4, 5, 16, 17))
_GLOBALS = frozenset((7, 8, 14, 18))

# FunctionCodes: what may stand before a function's constants (BitcodeWriter.cpp, writeFunction).
_FUNC_CODE_DECLAREBLOCKS = 1
#: Any code: items() asks for membership only.
_ANY = range(1 << 32)

#: ConstantsCodes: CST_CODE_INLINEASM_OLD, _OLD2, _OLD3, CST_CODE_INLINEASM: operands before the text.
_INLINEASM = {18: 1, 23: 1, 28: 1, 30: 2}


class Symbol(NamedTuple):
    """A symbol of a bitcode file, as irsymtab has it.

    :ivar in_ir: whether it has a name in the IR.
    :ivar flags: storage::Symbol::FlagBits, the FB_ constants of :mod:`klto.objects.irsymtab`.
    """

    name: str
    in_ir: bool
    flags: int

    @property
    def defined(self) -> bool:
        return not self.flags & irsymtab.FB_UNDEFINED

    @property
    def weak(self) -> bool:
        return bool(self.flags & irsymtab.FB_WEAK)

    @property
    def common(self) -> bool:
        return bool(self.flags & irsymtab.FB_COMMON)

    @property
    def is_global(self) -> bool:
        """Neither local to the file nor, if weak and undefined in assembly, without a binding."""
        return bool(self.flags & irsymtab.FB_GLOBAL)

    @property
    def visibility(self) -> str:
        """GlobalValue::VisibilityTypes (llvm/include/llvm/IR/GlobalValue.h)."""
        return ("default", "hidden", "protected", "default")[self.flags & irsymtab.FB_VISIBILITY]

    @property
    def executable(self) -> bool:
        """Code; also everything that assembly defines, ModuleSymbolTable.cpp does not tell it apart."""
        return bool(self.flags & irsymtab.FB_EXECUTABLE)

    @property
    def format_specific(self) -> bool:
        """No symbol to a linker: private globals, intrinsics, llvm.metadata."""
        return bool(self.flags & irsymtab.FB_FORMAT_SPECIFIC)

    @property
    def from_asm(self) -> bool:
        """Defined or used by module-level assembly."""
        # Mangler.cpp calls an IR global that has no name "__unnamed_N".
        return not self.in_ir and not self.format_specific and "__unnamed_" not in self.name[:12]


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
        """The bits that it lies in."""
        return self._stream

    @property
    def block(self) -> Block:
        """Its block."""
        return self._block

    @cached_property
    def identification(self) -> tuple[str | None, int | None]:
        """The IDENTIFICATION block's string (the LLVM that wrote it, "LLVM19.1.7") and epoch; None for none.

        :raises MalformedObject: when the block is broken.
        """
        producer, epoch = None, None
        if self._identification is not None:
            codes = (_IDENTIFICATION_CODE_STRING, _IDENTIFICATION_CODE_EPOCH)
            for item in self._stream.items(self._identification, [], codes, {}):
                if isinstance(item, Record) and item.code == _IDENTIFICATION_CODE_STRING:
                    producer = _decode(item.text())
                elif isinstance(item, Record):
                    epoch = (item.ops(1) or [0])[0]
        return producer, epoch

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
        for item in self._stream.items(self._block, [], _PROPERTIES, {}):
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

    def hash_record(self) -> Record | None:
        """The record of its hash, or None when it has none."""
        records = self._stream.items(self._block, [], (_MODULE_CODE_HASH,), {})
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
        for item in self._stream.items(self._block, [], _GLOBALS, {}):
            if isinstance(item, Record):
                ops = item.ops(10)
                offset, size = ops[:2] if len(ops) >= 8 else (0, len(strtab) + 1)
                budget -= size
                if offset + size > len(strtab) or budget < 0:
                    raise self._stream.malformed(item.at, "expected a global and its name, found none")
                name = strtab[offset : offset + size].decode("utf-8", "surrogateescape")
                symbol = _symbol(name, item.code, ops[2:], sections)
                if item.code == _MODULE_CODE_ALIAS and ops[4] < len(is_code) and is_code[ops[4]]:
                    symbol = symbol._replace(flags=symbol.flags | irsymtab.FB_EXECUTABLE)
                is_code.append(symbol.executable)
                yield symbol


def _symbol(name: str, code: int, ops: list[int], sections: tuple[str, ...]) -> Symbol:
    """A symbol with the flags that ModuleSymbolTable::getSymbolFlags gives a global of module version 2.

    GLOBALVAR: [type, isconst|explicit<<1, initid, linkage, alignment, section, visibility, ...]
    FUNCTION: [type, callingconv, isproto, linkage, paramattr, alignment, section, visibility, ...]
    ALIAS, IFUNC: [type, addrspace, aliasee, linkage, visibility, ...]
    """
    linkage = ops[3]
    flags = 0
    declared = (code == _MODULE_CODE_GLOBALVAR and ops[2] == 0) or (
        code == _MODULE_CODE_FUNCTION and ops[2] != 0
    )
    if declared or linkage == _AVAILABLE_EXTERNALLY:
        flags |= irsymtab.FB_UNDEFINED
    if linkage not in _LOCAL:
        flags |= irsymtab.FB_GLOBAL
    if linkage in _WEAK:
        flags |= irsymtab.FB_WEAK
    if linkage == _COMMON:
        flags |= irsymtab.FB_COMMON
    if code in (_MODULE_CODE_FUNCTION, _MODULE_CODE_IFUNC):
        flags |= irsymtab.FB_EXECUTABLE
    if code == _MODULE_CODE_ALIAS:
        flags |= irsymtab.FB_INDIRECT
    in_metadata = (
        code == _MODULE_CODE_GLOBALVAR
        and 0 < ops[5] <= len(sections)
        and sections[ops[5] - 1] == "llvm.metadata"
    )
    if linkage in _PRIVATE or name.startswith("llvm.") or in_metadata:
        flags |= irsymtab.FB_FORMAT_SPECIFIC
    at = {_MODULE_CODE_GLOBALVAR: 6, _MODULE_CODE_FUNCTION: 7}.get(code, 4)
    if len(ops) > at and linkage not in _LOCAL:
        flags |= ops[at] & irsymtab.FB_VISIBILITY
    # Mangler.cpp: a leading \1 says "as it is"; private names get the assembler's prefix for temporaries.
    if name.startswith("\x01"):
        return Symbol(name[1:], True, flags)
    return Symbol(f".L{name}" if linkage in _PRIVATE else name, True, flags)


# getDecodedLinkage of BitcodeReader.cpp; obsolete encodings as it upgrades them.
_LOCAL = frozenset((3, 9, 13, 14))
_PRIVATE = frozenset((9, 13, 14))
_WEAK = frozenset((1, 4, 7, 10, 11, 16, 17, 18, 19))
_COMMON = 8
_AVAILABLE_EXTERNALLY = 12


def _decode(text: bytes) -> str:
    return text.decode("utf-8", "surrogateescape")


class Bitcode:
    """A bitcode file that has been opened: its blocks are known, what they hold is read when asked for.

    :ivar symbol_table: the irsymtab, or None.
    :ivar symbol_table_problem: why there is none: what was expected and what was found; "" when there is one.
    """

    def __init__(self, data: Buffer, where: str) -> None:
        raw, base = irsymtab.unwrap(data, where)
        self.where = where
        self._stream = Bitstream(raw, where, base)
        self.modules: list[Module] = []
        self.symbol_table: SymbolTable | None = None
        self.symbol_table_problem = "no symbol table"
        self._read_top_level()

    @property
    def base(self) -> int:
        """Bytes of the wrapper before the bitcode; bit offsets of records count from behind them."""
        return self._stream.base

    def _read_top_level(self) -> None:
        """As getBitcodeFileContents does it: a STRTAB serves the modules before it that have none yet."""
        stream, where, raw = self._stream, self.where, self._stream.data
        identification: Block | None = None
        symtab: Buffer | None = None
        symtab_at = 0
        symtab_strtab: Buffer | None = None
        for block_id, width, begin, end in irsymtab.top_level_blocks(raw, where, stream.base):
            block = Block(block_id, width, 8 * begin, 8 * end)
            if block_id == irsymtab.IDENTIFICATION_BLOCK_ID:
                identification = block
            elif block_id == irsymtab.MODULE_BLOCK_ID:
                self.modules.append(Module(stream, block, identification))
                identification = None
            elif block_id == irsymtab.SYMTAB_BLOCK_ID and symtab is None:
                symtab = irsymtab.blob_of(raw, width, begin, end, where, stream.base)
                symtab_at = stream.base + begin
            elif block_id == irsymtab.STRTAB_BLOCK_ID:
                strtab = irsymtab.blob_of(raw, width, begin, end, where, stream.base)
                for module in reversed(self.modules):
                    if module.strtab is not None:
                        break
                    module.strtab = strtab
                if symtab is not None and symtab_strtab is None:
                    symtab_strtab = strtab
        if not self.modules:
            raise MalformedObject(where, stream.base + len(raw), "expected a module in bitcode, found none")
        if symtab is not None and symtab_strtab is not None:
            self._open_symbol_table(symtab, symtab_strtab, symtab_at)

    def _open_symbol_table(self, symtab: Buffer, strtab: Buffer, at: int) -> None:
        try:
            table = SymbolTable(symtab, strtab, self.where, at)
        except UnknownSymbolTable as error:
            self.symbol_table_problem = str(error)
            return
        if len(table.modules) != len(self.modules):
            # irsymtab::readBitcode: files that were joined byte by byte.
            self.symbol_table_problem = (
                f"a symbol table of {len(table.modules)} of {len(self.modules)} modules"
            )
            return
        self.symbol_table, self.symbol_table_problem = table, ""

    @property
    def producer(self) -> str | None:
        """Who wrote the first module."""
        return self.modules[0].producer

    def symbols(self) -> list[Symbol]:
        """All symbols: from the symbol table, or else from the modules' records, which lack assembly's.

        :raises MalformedObject: when neither can be read.
        """
        if self.symbol_table is not None:
            names, ir_sizes, flags = self.symbol_table.columns()
            # As Symbol(...) does it, without a call for each.
            make = tuple.__new__
            return [make(Symbol, row) for row in zip(names, map(bool, ir_sizes), flags, strict=True)]
        return [symbol for module in self.modules for symbol in module.symbols()]

    @property
    def lacks_asm_symbols(self) -> bool:
        """Whether :meth:`symbols` misses those of module-level assembly, for want of a symbol table."""
        return self.symbol_table is None and any(module.properties.asm for module in self.modules)

    def asm_labels(self) -> frozenset[str]:
        """Labels in module-level assembly, read from its text: a hint when there is no symbol table."""
        return frozenset().union(*(labels(module.properties.asm) for module in self.modules))

    def includes(self) -> tuple[Include, ...]:
        """The files that its assembly reads at the link, module-level assembly's first; each once.

        :raises MalformedObject: when a module is broken.
        """
        found = [include for text in self._assembly_texts() for include in included_files(text)]
        return tuple(dict.fromkeys(found))

    def names_in_inline_asm(self) -> frozenset[str]:
        """What inline assembly in functions may refer to, beyond what the symbol table knows.

        :raises MalformedObject: when a module is broken.
        """
        texts = {inline.text for module in self.modules for inline in module.inline_asm()}
        return frozenset().union(*(referenced_names(expand_template(text)) for text in texts))

    def _assembly_texts(self) -> Iterator[bytes]:
        """Each distinct text once: the same macros are in thousands of functions."""
        seen = set()
        for module in self.modules:
            for item in module.assembly():
                if isinstance(item, bytes):
                    yield item
                elif item.text not in seen:
                    seen.add(item.text)
                    yield expand_template(item.text)
