"""One object under check, with its tables read once and questions answered by numpy."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from klto.check.roles import Role, role_of
from klto.check.saved import SavedCommand
from klto.objects.elf import SHF_ALLOC, SHF_EXECINSTR, Elf
from klto.objects.object_file import ObjectFile, parse_object
from klto.objects.relocation_types import relocation_name, relocation_types
from klto.objects.relocations import RelocationReader, Relocations
from klto.objects.source import read_whole

Mask = npt.NDArray[np.bool_]
Indexes = npt.NDArray[np.int64]
#: "Symbol Types", gABI chapter 4.
STT_FUNC, STT_SECTION, STT_FILE = 2, 3, 4


class Subject:
    """An ELF or bitcode file.

    :ivar name: how findings name it.
    :ivar role: what it is for.
    :ivar command: what Kbuild saved about how it was made, None when that is not known.
    :ivar tree: the kernel tree that it was made from, None when that is not known.
    """

    def __init__(
        self,
        name: str,
        read: ObjectFile,
        command: SavedCommand | None = None,
        role: Role | None = None,
        tree: Path | None = None,
    ) -> None:
        self.name = name
        self.object = read
        self.command = command
        self.role = role_of(name) if role is None else role
        self.tree = tree

    @property
    def elf(self) -> Elf | None:
        """The ELF file, None of bitcode."""
        return self.object.elf

    @cached_property
    def tables(self) -> Tables | None:
        """The ELF file's tables, None of bitcode."""
        return Tables(self.object.elf) if self.object.elf is not None else None

    def close(self) -> None:
        """Forget its tables: what comes next may be as large."""
        vars(self).pop("tables", None)
        if self.object.elf is not None:
            self.object.elf.close()

    @property
    def source(self) -> str | None:
        """The source file it was made from, where its saved command says so."""
        return self.command.source if self.command is not None else None


def open_subject(
    path: str, name: str | None = None, command: SavedCommand | None = None, tree: Path | None = None
) -> Subject:
    """Read a file.

    :raises MalformedObject: when it cannot be read.
    """
    return Subject(name or path, parse_object(read_whole(path), name or path), command, tree=tree)


