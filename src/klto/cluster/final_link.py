"""The final link: the same command line with native objects in the place of bitcode.

lld takes in the objects that LTO made behind all others, in the order of their modules (lld/ELF/Driver.cpp,
compileBitcodeFiles). So here bitcode inputs are left out where they stood and their objects follow at the end.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from klto.cluster.job import digest_of
from klto.cluster.options import Undistributable
from klto.link.request import takes_value
from klto.objects.archive import read_archive
from klto.objects.bitcode import Bitcode
from klto.objects.elf import Elf
from klto.objects.kind import kind_of
from klto.objects.source import read_whole

if TYPE_CHECKING:
    from collections.abc import Iterator

    from klto.cluster.thin_link import Source
    from klto.link.request import LinkRequest

#: Words after which a plain file would be taken for something else; they must not be in force at the end.
_FORMATS = ("-b", "--format")


def final_arguments(
    request: LinkRequest, sources: dict[str, Source], objects: list[Path], scratch: Path
) -> list[str]:
    """The arguments of the final link.

    :param objects: the native objects in the modules' order.
    :raises Undistributable: when an option stands in the way.
    """
    direct = {source.argument for source in sources.values() if source.member is None}
    archives = {source.argument for source in sources.values() if source.member is not None}
    arguments: list[str] = []
    linked: list[str | Source] = []
    by_argument: dict[str, list[Source]] = {}
    for source in sources.values():
        by_argument.setdefault(source.argument, []).append(source)
    whole, lazy = False, False
    words = iter(request.words)
    for word in words:
        if takes_value(word):
            if word in _FORMATS:
                raise Undistributable(f"the linker's option {word}")
            arguments += [word, *(value for value in [next(words, None)] if value is not None)]
        elif word in direct:
            linked += by_argument[word]
        elif word in archives:
            lazy = lazy or not whole
            natives = _natives(word, scratch)
            linked += _in_order(word, by_argument[word], natives)
            arguments += natives if whole else [_archive_of(word, natives, scratch)] if natives else []
        else:
            if word in request.inputs:
                lazy = lazy or kind_of(word) != "elf"
                linked.append(word)
            if word in ("--whole-archive", "-whole-archive", "--no-whole-archive", "-no-whole-archive"):
                whole = "no-" not in word
            arguments.append(word)
    if request.relocatable and not lazy:
        names = scratch / "symbols"
        names.write_bytes(b"".join(b"--undefined=%b\n" % name for name in _symbol_names(linked)))
        arguments.insert(0, f"@{names}")
    return [*arguments, *map(str, objects)]


def _in_order(archive: str, bitcode: list[Source], natives: list[str]) -> list[str | Source]:
    """An archive's members in its order: bitcode as sources, natives as the files that stand for them."""
    modules, files = iter(bitcode), iter(natives)
    return [
        next(modules) if member.kind() == "bitcode" else next(files)
        for member in read_archive(archive).members
    ]


def _symbol_names(linked: list[str | Source]) -> Iterator[bytes]:
    """The global symbols in the order in which the linker would have met them.

    lld writes symbols in that order (lld/ELF/SymbolTable.cpp, insert), and it reads bitcode where that stands on the
    command line: of each module first the symbols that it defines, then the others (lld/ELF/InputFiles.cpp,
    BitcodeFile::parse; llvm/lib/LTO/LTO.cpp, InputFile::create, says which). Named by --undefined= before any
    file, they get the same places. A name that then occurs nowhere leaves no trace (addUnusedUndefined). Only for
    relocatable links without archives to choose from: elsewhere a name could pull a member in.
    """
    seen: set[str] = set()
    for item in linked:
        for name in _of_elf(item) if isinstance(item, str) else _of_bitcode(item):
            if name not in seen and not any(character in name for character in " \t\n\"'\\"):
                seen.add(name)
                yield name.encode("utf-8", "surrogateescape")


def _of_elf(path: str) -> list[str]:
    elf = Elf(read_whole(path), path)
    table = elf.symtab
    return [] if table is None else table.names[int(elf.sections["sh_info"][table.index]) :]


def _of_bitcode(source: Source) -> list[str]:
    symbols = [
        s for s in Bitcode(source.read(), source.where).symbols() if s.is_global and not s.format_specific
    ]
    return [s.name for s in symbols if s.defined] + [s.name for s in symbols if not s.defined]


def _natives(path: str, scratch: Path) -> list[str]:
    """The archive's members that are no bitcode, as files."""
    found = []
    for number, member in enumerate(read_archive(path).members):
        if member.kind() == "bitcode":
            continue
        if member.path is not None:
            found.append(member.path)
            continue
        folder = scratch / "members" / digest_of(path.encode("utf-8", "surrogateescape")) / str(number)
        folder.mkdir(parents=True, exist_ok=True)
        copy = folder / os.path.basename(member.name)
        copy.write_bytes(member.data())
        found.append(str(copy))
    return found


def _archive_of(path: str, natives: list[str], scratch: Path) -> str:
    """An archive of the same name with these members, in the common format (ar(5), GNU's long names).

    It has no symbol table: lld reads the members themselves since LLVM 15. ``--start-lib`` would not do: it must
    not stand in a group."""
    long_names, content = b"", b""
    for native in natives:
        data = Path(native).read_bytes()
        content += _header(f"/{len(long_names)}", len(data)) + data + b"\n" * (len(data) % 2)
        long_names += os.path.basename(native).encode("utf-8", "surrogateescape") + b"/\n"
    long_names += b"\n" * (len(long_names) % 2)
    folder = scratch / "archives" / digest_of(path.encode("utf-8", "surrogateescape"))
    folder.mkdir(parents=True, exist_ok=True)
    archive = folder / os.path.basename(path)
    archive.write_bytes(b"!<arch>\n" + _header("//", len(long_names)) + long_names + content)
    return str(archive)


def _header(name: str, size: int) -> bytes:
    return f"{name:<16}{0:<12}{0:<6}{0:<6}{644:<8}{size:<10}`\n".encode()
