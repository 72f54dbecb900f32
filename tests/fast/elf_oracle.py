"""What llvm-readobj says of every section, symbol and relocation of an ELF file, and what we say."""

from __future__ import annotations

from pathlib import Path

from objects_helpers import braces, number, run, tool

from klto.objects.elf import Elf
from klto.objects.nm import ElfSymbols
from klto.objects.relocation_types import relocation_types
from klto.objects.relocations import RelocationReader
from klto.objects.source import read_whole

SECTION_FIELDS = ("type", "flags", "addr", "offset", "size", "link", "info", "addralign", "entsize")
SECTION_KEYS = ("Type", "Flags", "Address", "Offset", "Size", "Link", "Info", "AddressAlignment", "EntrySize")


def sections(elf: Elf) -> list[tuple[object, ...]]:
    """Names and all fields of the section headers."""
    columns = [elf.sections[f"sh_{field}"].tolist() for field in SECTION_FIELDS]
    return list(zip(elf.section_names, *columns, strict=True))


def wanted_sections(path: Path, version: int) -> list[tuple[object, ...]]:
    """The same by llvm-readobj."""
    groups = braces(run(tool("llvm-readobj", version), "--sections", path), "Section")
    return [(g["Name"].rpartition(" (")[0], *(number(g[key]) for key in SECTION_KEYS)) for g in groups]


def symbols(elf: Elf) -> list[tuple[object, ...]]:
    """Name, value, size, binding, type, other and section of the symbols."""
    table = elf.symtab
    if table is None:
        return []
    rows = zip(table.names, table.table.tolist(), table.section.tolist(), strict=True)
    return [
        (name, value, size, info >> 4, info & 15, other, section if section >= 0 else shndx)
        for name, (_, info, other, shndx, value, size), section in rows
    ]


def wanted_symbols(path: Path, version: int) -> list[tuple[object, ...]]:
    """The same by llvm-readobj."""
    groups = braces(run(tool("llvm-readobj", version), "--symbols", path), "Symbol")
    found = []
    for group in groups:
        numbers = [number(group[key]) for key in ("Value", "Size", "Binding", "Type", "Other", "Section")]
        # Section symbols have no name of their own; llvm-readobj prints their section's.
        name = group["Name"].rpartition(" (")[0] if not group["Name"].endswith("(0)") else ""
        found.append((name, *numbers))
    return found


def relocations(elf: Elf) -> list[tuple[object, ...]]:
    """Table, offset, type's name, symbol and addend of the relocations."""
    rows = RelocationReader(elf).all
    names = relocation_types(elf.header.e_machine)
    pairs = zip(rows.table.tolist(), rows.entries.tolist(), strict=True)
    return [(table, offset, names[kind], symbol, addend) for table, (offset, kind, symbol, addend) in pairs]


def wanted_relocations(path: Path, version: int) -> list[tuple[object, ...]]:
    """The same by llvm-readobj."""
    text = run(tool("llvm-readobj", version), "--relocations", "--expand-relocs", path)
    found = []
    for part in text.split("  Section (")[1:]:
        table = int(part[: part.index(")")])
        for group in braces(part, "Relocation"):
            addend = int(group.get("Addend", "0x0"), 0)
            name = group["Type"].rpartition(" (")[0]
            symbol = 0 if group["Symbol"] == "-" else number(group["Symbol"])
            found.append((table, int(group["Offset"], 0), name, symbol, addend - (1 << 64) * (addend >> 63)))
    return found


def letters(path: Path) -> list[tuple[str, str]]:
    """Letters and names as llvm-nm prints them, sorted."""
    found = [(letter, name) for letter, name, _ in ElfSymbols(read_whole(path), str(path)).matching(b"")]
    return sorted(entry for entry in found if entry[0] != " " and entry[1])