class Tables:
    """The tables of an ELF file as the rules ask for them. Arrays are as long as the file's tables."""

    def __init__(self, elf: Elf) -> None:
        self.elf = elf
        self.machine = elf.header.e_machine
        self.flags: npt.NDArray[np.uint64] = elf.sections["sh_flags"]
        self.sizes: npt.NDArray[np.uint64] = elf.sections["sh_size"]
        self.executable: Mask = (self.flags & np.uint64(SHF_EXECINSTR)) != 0
        self.allocated: Mask = (self.flags & np.uint64(SHF_ALLOC)) != 0

    @cached_property
    def names(self) -> list[str]:
        """Section names."""
        return self.elf.section_names

    def named(self, *prefixes: str) -> Mask:
        """Which sections' names begin with one of these: without a string for each, as :attr:`names` has."""
        return self.elf.section_name_column.starting(*prefixes)

    @cached_property
    def symbol_names(self) -> list[str]:
        """Symbol names; none in a stripped file."""
        return self.elf.symtab.names if self.elf.symtab is not None else []

    @cached_property
    def symbol_section(self) -> Indexes:
        """Each symbol's section: 0 undefined, negative absolute or common."""
        symtab = self.elf.symtab
        return symtab.section if symtab is not None else np.empty(0, np.int64)

    @cached_property
    def relocations(self) -> Relocations:
        """All relocations.

        :raises MalformedObject: when they are broken, or apply to a section that there is not.
        """
        found = RelocationReader(self.elf).all
        wrong = np.flatnonzero(found.section >= len(self.flags))
        if len(wrong):
            table, section = int(found.table[wrong[0]]), int(found.section[wrong[0]])
            raise self.elf.malformed_section(
                table, f"section {table} relocates section {section}, there is none"
            )
        return found

    @cached_property
    def types(self) -> npt.NDArray[np.uint32]:
        """Each relocation's type."""
        return np.ascontiguousarray(self.relocations.entries["r_type"])

    @cached_property
    def in_memory(self) -> Mask:
        """Whether each relocation applies to a section that is loaded."""
        return self.allocated[self.relocations.section]

    def of_types(self, *names: str) -> Indexes:
        """Indexes of the loaded sections' relocations of these types (full names)."""
        wanted = [number for number, name in relocation_types(self.machine).items() if name in names]
        return np.flatnonzero(np.isin(self.types, np.array(wanted, np.uint32)) & self.in_memory)

    @cached_property
    def type_counts(self) -> dict[str, int]:
        """How many relocations of each type the loaded sections have."""
        types, count = np.unique(self.types[self.in_memory], return_counts=True)
        return {
            relocation_name(self.machine, int(number)): int(times)
            for number, times in zip(types, count, strict=True)
        }

    def target_section(self, indexes: Indexes) -> Indexes:
        """Section of the symbols of some relocations; 0 undefined or none."""
        symbols = self.relocations.entries["r_sym"][indexes]
        known = symbols < len(self.symbol_section)
        if not len(self.symbol_section):
            return np.zeros(len(symbols), np.int64)
        return np.where(known, self.symbol_section[np.where(known, symbols, 0)], 0)

    def target_value(self, indexes: Indexes) -> npt.NDArray[np.int64]:
        """Value of their symbols plus their addends: bytes from the symbol's section's start, in an ET_REL file."""
        entries = self.relocations.entries
        symbols, addends = entries["r_sym"][indexes], entries["r_addend"][indexes]
        symtab = self.elf.symtab
        if symtab is None:
            return np.array(addends, np.int64)
        values: npt.NDArray[np.int64] = symtab.table["st_value"].view(np.int64)
        known = symbols < len(values)
        found: npt.NDArray[np.int64] = values[np.where(known, symbols, 0)] + addends
        return found

    def relocation(self, index: int) -> tuple[str, str, int]:
        """(type, section name, offset) of a relocation."""
        entry = self.relocations.entries[index]
        section = int(self.relocations.section[index])
        return (
            relocation_name(self.machine, int(entry["r_type"])),
            self.elf.section_name_column[section],
            int(entry["r_offset"]),
        )

    def target(self, index: int) -> tuple[int, int]:
        """Section and value, as above, of one relocation's symbol."""
        one = np.array([index])
        return int(self.target_section(one)[0]), int(self.target_value(one)[0])

    def target_name(self, index: int) -> str:
        """The symbol of a relocation, as code calls it: for a section symbol what is at its place."""
        symbol = int(self.relocations.entries["r_sym"][index])
        symtab = self.elf.symtab
        if symtab is None or symbol >= len(symtab):
            return "nothing"
        name = symtab.name_column[symbol]
        kind = int(symtab.table["st_info"][symbol]) & 15
        if kind != STT_SECTION and name:
            return name
        section, value = self.target(index)
        at = self.symbol_at(section, value)
        if at is None and section > 0:
            return f"{self.elf.section_name_column[section]}+{value:#x}"
        return at or "nothing"

    def symbol_at(self, section: int, offset: int) -> str | None:
        """The function or object that an offset of a section is in; None when no symbol begins before it.

        In a linked file ``offset`` is an address.
        """
        symtab = self.elf.symtab
        if symtab is None or section <= 0:
            return None
        kind = symtab.table["st_info"] & 15
        inside = np.flatnonzero(
            (self.symbol_section == section)
            & (kind != STT_SECTION)
            & (kind != STT_FILE)
            & (symtab.table["st_value"] <= np.uint64(max(0, offset)))
        )
        if not len(inside):
            return None
        values = symtab.table["st_value"][inside]
        nearest = inside[values == values.max()]
        # Of several at one place the function or object, not a label such as "$d" (aaelf64, mapping symbols).
        column = symtab.name_column
        proper = [i for i in nearest.tolist() if not column[i].startswith(("$", ".L"))]
        sized = [i for i in proper if int(symtab.table["st_size"][i])]
        chosen = (sized or proper or nearest.tolist())[0]
        return column[chosen] or None
