"""Code in more sections than its loader takes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import numpy as np

from klto.check.finding import Finding, Level
from klto.check.roles import Role
from klto.check.rule import Rule
from klto.check.subject import Subject, Tables

#: Section names shown of many.
_SHOWN = 4


class SplitText(Rule):
    """More than one executable section where there may be one."""

    slug = "split-text"
    title = "an object whose loader needs one executable section holds more"
    what = (
        "kexec_file_load() finds the purgatory's entry by asking which executable section the ELF header's entry "
        "lies in. In a relocatable object each section begins at 0, so with several it cannot tell: the kernel warns, "
        "or takes one without a word, and may jump into the wrong one. Loaders that look for the symbol "
        "purgatory_start (6.12.117, 6.1.192) do not mind: for a build dir whose tree has one this is a warning."
    )
    why = (
        "LTO code generation puts each function into a section of its own (lld's -r link implies "
        "-ffunction-sections), and profiles add .text.hot and .text.unlikely"
    )
    remedies: ClassVar = (
        (
            "compile the objects of this link without LTO: KBUILD_CFLAGS := $(filter-out $(CC_FLAGS_LTO),"
            "$(KBUILD_CFLAGS)) in its Makefile, or klto build --no-lto PATH"
        ),
        "merge the sections: klto rejoin IN -o OUT, or klto build --rejoin PATH",
        "give the link a linker script that has one .text",
    )
    references: ClassVar = (
        "kernel/kexec_file.c, kexec_purgatory_setup_sechdrs (6.12)",
        "commits 'x86/purgatory: remove PGO flags' and 'x86/purgatory: Remove LTO flags'",
        "arch/x86/purgatory/Makefile (6.12)",
        "https://github.com/ClangBuiltLinux/linux/issues/2016",
    )

    #: Set by ``--single-text``: every ELF object must have one executable section.
    everywhere = False

    def of_object(self, subject: Subject) -> Iterator[Finding]:
        tables = subject.tables
        if tables is None:
            return
        if not self.everywhere and subject.role is not Role.PURGATORY:
            if subject.role is Role.PURGATORY_PART:
                yield from self._of_part(subject, tables)
            return
        sections = np.flatnonzero(tables.executable & tables.allocated & (tables.sizes > 0)).tolist()
        if len(sections) <= 1:
            return
        at_entry = self._at_entry(tables, sections) if tables.elf.header.e_type == _ET_REL else []
        names = [tables.names[i] for i in sections]
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        message = f"{len(sections)} executable sections where 1 may be: {', '.join(names[:_SHOWN])}{more}"
        by_symbol = _found_by_symbol(subject, tables)
        if by_symbol:
            message += (
                f"; {_LOADER} of this tree finds the entry by its symbol, those of other kernels do not"
            )
        elif len(at_entry) > 1:
            message += (
                f"; {len(at_entry)} of them overlap at the entry, {tables.elf.header.e_entry:#x}: the kernel "
                "cannot tell in which one it is"
            )
        yield self.finding(
            subject.name,
            message,
            Level.WARNING if by_symbol else Level.ERROR,
            section=names[1],
            seen=f"{len(sections)} executable sections",
            allowed="1",
            source=_makefile(subject),
        )

    def _of_part(self, subject: Subject, tables: Tables) -> Iterator[Finding]:
        """An object of the purgatory: its link makes further sections of those that a profile made."""
        for index in np.flatnonzero(tables.executable & (tables.sizes > 0)).tolist():
            name = tables.names[index]
            if name.startswith((".text.hot", ".text.unlikely", ".ltext")):
                yield self.finding(
                    subject.name,
                    f"{name} in an object of the purgatory becomes a second executable section of it",
                    Level.WARNING,
                    section=name,
                    seen=name,
                    allowed=".text alone",
                    source=_makefile(subject),
                )

    def _at_entry(self, tables: Tables, sections: list[int]) -> list[int]:
        entry = tables.elf.header.e_entry
        rows = tables.elf.sections
        return [
            i
            for i in sections
            if int(rows["sh_addr"][i]) <= entry < int(rows["sh_addr"][i]) + int(rows["sh_size"][i])
        ]


_ET_REL = 1
_LOADER, _ENTRY = "kernel/kexec_file.c", "purgatory_start"


def _found_by_symbol(subject: Subject, tables: Tables) -> bool:
    """Whether the loader of its own tree asks for a symbol that the purgatory has (6.12.117,
    kexec_purgatory_setup_sechdrs)."""
    if subject.role is not Role.PURGATORY or subject.tree is None or _ENTRY not in tables.symbol_names:
        return False
    try:
        return f'"{_ENTRY}"' in (subject.tree / _LOADER).read_text("utf-8", "replace")
    except OSError:
        return False


def _makefile(subject: Subject) -> str | None:
    folder, slash, _ = subject.name.rpartition("/")
    return f"{folder[folder.index('arch/') :]}/Makefile" if slash and "arch/" in folder else None
