"""Merges the split sections of a relocatable object, and proves the result.

The linker does it, with a linker script that names each section: ``-r`` keeps relocations and symbols. What it
made is not believed but compared, table by table, with what it was made from.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from klto import process
from klto.check.rejoin_proof import prove
from klto.errors import KltoError, UsageError
from klto.files import write_whole
from klto.objects.elf import (
    SHF_ALLOC,
    SHF_COMPRESSED,
    SHF_EXECINSTR,
    SHF_WRITE,
    SHT_NOBITS,
    SHT_PROGBITS,
    Elf,
)
from klto.objects.kind import kind_of_bytes
from klto.objects.source import read_whole

# "Section Attribute Flags" of gABI chapter 4.
_SHF_MERGE, _SHF_STRINGS, _SHF_LINK_ORDER, _SHF_GROUP, _SHF_TLS = 0x10, 0x20, 0x80, 0x200, 0x400
#: What must be alike in all sections that become one.
_ALIKE = SHF_WRITE | SHF_ALLOC | SHF_EXECINSTR | _SHF_TLS
#: The families, each with the name that its sections get.
_FAMILIES = (".text", ".rodata", ".data", ".bss")
_ET_REL = 1


class CannotRejoin(KltoError):
    """The object cannot be merged, or the result was not what it should be."""

    exit_status = 2


@dataclass(frozen=True)
class Joined:
    """One section of the result. ``parts``: indexes of the input's sections, in order."""

    name: str
    parts: tuple[int, ...]


@dataclass(frozen=True)
class Rejoined:
    """What was done: sections of the input and of the result, relocations that were compared, and the entry."""

    joined: tuple[Joined, ...]
    sections_before: int
    sections_after: int
    executable_before: int
    executable_after: int
    relocations: int
    symbols: int
    entry: str | None


def rejoin(source: Path, output: Path, linker: Path, entry: str | None = None) -> Rejoined:
    """Merge ``.text.*``, ``.rodata.*``, ``.data.*`` and ``.bss.*`` of ``source`` into one section each.

    :param entry: the entry's symbol; None: the one that the ELF header's entry says.
    :raises UsageError: not a relocatable ELF file.
    :raises CannotRejoin: sections that cannot become one, or a result that differs; ``output`` is as it was.
    """
    elf = _read(source)
    symbol = entry or _entry_symbol(elf)
    first = _section_of(elf, symbol) if symbol is not None else None
    plan = _plan(elf, first)
    with tempfile.TemporaryDirectory(prefix="klto-rejoin-") as folder:
        script, made = Path(folder, "rejoin.lds"), Path(folder, "joined.o")
        script.write_text(_script(elf, plan))
        named = ["-e", symbol] if symbol else []
        argv: list[process.Arg] = [linker, "-r", "-T", script, *named, "-o", made, source]
        try:
            process.run(argv)
        except process.CommandFailed as error:
            raise CannotRejoin(
                f"{source}: the linker refused: {error.message}", details=error.details
            ) from error
        result = _read(made)
        problems = list(dict.fromkeys(prove(elf, result, plan, symbol)))
        if problems:
            raise CannotRejoin(
                f"{source}: the merged object is not the same: {problems[0]}",
                "nothing was written; use klto build --no-lto PATH instead",
                tuple(problems[1:20]),
            )
        write_whole(output, bytes(result.data))
    return Rejoined(
        joined=tuple(joined for joined in plan if len(joined.parts) > 1),
        sections_before=len(elf.sections),
        sections_after=len(result.sections),
        executable_before=_executable(elf),
        executable_after=_executable(result),
        relocations=_relocations(elf),
        symbols=len(elf.symtab) if elf.symtab is not None else 0,
        entry=symbol,
    )


def _executable(elf: Elf) -> int:
    code = (elf.sections["sh_flags"] & SHF_EXECINSTR) > 0
    return int((code & (elf.sections["sh_size"] > 0)).sum())


def _relocations(elf: Elf) -> int:
    from klto.objects.relocations import RelocationReader

    return len(RelocationReader(elf).all)


def _read(path: Path) -> Elf:
    data = read_whole(path)
    kind = kind_of_bytes(data)
    if kind != "elf":
        hint = "link it first: ld.lld -r" if kind == "bitcode" else "give the output of ld -r, or one .o file"
        what = "something else" if kind == "other" else kind
        raise UsageError(f"{path}: expected a relocatable ELF object, found {what}", hint)
    elf = Elf(data, str(path))
    if elf.header.e_type != _ET_REL:
        raise UsageError(
            f"{path}: expected a relocatable object (ET_REL), found e_type {elf.header.e_type}",
            "what is linked has its sections merged, and no relocations to prove it by",
        )
    return elf


