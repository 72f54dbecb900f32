"""A linked image's sizes: sections and symbols, read by :mod:`klto.objects`."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from klto.errors import UsageError
from klto.objects import read_object
from klto.objects.elf import (
    SHF_ALLOC,
    SHF_EXECINSTR,
    SHF_WRITE,
    SHT_NOBITS,
    SHT_REL,
    SHT_RELA,
    SHT_SYMTAB,
    Elf,
)
from klto.record import SectionSize

# gABI chapter 4: "Section Types", "Special Section Indexes", "Symbol Types", "Symbol Binding".
_SHT_NULL, _SHT_STRTAB = 0, 3
_STT_SECTION, _STT_FILE, _STT_COMMON, _STT_GNU_IFUNC = 3, 4, 5, 10
_STB_WEAK = 2

#: How a symbol's bytes are counted, in this order.
KINDS = ("text", "data", "bss")

#: What compilers put behind a name: ThinLTO's promoted locals (llvm/lib/IR/ModuleSummaryIndex.cpp,
#: getGlobalNameForLocal), copies for certain arguments (llvm/lib/Transforms/IPO/FunctionSpecialization.cpp,
#: createSpecialization) and the numbers of statics and of renamed duplicates.
_SUFFIX = re.compile(r"\.(?:llvm|specialized)\.\d+|\.\d+")

#: Symbols that scripts/bloat-o-meter of 6.12 (getsizes) leaves out, since they come and go with line numbers
#: and builds.
_GENERATED = ("__mod_", "__se_sys", "__se_compat_sys", "__addressable_")
_GENERATED_NAMES = frozenset(("linux_banner", "vermagic"))


def origin_of(name: str) -> str:
    """The name in the source: ``foo.llvm.123`` and ``foo.7`` are foo."""
    return _SUFFIX.sub("", name) if "." in name else name


@dataclass(frozen=True)
class Berkeley:
    """``llvm-size``'s default columns, bytes."""

    text: int
    data: int
    bss: int


@dataclass(frozen=True)
class Symbol:
    """A symbol that takes space. ``file``: the STT_FILE before a local symbol, as the compiler wrote it."""

    name: str
    size: int
    kind: str
    file: str | None
    local: bool


class Image:
    """An ELF image: vmlinux, vmlinux.o, a kernel module, an object.

    :raises UsageError: when the file is not ELF.
    :raises MalformedObject: when it is broken.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        found = read_object(path)
        if found.elf is None:
            raise UsageError(
                f"{self.path} is {found.kind}, not ELF", "give a build dir, a record or an image"
            )
        self.elf: Elf = found.elf
        self.target = found.target or "unknown"

    @cached_property
    def sections(self) -> list[SectionSize]:
        """The sections that ``llvm-size -A`` lists (llvm/tools/llvm-size/llvm-size.cpp, considerForSize); the
        ones of one name together."""
        rows = self.elf.sections
        sizes: dict[str, tuple[int, str]] = {}
        for name, kind, flags, size in zip(
            self.elf.section_names, rows["sh_type"].tolist(), rows["sh_flags"].tolist(),
            rows["sh_size"].tolist(), strict=True,
        ):  # fmt: skip
            if _is_counted(kind, flags):
                sizes[name] = (sizes.get(name, (0, ""))[0] + size, _kind_of_section(kind, flags))
        return [SectionSize(name=name, bytes=size, kind=kind) for name, (size, kind) in sizes.items()]

    @cached_property
    def berkeley(self) -> Berkeley:
        """Text, data and bss as ``llvm-size`` adds them up (isBerkeleyText, isBerkeleyData and isSectionBSS of
        llvm/include/llvm/Object/ELFObjectFile.h)."""
        rows = self.elf.sections
        alloc = rows["sh_flags"] & SHF_ALLOC != 0
        write = rows["sh_flags"] & SHF_WRITE != 0
        code = rows["sh_flags"] & SHF_EXECINSTR != 0
        nobits = rows["sh_type"] == SHT_NOBITS
        text = alloc & (code | ~write)
        data = ~nobits & alloc & write & ~code
        bss = nobits & (alloc | write) & ~text
        return Berkeley(*(int(rows["sh_size"][which].sum()) for which in (text, data, bss)))

    def _counted(self) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.int64]]:
        """Which symbols ``nm --size-sort`` lists with a letter of bloat-o-meter's (tTdDbBrRvVwW), and each
        one's kind as an index of :data:`KINDS`.

        The letters are those of binutils' bfd/syms.c (bfd_decode_symclass, decode_section_type): weak symbols,
        and symbols of sections that are loaded.
        """
        table = self.elf.symtab
        assert table is not None
        rows = table.table
        kind = rows["st_info"] & 15
        weak = rows["st_info"] >> 4 == _STB_WEAK
        section = table.section
        headers = self.elf.sections
        flags = np.where(section > 0, headers["sh_flags"][np.maximum(section, 0)], 0)
        nobits = np.where(section > 0, headers["sh_type"][np.maximum(section, 0)] == SHT_NOBITS, False)
        named = ~np.isin(kind, (_STT_SECTION, _STT_FILE, _STT_COMMON, _STT_GNU_IFUNC))
        loaded = flags & SHF_ALLOC != 0
        counted = named & (rows["st_size"] > 0) & (section != 0) & (loaded | weak)
        sort = np.where(flags & SHF_EXECINSTR != 0, 0, np.where(nobits, 2, 1))
        return counted, sort

    def symbols(self) -> Iterator[Symbol]:
        """The symbols that bloat-o-meter counts, in the order of the table.

        :raises UsageError: for a stripped file.
        """
        table = self.elf.symtab
        if table is None:
            raise UsageError(
                f"{self.path} has no symbols", "give the vmlinux of the build, not a stripped one"
            )
        counted, sort = self._counted()
        files = self._files()
        names = table.names
        local = (table.table["st_info"] >> 4 == 0).tolist()
        sizes = table.table["st_size"].tolist()
        kinds = sort.tolist()
        for index in np.flatnonzero(counted).tolist():
            name = names[index]
            if name.startswith(_GENERATED) or name in _GENERATED_NAMES:
                continue
            file = names[files[index]] if local[index] and files[index] else None
            yield Symbol(name, sizes[index], KINDS[kinds[index]], file, local[index])

    def _files(self) -> list[int]:
        """For each symbol the index of the last STT_FILE before it, 0 when there is none."""
        table = self.elf.symtab
        assert table is not None
        is_file = table.table["st_info"] & 15 == _STT_FILE
        places = np.where(is_file, np.arange(len(table)), 0)
        found: list[int] = np.maximum.accumulate(places).tolist() if len(places) else []
        return found


def _is_counted(kind: int, flags: int) -> bool:
    if kind in (_SHT_NULL, SHT_SYMTAB):
        return False
    return kind not in (_SHT_STRTAB, SHT_REL, SHT_RELA) or bool(flags & SHF_ALLOC)


def _kind_of_section(kind: int, flags: int) -> str:
    if not flags & SHF_ALLOC:
        return "other"
    if kind == SHT_NOBITS:
        return "bss"
    return "text" if flags & SHF_EXECINSTR else "data"
