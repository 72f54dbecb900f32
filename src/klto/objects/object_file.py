"""One face for objects of any format: what is it, for which target, by whom, with which symbols."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from klto.objects.archive import Archive
from klto.objects.bitcode import Bitcode
from klto.objects.bitcode import Symbol as IrSymbol
from klto.objects.elf import SECTION, Elf, Table
from klto.objects.elf_header import SHN_COMMON
from klto.objects.kind import kind_of_bytes
from klto.objects.relocations import RelocationReader, Relocations
from klto.objects.source import Buffer, read_whole

#: e_machine (gABI chapter 4 and its register) to the architecture's name as LLVM's triples begin.
_MACHINES = {
    3: "i386",
    20: "powerpc",
    21: "powerpc64",
    22: "s390x",
    40: "arm",
    62: "x86_64",
    183: "aarch64",
    243: "riscv",
    258: "loongarch",
}
# gABI chapter 4, "Symbol Binding" and "Symbol Visibility".
_STB_LOCAL, _STB_WEAK = 0, 2
_STT_SECTION, _STT_FILE, _STT_COMMON = 3, 4, 5
_VISIBILITIES = ("default", "internal", "hidden", "protected")


class Symbol(NamedTuple):
    """A symbol of any format.

    :ivar binding: ``local``, ``global`` or ``weak``.
    :ivar visibility: ``default``, ``internal``, ``hidden`` or ``protected``.
    :ivar from_asm: whether bitcode's module-level assembly defines or uses it; None in ELF.
    """

    name: str
    defined: bool
    binding: str
    visibility: str
    common: bool
    from_asm: bool | None


@dataclass(frozen=True)
class ObjectFile:
    """An ELF file, a bitcode file, an archive, or something else; the reader of its format is in its field.

    :ivar where: path, with the member in parentheses when it is one.
    :ivar kind: ``elf``, ``bitcode``, ``archive``, ``thin-archive`` or ``other``.
    """

    where: str
    kind: str
    elf: Elf | None = None
    bitcode: Bitcode | None = None
    archive: Archive | None = None

    @property
    def target(self) -> str | None:
        """Bitcode: the target triple. ELF: the architecture's name, ``machine N`` when it has none here.

        :raises MalformedObject: when the module's records are broken.
        """
        if self.bitcode is not None:
            return self.bitcode.modules[0].properties.target_triple
        if self.elf is not None:
            number = self.elf.header.e_machine
            return _MACHINES.get(number, f"machine {number}")
        return None

    @property
    def producer(self) -> str | None:
        """Who wrote it: bitcode's identification, or the first entry of ELF's .comment."""
        if self.bitcode is not None:
            return self.bitcode.producer
        return next(iter(self.elf.producers), None) if self.elf is not None else None

    def symbols(self) -> list[Symbol]:
        """What a linker sees: section and file symbols, intrinsics and the like are left out.

        Of large ELF files take ``elf.symtab`` instead, whose tables need no loop.

        :raises MalformedObject: when they cannot be read.
        """
        if self.bitcode is not None:
            return [_of_ir(symbol) for symbol in self.bitcode.symbols() if not symbol.format_specific]
        return list(_of_elf(self.elf)) if self.elf is not None else []

    @property
    def sections(self) -> Table:
        """ELF's section headers, dtype :data:`klto.objects.elf.SECTION`; none of other formats."""
        return self.elf.sections if self.elf is not None else _NO_SECTIONS

    @property
    def relocations(self) -> Relocations | None:
        """ELF's relocations; None of other formats.

        :raises MalformedObject: when they cannot be read.
        """
        return RelocationReader(self.elf).all if self.elf is not None else None

    def members(self) -> Iterator[ObjectFile]:
        """The members of an archive in order, not entered when they are archives; none of other formats.

        :raises MalformedObject: when a member cannot be read.
        """
        for member in self.archive.members if self.archive is not None else ():
            yield parse_object(member.data(), member.where)


_NO_SECTIONS: Table = np.empty(0, SECTION)


def read_object(path: str | os.PathLike[str]) -> ObjectFile:
    """Open a file of any format.

    :raises MalformedObject: when it cannot be read, or is broken where its format says what it is.
    """
    return parse_object(read_whole(path), os.fspath(path))


def parse_object(data: Buffer, where: str) -> ObjectFile:
    """As :func:`read_object`, of bytes; a thin archive's members are looked for beside ``where``.

    :raises MalformedObject: when it is broken.
    """
    kind = kind_of_bytes(data)
    match kind:
        case "elf":
            return ObjectFile(where, kind, elf=Elf(data, where))
        case "bitcode":
            return ObjectFile(where, kind, bitcode=Bitcode(data, where))
        case "archive" | "thin-archive":
            return ObjectFile(where, kind, archive=Archive(where, data))
    return ObjectFile(where, kind)


def _of_ir(symbol: IrSymbol) -> Symbol:
    binding = "weak" if symbol.weak else "global" if symbol.is_global else "local"
    return Symbol(symbol.name, symbol.defined, binding, symbol.visibility, symbol.common, symbol.from_asm)


def _of_elf(elf: Elf) -> Iterator[Symbol]:
    table = elf.symtab
    if table is None:
        return
    rows = zip(
        table.names, table.table["st_info"].tolist(), table.table["st_other"].tolist(),
        table.section.tolist(), table.table["st_shndx"].tolist(), strict=True,
    )  # fmt: skip
    for number, (name, info, other, section, shndx) in enumerate(rows):
        kind = info & 15
        if number and kind not in (_STT_SECTION, _STT_FILE):
            binding = {_STB_LOCAL: "local", _STB_WEAK: "weak"}.get(info >> 4, "global")
            common = kind == _STT_COMMON or shndx == SHN_COMMON
            yield Symbol(name, section != 0, binding, _VISIBILITIES[other & 3], common, None)
