"""Tools of different makers, or of different ages, in one build."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import ClassVar

import numpy as np

from klto.check.build_dir import BuildDir
from klto.check.finding import Finding, Level, many
from klto.check.link_inputs import LinkInputs
from klto.check.rule import Rule
from klto.check.saved import read_saved
from klto.check.subject import Subject, Tables

#: LLVM's bitcode is read by its own version and later ones; a reader refuses what it does not know.
_VERSION = re.compile(r"(\d+)\.")
#: Binutils' programs that cannot read bitcode without a plugin: the word that runs them ends so, without "llvm-".
_GNU_TOOL = re.compile(r"(?<!\S)(?:\S*/)?(?:[\w.]+-linux-\w+-)?(nm|ar|strip|objcopy|gcc-nm|gcc-ar)(?=\s)")
_READS_BITCODE = ("vmlinux.a", "built-in.a", "vmlinux.o")


class MixedToolchain(Rule):
    """Bitcode of several LLVMs, GNU objects that lld refuses, GNU tools that see nothing in bitcode."""

    slug = "mixed-toolchain"
    asks_link = True
    title = "bitcode, assembler, linker and tools of different toolchains in one link"
    what = (
        "Bitcode is read by the LLVM that wrote it and by later ones: an older linker stops with 'Unknown attribute "
        "kind' or 'Invalid record'. GNU nm and ar list no symbols of bitcode, so archives lack an index and scripts "
        "find no initcalls. GNU strip and objcopy damage modules that lld has linked."
    )
    why = "with LTO every tool between compiler and vmlinux reads bitcode, not only the compiler"
    remedies: ClassVar = (
        "give LLVM=1 (or LLVM=-19) to every make, menuconfig and DKMS builds included",
        "build again from clean when the compiler was changed: make clean, or klto build, which says so",
        "assemble with clang: LLVM_IAS=1",
    )
    references: ClassVar = (
        "https://github.com/ClangBuiltLinux/linux/issues/1412",
        "https://github.com/ClangBuiltLinux/linux/issues/1578",
        "https://github.com/dkms-project/dkms/issues/417",
    )

    def of_link(self, link: LinkInputs) -> Iterator[Finding]:
        by_producer: dict[str, list[str]] = defaultdict(list)
        for item in link.bitcode:
            by_producer[item.producer or "unknown"].append(item.name)
        yield from self._minority(link, by_producer)
        for _, subject in link.native:
            yield from self._symbols(subject)

    def _minority(self, link: LinkInputs, by_producer: dict[str, list[str]]) -> Iterator[Finding]:
        if len(by_producer) < 2:
            return
        usual = Counter({name: len(items) for name, items in by_producer.items()}).most_common(1)[0][0]
        for producer, names in by_producer.items():
            if producer == usual:
                continue
            apart = _major(producer) != _major(usual)
            yield self.finding(
                names[0],
                f"{many(len(names), 'bitcode module')} by {producer}, {len(by_producer[usual])} by {usual}"
                + (f"; the others: {', '.join(names[1:4])}" if len(names) > 1 else ""),
                Level.ERROR if apart else Level.WARNING,
                seen=producer,
                allowed=usual,
            )

    def _symbols(self, subject: Subject) -> Iterator[Finding]:
        """What lld refuses of objects by other assemblers: names and sections outside of their tables
        (lld/ELF/InputFiles.cpp, 'invalid symbol name offset', 'invalid symbol index')."""
        tables = subject.tables
        if tables is None or tables.elf.symtab is None:
            return
        symtab = tables.elf.symtab
        strings = int(tables.elf.sections["sh_link"][symtab.index])
        limit = int(tables.sizes[strings]) if strings < len(tables.sizes) else 0
        wrong = np.flatnonzero(symtab.table["st_name"] >= max(limit, 1))
        if len(wrong):
            yield self.finding(
                subject.name,
                f"symbol {int(wrong[0])} has a name outside of its string table: ld.lld says 'invalid symbol name "
                "offset'",
                seen=str(int(symtab.table["st_name"][wrong[0]])),
                allowed=f"below {limit}",
            )
        first = int(tables.elf.sections["sh_info"][symtab.index])
        if len(symtab) and (first == 0 or first > len(symtab)):
            yield self.finding(
                subject.name,
                f"the symbol table's first global symbol is {first} of {len(symtab)}: ld.lld says 'invalid sh_info "
                "in symbol table'",
                seen=str(first),
                allowed=f"1 to {len(symtab)}",
            )
        yield from self._relocated_symbols(subject, tables, len(symtab))

    def _relocated_symbols(self, subject: Subject, tables: Tables, count: int) -> Iterator[Finding]:
        indexes = np.flatnonzero(tables.relocations.entries["r_sym"] >= count)
        if len(indexes):
            number = int(tables.relocations.entries["r_sym"][indexes[0]])
            yield self.finding(
                subject.name,
                f"a relocation names symbol {number} of {count}: ld.lld says 'invalid symbol index'",
                seen=str(number),
                allowed=f"below {count}",
            )

    def of_build(self, build: BuildDir) -> Iterator[Finding]:
        if build.lto == "none":
            return
        yield from self._reader(build)
        for name in (*_READS_BITCODE, *build.modules()):
            command = read_saved(str(build.path / name))
            found = _GNU_TOOL.search(command.command) if command is not None else None
            if found is not None:
                yield self.finding(
                    name,
                    f"its saved command runs {found[0].strip()}, which cannot read bitcode",
                    seen=found[0].strip(),
                    allowed=f"llvm-{found[1].removeprefix('gcc-')}",
                )

    def _reader(self, build: BuildDir) -> Iterator[Finding]:
        """The compiler of the objects against the linker that read them, by what both left in vmlinux.o's or
        vmlinux's .comment ('Linker: LLD 19.1.7', 'clang version 19.1.7')."""
        vmlinux = build.subject("vmlinux") or build.subject("vmlinux.o")
        if vmlinux is None or vmlinux.elf is None or not build.link.bitcode:
            return
        linker = next((p for p in vmlinux.elf.producers if "LLD" in p), None)
        producer = build.link.bitcode[0].producer or ""
        if linker is None or not _major(producer) or not _major(linker.partition("LLD")[2]):
            return
        if _major(linker.partition("LLD")[2]) < _major(producer):
            yield self.finding(
                vmlinux.name,
                f"bitcode is by {producer}, the linker is older: {linker}",
                seen=linker,
                allowed=producer,
            )


def _major(text: str) -> int:
    found = _VERSION.search(text)
    return int(found[1]) if found else 0
