"""The inputs of one LTO link, read as far as the rules ask."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from klto.check.left_out import left_out_of_lto
from klto.check.saved import SavedCommand, read_saved
from klto.check.subject import Subject
from klto.objects import irsymtab
from klto.objects.archive import Archive, leaves
from klto.objects.bitcode import Bitcode
from klto.objects.errors import MalformedObject
from klto.objects.kind import kind_of_bytes
from klto.objects.object_file import ObjectFile, parse_object
from klto.objects.source import Buffer, read_whole

#: FB_ bits of a symbol that other objects can refer to, and of one that is defined.
_GLOBAL, _UNDEFINED, _SPECIFIC = irsymtab.FB_GLOBAL, irsymtab.FB_UNDEFINED, irsymtab.FB_FORMAT_SPECIFIC


@dataclass(frozen=True)
class BitcodeInput:
    """One bitcode module of a link. ``place``: its number among all inputs, in link order."""

    name: str
    data: Buffer
    path: str | None
    place: int

    @property
    def size(self) -> int:
        """Bytes of bitcode."""
        return len(self.data)

    @cached_property
    def _bitcode(self) -> Bitcode:
        return Bitcode(self.data, self.name)

    def read(self) -> Bitcode:
        """Its reader, one for all rules.

        :raises MalformedObject: when it is broken.
        """
        return self._bitcode


@dataclass(frozen=True)
class SymbolIndex:
    """Names in the bitcode of a link.

    :ivar defined: global definition to the first module (its place in ``LinkInputs.bitcode``).
    :ivar local: names of local definitions only, to the first module.
    :ivar of_asm: names that module-level assembly defines, to the modules that do.
    """

    defined: dict[str, int]
    local: dict[str, int]
    of_asm: dict[str, list[int]]


class LinkInputs:
    """What goes into one link.

    :ivar output: the link's output, as findings name it.
    :ivar words: the linker's arguments; empty when they are not known.
    :ivar lto: thin, full or none; None when it is not known.
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
        self.unreadable: list[MalformedObject] = []
        self._place = 0
        for path in paths:
            self._add(path)

    def _add(self, path: str) -> None:
        full = os.path.join(self.root, path)
        try:
            data = read_whole(full)
            if kind_of_bytes(data) in ("archive", "thin-archive"):
                for member in leaves(Archive(full, data)):
                    try:
                        self._object(self._shown(member.path or member.where), member.data(), member.path)
                    except MalformedObject as error:
                        self.unreadable.append(error)
            else:
                self._object(self._shown(full), data, full)
        except MalformedObject as error:
            self.unreadable.append(error)

    def _shown(self, path: str) -> str:
        return path[len(self.root) + 1 :] if self.root and path.startswith(f"{self.root}/") else path

    def _object(self, name: str, data: Buffer, path: str | None) -> None:
        kind = kind_of_bytes(data)
        if kind == "bitcode":
            self.bitcode.append(BitcodeInput(name, data, path, self._place))
        elif kind == "elf":
            read = parse_object(data, name)
            command = read_saved(path) if path is not None else None
            self.native.append((self._place, Subject(name, read, command)))
        self._place += 1

    @cached_property
    def commands(self) -> list[SavedCommand | None]:
        """The saved command of each bitcode input."""
        return [read_saved(item.path) if item.path is not None else None for item in self.bitcode]

    @cached_property
    def symbols(self) -> SymbolIndex:
        """The names in bitcode.

        :raises MalformedObject: when a module is broken.
        """
        defined: dict[str, int] = {}
        local: dict[str, int] = {}
        of_asm: dict[str, list[int]] = {}
        hidden = _UNDEFINED | _SPECIFIC
        for number, item in enumerate(self.bitcode):
            table = item.read().symbol_table
            if table is None:
                _of_records(item, number, defined, local)
                continue
            names, in_ir, flags = table.columns()
            for name, ir, flag in zip(names, in_ir, flags, strict=True):
                if flag & hidden:
                    continue
                if flag & _GLOBAL:
                    defined.setdefault(name, number)
                else:
                    local.setdefault(name, number)
                if not ir and name and not name.startswith(".L"):
                    of_asm.setdefault(name, []).append(number)
        return SymbolIndex(defined, {name: n for name, n in local.items() if name not in defined}, of_asm)

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
            tables = subject.tables
            if tables is None or tables.elf.symtab is None:
                continue
            for index in range(1, len(tables.symbol_names)):
                if tables.elf.symtab.table["st_shndx"][index] == 0 and tables.symbol_names[index]:
                    found.setdefault(tables.symbol_names[index], subject.name)
        return found


def _globals_of(read: ObjectFile) -> list[str]:
    symtab = read.elf.symtab if read.elf is not None else None
    if symtab is None:
        return []
    names = symtab.names
    shown = ((symtab.table["st_info"] >> 4) != 0) & (symtab.table["st_shndx"] != 0)
    return [names[index] for index in shown.nonzero()[0].tolist()]


def _of_records(item: BitcodeInput, number: int, defined: dict[str, int], local: dict[str, int]) -> None:
    for symbol in item.read().symbols():
        if symbol.defined and not symbol.format_specific:
            if symbol.is_global:
                defined.setdefault(symbol.name, number)
            else:
                local.setdefault(symbol.name, number)
