"""The final link: the same command line with native objects in the place of bitcode.

lld takes in the objects that LTO made behind all others, in the order of their modules (lld/ELF/Driver.cpp,
compileBitcodeFiles). So here bitcode inputs are left out where they stood and their objects follow at the end.
"""

from __future__ import annotations

import os
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from klto.cluster.job import digest_of
from klto.cluster.options import Undistributable
from klto.link.request import takes_value
from klto.objects.archive import read_archive
from klto.objects.bitcode import Bitcode
from klto.objects.elf import Elf
from klto.objects.kind import kind_of
from klto.objects.source import read_whole

if TYPE_CHECKING:
    from collections.abc import Container, Iterable

    from klto.cluster.modules import Place
    from klto.cluster.thin_link import Source
    from klto.link.request import LinkRequest

#: Words after which a plain file would be taken for something else; they must not be in force at the end.
_FORMATS = ("-b", "--format")
#: What a name in a response file may not hold without quotes (llvm::cl::TokenizeGNUCommandLine).
_UNQUOTED = re.compile(rb"[ \t\n\"'\\]")


class FinalLink(NamedTuple):
    """The final link before its objects are there.

    :ivar arguments: the native objects of the modules go behind them, in the modules' order.
    :ivar inputs: for a link whose symbol table has to be put in order (:func:`symbol_names`): its bitcode and its
        native files as the linker would have met them; empty for others.
    """

    arguments: tuple[str, ...]
    inputs: tuple[Place | str, ...]


def plan_final_link(request: LinkRequest, sources: dict[str, Source], scratch: Path) -> FinalLink:
    """Plan the final link.

    :raises Undistributable: when an option stands in the way.
    """
    direct = {source.argument for source in sources.values() if source.member is None}
    archives: dict[str, dict[int, Source]] = {}
    for source in sources.values():
        if source.member is not None:
            archives.setdefault(source.argument, {})[source.member.header_offset] = source
    by_argument = {source.argument: source for source in sources.values() if source.member is None}
    arguments: list[str] = []
    linked: list[Place | str] = []
    whole, lazy = False, False
    words = iter(request.words)
    for word in words:
        if takes_value(word):
            if word in _FORMATS:
                raise Undistributable(f"the linker's option {word}")
            arguments += [word, *(value for value in [next(words, None)] if value is not None)]
        elif word in direct:
            linked.append(by_argument[word].place)
        elif word in archives:
            lazy = lazy or not whole
            natives = _natives(word, archives[word], scratch)
            linked += [
                archives[word][member.header_offset].place
                if member.header_offset in archives[word]
                else natives[member.header_offset]
                for member in read_archive(word).members
            ]
            files = list(natives.values())
            arguments += files if whole else [_archive_of(word, files, scratch)] if files else []
        else:
            if word in request.inputs:
                lazy = lazy or kind_of(word) != "elf"
                linked.append(word)
            if word in ("--whole-archive", "-whole-archive", "--no-whole-archive", "-no-whole-archive"):
                whole = "no-" not in word
            arguments.append(word)
    return FinalLink(tuple(arguments), tuple(linked) if request.relocatable and not lazy else ())


def symbol_names(inputs: list[Place | str]) -> tuple[bytes, float]:
    """The global symbols of some of :class:`FinalLink`'s inputs, in the order in which the linker would have met
    them, each once, NUL behind each; and the CPU seconds that it took.

    lld writes symbols in that order (lld/ELF/SymbolTable.cpp, insert), and it reads bitcode where that stands on the
    command line: of each module first the symbols that it defines, then the others (lld/ELF/InputFiles.cpp,
    BitcodeFile::parse; llvm/lib/LTO/LTO.cpp, InputFile::create, says which).
    """
    begun = time.thread_time()
    seen: dict[str, None] = {}
    for item in inputs:
        for name in _of_elf(item) if isinstance(item, str) else _of_bitcode(item):
            seen[name] = None
    names = b"".join(name.encode("utf-8", "surrogateescape") + b"\0" for name in seen)
    return names, time.thread_time() - begun


def write_names(parts: Iterable[bytes], path: Path) -> None:
    """A response file that names symbols before any file does, so that they get the places they would have had.

    A name that then occurs nowhere leaves no trace (lld/ELF/Driver.cpp, addUnusedUndefined). Only for relocatable
    links without archives to choose from: elsewhere a name could pull a member in.

    :param parts: what :func:`symbol_names` made of all inputs, in order.
    """
    names = dict.fromkeys(name for part in parts for name in part.split(b"\0")[:-1])
    path.write_bytes(b"".join(b"--undefined=%b\n" % name for name in names if not _UNQUOTED.search(name)))


def _of_elf(path: str) -> list[str]:
    elf = Elf(read_whole(path), path)
    table = elf.symtab
    return [] if table is None else table.names[int(elf.sections["sh_info"][table.index]) :]


def _of_bitcode(place: Place) -> list[str]:
    symbols = [
        s for s in Bitcode(place.read(), place.path).symbols() if s.is_global and not s.format_specific
    ]
    return [s.name for s in symbols if s.defined] + [s.name for s in symbols if not s.defined]


def _natives(path: str, bitcode: Container[int], scratch: Path) -> dict[int, str]:
    """The archive's members that are no bitcode, as files, by the offsets of their headers."""
    found = {}
    for number, member in enumerate(read_archive(path).members):
        if member.header_offset in bitcode:
            continue
        if member.path is not None:
            found[member.header_offset] = member.path
            continue
        folder = scratch / "members" / digest_of(path.encode("utf-8", "surrogateescape")) / str(number)
        folder.mkdir(parents=True, exist_ok=True)
        copy = folder / os.path.basename(member.name)
        copy.write_bytes(member.data())
        found[member.header_offset] = str(copy)
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
