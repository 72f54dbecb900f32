"""LLVM bitcode files without LLVM: who wrote them, for what, from what, with which symbols and assembly.

Format: llvm/lib/Bitcode/Reader/BitcodeReader.cpp, getBitcodeFileContents, of what stands at the top of a file;
the modules are in :mod:`klto.objects.bitcode_module`.
"""

from __future__ import annotations

from collections.abc import Iterator

from klto.objects import irsymtab
from klto.objects.assembly import Include, expand_template, included_files, labels, referenced_names
from klto.objects.bitcode_module import InlineAsm, Module, Properties
from klto.objects.bitcode_symbols import Symbol
from klto.objects.bitstream import Bitstream, Block
from klto.objects.errors import MalformedObject
from klto.objects.irsymtab import SymbolTable, UnknownSymbolTable
from klto.objects.source import Buffer

__all__ = ["Bitcode", "InlineAsm", "Module", "Properties", "Symbol"]


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