def _entry_symbol(elf: Elf) -> str | None:
    """The global symbol in code at the header's entry: kexec's purgatory has one. None when there is no code
    symbol there, which is so for objects without an entry.

    :raises CannotRejoin: when several sections have a candidate.
    """
    symtab = elf.symtab
    if symtab is None:
        return None
    code = (elf.sections["sh_flags"] & SHF_EXECINSTR) > 0
    inside = np.maximum(symtab.section, 0)
    at = (symtab.table["st_value"] == elf.header.e_entry) & ((symtab.table["st_info"] >> 4) == 1)
    found = [symtab.names[i] for i in np.flatnonzero(at & (symtab.section > 0) & code[inside]).tolist()]
    named = [name for name in found if name in _KNOWN_ENTRIES]
    if len(named) == 1:
        return named[0]
    if elf.header.e_entry == 0:
        return found[0] if len(found) == 1 else None
    if len(found) > 1:
        raise CannotRejoin(
            f"{elf.where}: {len(found)} functions begin at the entry, {elf.header.e_entry:#x}: {', '.join(found[:5])}",
            "name the right one with -e SYMBOL",
        )
    return found[0] if found else None


#: arch/*/purgatory/Makefile, PURGATORY_LDFLAGS or LDFLAGS_purgatory.ro: -e purgatory_start (6.1 and 6.12).
_KNOWN_ENTRIES = ("purgatory_start",)


def _section_of(elf: Elf, symbol: str) -> int:
    symtab = elf.symtab
    number = symtab.by_name.get(symbol) if symtab is not None else None
    section = int(symtab.section[number]) if symtab is not None and number is not None else 0
    if section <= 0:
        raise CannotRejoin(f"{elf.where}: does not define the entry {symbol}", "name it with -e SYMBOL")
    return section


def _plan(elf: Elf, first: int | None) -> list[Joined]:
    """Which sections become one, the entry's first, the others in the order of the file.

    Sections of mergeable strings and constants, and kernel sections with two dots (.data..percpu), stay.

    :raises CannotRejoin: naming the section and what stands against it.
    """
    plan = []
    names = elf.section_names
    for family in _FAMILIES:
        parts = [
            index
            for index, name in enumerate(names)
            if (name == family or (name.startswith(f"{family}.") and not name.startswith(f"{family}..")))
            and elf.sections["sh_type"][index] in (SHT_PROGBITS, SHT_NOBITS)
            and not int(elf.sections["sh_flags"][index]) & (_SHF_MERGE | _SHF_STRINGS)
        ]
        if first in parts:
            parts.remove(first)
            parts.insert(0, first)
        # The linker takes all sections of one name together.
        order = list(dict.fromkeys(names[index] for index in parts))
        parts.sort(key=lambda index: order.index(names[index]))
        if len(parts) > 1:
            _check_alike(elf, names, parts)
        if parts:
            plan.append(Joined(family, tuple(parts)))
    return plan


def _check_alike(elf: Elf, names: Sequence[str], parts: list[int]) -> None:
    flags = elf.sections["sh_flags"]
    wanted = int(flags[parts[0]]) & _ALIKE
    kind = int(elf.sections["sh_type"][parts[0]])
    for index in parts:
        own = int(flags[index])
        reason = None
        if own & _ALIKE != wanted:
            reason = f"has flags {own & _ALIKE:#x}, {names[parts[0]]} has {wanted:#x}"
        elif int(elf.sections["sh_type"][index]) != kind:
            reason = f"is of type {elf.sections['sh_type'][index]}, {names[parts[0]]} of {kind}"
        elif own & _SHF_GROUP:
            reason = "belongs to a group (COMDAT), which the link may drop"
        elif own & _SHF_LINK_ORDER:
            reason = "has to stand in the order of another section (SHF_LINK_ORDER)"
        elif own & SHF_COMPRESSED:
            reason = "is compressed"
        if reason:
            raise CannotRejoin(f"{elf.where}: section {names[index]} cannot be merged: it {reason}")


def _script(elf: Elf, plan: Sequence[Joined]) -> str:
    """A linker script with each section by its own name, in order: a wildcard could take more."""
    lines = ["SECTIONS {"]
    names = elf.section_names
    for joined in plan:
        inputs = list(dict.fromkeys(names[index] for index in joined.parts))
        lines.append(f"  {joined.name} 0 : {{")
        lines += [f"    *({_quoted(name)})" for name in inputs]
        lines.append("  }")
    return "\n".join([*lines, "}", ""])


def _quoted(name: str) -> str:
    if any(character in name for character in '"*?[]\\') or not name.isprintable():
        raise CannotRejoin(f"section {name!r} has a name that a linker script cannot have")
    return f'"{name}"'
