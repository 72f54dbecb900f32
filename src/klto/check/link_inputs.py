"""The inputs of one LTO link. Bitcode is read once, for what most rules ask, and not kept."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from klto.check.ir_symbols import IrSymbols
from klto.check.left_out import left_out_of_lto
from klto.check.saved import SavedCommand, read_saved
from klto.check.subject import Subject
from klto.kernel.initcalls import NEEDLE
from klto.objects.archive import Archive, Member, leaves
from klto.objects.assembly_scan import WordScan
from klto.objects.bitcode import Bitcode
from klto.objects.errors import MalformedObject
from klto.objects.kind import kind_of_bytes
from klto.objects.object_file import ObjectFile, parse_object
from klto.objects.source import Buffer, read_whole


@dataclass(frozen=True)
class BitcodeInput:
    """One bitcode module of a link.

    :ivar path: the file that it is; None of an archive's member.
    :ivar place: its number among all inputs, in link order.
    :ivar size: bytes of bitcode.
    :ivar producer: who wrote it.
    :ivar target: the target triple.
    :ivar may_include: whether its assembly may read files at the link; False rules it out.
    :ivar may_have_initcalls: likewise of initcalls.
    """

    name: str
    path: str | None
    place: int
    size: int
    producer: str | None
    target: str
    may_include: bool
    may_have_initcalls: bool
    _content: Buffer | None = field(repr=False)

    def content(self) -> Buffer:
        """The module; of a file read anew.

        :raises MalformedObject: when the file cannot be read any more.
        """
        if self._content is not None:
            return self._content
        assert self.path is not None
        return read_whole(self.path)

    def read(self) -> Bitcode:
        """A reader of it.

        :raises MalformedObject: when it is broken.
        """
        return Bitcode(self.content(), self.name)


class LinkInputs:
    """What goes into one link.

    :ivar output: the link's output, as findings name it.
    :ivar words: the linker's arguments; empty when they are not known.
    :ivar lto: thin, full or none; None when it is not known.
    :ivar symbols: the names in bitcode.
    :ivar unreadable: inputs that could not be read.
    """

    def __init__(
        self,
        output: str,
        paths: Iterable[str],
        words: Sequence[str] = (),
        lto: str | None = None,
        root: str = "",
    ) -> None:
        self.output = output
        self.words = tuple(words)
        self.lto = lto
        self.root = root
        #: Objects that klto was asked to leave out of LTO.
        self.left_out = left_out_of_lto(root) if root else frozenset()
        self.bitcode: list[BitcodeInput] = []
        self.native: list[tuple[int, Subject]] = []
        self.symbols = IrSymbols()
        self.unreadable: list[MalformedObject] = []
        self._place = 0
        self._includes = WordScan(b"incbin")
        self._producers: dict[bytes, str | None] = {}
        for path in paths:
            self._add(path)

    def _add(self, path: str) -> None:
        full = os.path.join(self.root, path)
        try:
            data = read_whole(full)
            if kind_of_bytes(data) in ("archive", "thin-archive"):
                for member in Archive(full, data).members:
                    self._member(member)
            else:
                self._object(self._shown(full), data, full)
        except MalformedObject as error:
            self.unreadable.append(error)

    def _member(self, member: Member) -> None:
        try:
            data = member.data()
            if kind_of_bytes(data) in ("archive", "thin-archive"):
                for leaf in leaves(Archive(member.where, data)):
                    self._member(leaf)
            else:
                self._object(self._shown(member.path or member.where), data, member.path)
        except MalformedObject as error:
            self.unreadable.append(error)

    def _shown(self, path: str) -> str:
        return path[len(self.root) + 1 :] if self.root and path.startswith(f"{self.root}/") else path

    def _object(self, name: str, data: Buffer, path: str | None) -> None:
        kind = kind_of_bytes(data)
        if kind == "bitcode":
            self._bitcode(name, data, path)
        elif kind == "elf":
            read = parse_object(data, name)
            command = read_saved(path) if path is not None else None
            self.native.append((self._place, Subject(name, read, command)))
        elif not len(data):
            raise MalformedObject(name, None, "is empty")
        self._place += 1

    def _bitcode(self, name: str, data: Buffer, path: str | None) -> None:
        read = Bitcode(data, name)
        table = read.symbol_table
        item = BitcodeInput(
            name,
            path,
            self._place,
            len(data),
            self._producer(read),
            table.target_triple if table is not None else read.modules[0].properties.target_triple,
            self._includes.may_hold(data),
            # Without a symbol table names are in places that only a whole reader finds.
            table is None or NEEDLE in bytes(table.raw()[1]),
            None if path is not None else data,
        )
        if table is not None:
            self.symbols.add(table, name)
        else:
            self.symbols.add_records(read)
        self.bitcode.append(item)

    def _producer(self, read: Bitcode) -> str | None:
        """Most modules of a link are by one producer and have the same block that says so."""
        block = read.modules[0].identification_bytes
        if block not in self._producers:
            self._producers[block] = read.producer
        return self._producers[block]

    @cached_property
    def commands(self) -> list[SavedCommand | None]:
        """The saved command of each bitcode input."""
        return [read_saved(item.path) if item.path is not None else None for item in self.bitcode]

    def module_of(self, name: str) -> int | None:
        """The bitcode module that defines a name, global or local; its place in ``bitcode``."""
        found = self.symbols.defined.get(name)
        return self.symbols.local.get(name) if found is None else found

    @cached_property
    def native_defined(self) -> dict[str, str]:
        """Global definition of the native inputs to the first one's name."""
        found: dict[str, str] = {}
        for _, subject in self.native:
            for symbol in _globals_of(subject.object):
                found.setdefault(symbol, subject.name)
        return found

    @cached_property
    def native_undefined(self) -> dict[str, str]:
        """Undefined name of the native inputs to the first one's name."""
        found: dict[str, str] = {}
        for _, subject in self.native:
            symtab = subject.elf.symtab if subject.elf is not None else None
            if symtab is not None:
                for name in filter(None, symtab.name_column.at((symtab.table["st_shndx"] == 0).nonzero()[0])):
                    found.setdefault(name, subject.name)
        return found


def _globals_of(read: ObjectFile) -> list[str]:
    symtab = read.elf.symtab if read.elf is not None else None
    if symtab is None:
        return []
    shown = ((symtab.table["st_info"] >> 4) != 0) & (symtab.table["st_shndx"] != 0)
    return symtab.name_column.at(shown.nonzero()[0])
