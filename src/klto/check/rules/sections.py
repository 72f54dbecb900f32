"""Section tables that tools cannot take."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import ClassVar

import numpy as np

from klto.check.finding import Finding, Level
from klto.check.roles import Role
from klto.check.rule import Rule
from klto.check.subject import Subject, Tables
from klto.objects.elf import SHT_SYMTAB_SHNDX
from klto.objects.elf_header import SHN_LORESERVE

#: "Section Attribute Flags": SHF_LINK_ORDER and SHF_TLS, which lld wants alike in all that it joins
#: (lld/ELF/OutputSections.cpp, 'incompatible section flags').
_MUST_MATCH = 0x80 | 0x400
#: Functions that LLVM has copied or renamed: IPSCCP and FunctionSpecialization, ThinLTO's promotion.
_MADE = re.compile(r"\.(llvm\.\d+|specialized\.\d+|constprop|isra)")
_INIT = (".init", ".exit", ".head.text", ".ref", ".meminit", ".cpuinit", ".discard")
_MOST = 5


class SectionTable(Rule):
    """Counts, index tables, flags, and .init code that others keep alive."""

    slug = "section-table"
    title = "more sections than tools take, index tables that do not match, and .init tied to normal code"
    what = (
        "Past 65,279 sections numbers move to other fields and an extended index table has to match the symbol "
        "table: the module loader refuses such files, tools that forget to extend the table break the link."
    )
    why = "LTO gives each function and each variable a section; instrumentation multiplies that"
    remedies: ClassVar = (
        "link the kernel module without LTO: klto build --no-lto PATH",
        "use the tool's newer version: objtool of 5.13 and later extends the table",
        "mark the function that is called from both __ref, or noinline",
    )
    references: ClassVar = (
        "https://github.com/ClangBuiltLinux/linux/issues/1388",
        "https://github.com/ClangBuiltLinux/linux/issues/953",
        "kernel/module/main.c, elf_validity_check: e_shnum and e_shstrndx (6.12)",
    )

    def of_object(self, subject: Subject) -> Iterator[Finding]:
        tables = subject.tables
        if tables is None:
            return
        yield from self._count(subject, tables)
        yield from self._extended(subject, tables)
        if subject.role is Role.VMLINUX_O:
            yield from self._flags(subject, tables)
            yield from self._init(subject, tables)

    def _count(self, subject: Subject, tables: Tables) -> Iterator[Finding]:
        count = len(tables.flags)
        if count >= SHN_LORESERVE:
            module = subject.role is Role.MODULE
            yield self.finding(
                subject.name,
                f"{count} sections"
                + (": the module loader reads e_shnum, which is 0 then" if module else ""),
                Level.ERROR if module else Level.NOTE,
                seen=str(count),
                allowed=str(SHN_LORESERVE - 1),
            )

    def _extended(self, subject: Subject, tables: Tables) -> Iterator[Finding]:
        rows = tables.elf.sections
        for index in np.flatnonzero(rows["sh_type"] == SHT_SYMTAB_SHNDX).tolist():
            linked = int(rows["sh_link"][index])
            if linked >= len(rows):
                continue
            words = int(rows["sh_size"][index]) // 4
            symbols = int(rows["sh_size"][linked]) // (24 if tables.elf.header.is64 else 16)
            if words != symbols:
                yield self.finding(
                    subject.name,
                    f"SHT_SYMTAB_SHNDX has {words} entries, but the symbol table has {symbols}: ld.lld refuses that",
                    section=tables.names[index],
                    seen=str(words),
                    allowed=str(symbols),
                )

    def _flags(self, subject: Subject, tables: Tables) -> Iterator[Finding]:
        marked = np.flatnonzero(((tables.flags & np.uint64(_MUST_MATCH)) != 0) & tables.allocated)
        column = tables.elf.section_name_column
        firsts = marked[np.unique(tables.elf.sections["sh_name"][marked], return_index=True)[1]]
        reported = 0
        for name in dict.fromkeys(column[index] for index in firsts.tolist()):
            kinds = tables.flags[column.equal(name) & tables.allocated] & np.uint64(_MUST_MATCH)
            others = kinds[kinds != kinds[0]]
            if len(others) and reported < _MOST:
                reported += 1
                yield self.finding(
                    subject.name,
                    f"sections {name} have different flags: SHF_LINK_ORDER or SHF_TLS on some of them only",
                    Level.WARNING,
                    section=name,
                    seen=f"{int(others[0]):#x}",
                    allowed=f"{int(kinds[0]):#x}",
                )

    def _init(self, subject: Subject, tables: Tables) -> Iterator[Finding]:
        """Normal code that LLVM has made, and that refers to code which is freed after the start."""
        init = tables.named(".init.text")
        kept = ~tables.named(*_INIT) & tables.executable
        section = tables.relocations.section
        chosen = np.flatnonzero(tables.in_memory & kept[section])
        target = tables.target_section(chosen)
        chosen = chosen[(target > 0) & init[np.maximum(target, 0)]]
        shown: set[str] = set()
        for index in chosen.tolist():
            _, name, offset = tables.relocation(index)
            if not _MADE.search(name) and name != ".text":
                continue
            holder = tables.symbol_at(int(section[index]), offset)
            if holder is not None and _MADE.search(holder) and holder not in shown and len(shown) < _MOST:
                shown.add(holder)
                yield self.finding(
                    subject.name,
                    f"{holder} in {name} refers to {tables.target_name(index)} in .init.text, which is freed",
                    Level.WARNING,
                    symbol=holder,
                    section=name,
                    offset=offset,
                    seen="normal code",
                    allowed=".init code",
                )
