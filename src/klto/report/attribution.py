"""Which object each symbol of an image came from, so that sizes can be added up by directory.

Thin and full LTO leave no trace of it in vmlinux but names: so the objects that were linked (bitcode or native)
are asked what they define.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from klto.objects import parse_object
from klto.objects.archive import leaves, read_archive
from klto.objects.errors import MalformedObject
from klto.record import ObjectSize
from klto.report.image import Image, Symbol, origin_of

#: What klto names the part that no object defines: kallsyms, linker script symbols, linker-made thunks.
GENERATED = "(generated)"
#: Locals whose name several objects of different directories have, and nothing says which one it is.
AMBIGUOUS = "(ambiguous)"

#: Compilers put these before a function's name: kCFI's type words (llvm/lib/CodeGen/AsmPrinter/AsmPrinter.cpp,
#: emitKCFITypeId) and objtool's call padding (tools/objtool/elf.c).
_PREFIXES = ("__cfi_", "__pfx_")


class Definitions:
    """What the objects of a link define.

    :ivar by_name: source name to the objects that define it, by path relative to the build dir.
    :ivar objects: all of them.
    """

    def __init__(self) -> None:
        self.by_name: dict[str, list[str]] = defaultdict(list)
        self.objects: set[str] = set()

    def add(self, path: str, names: Iterable[str]) -> None:
        """One object and its symbols."""
        self.objects.add(path)
        for name in {origin_of(name) for name in names}:
            self.by_name[name].append(path)

    def __contains__(self, name: str) -> bool:
        return name in self.by_name

    def object_of(self, symbol: Symbol) -> str:
        """The object that a symbol of the image came from, or :data:`GENERATED` or :data:`AMBIGUOUS`."""
        name = origin_of(symbol.name)
        found = self.by_name.get(name)
        if found is None:
            for prefix in _PREFIXES:
                if name.startswith(prefix):
                    found = self.by_name.get(name[len(prefix) :])
        if found is None:
            return GENERATED
        if len(found) == 1:
            return found[0]
        if symbol.file is not None:
            stem = os.path.splitext(os.path.basename(symbol.file))[0]
            named = [path for path in found if os.path.splitext(os.path.basename(path))[0] == stem]
            if len(named) == 1:
                return named[0]
            found = named or found
        folders = {os.path.dirname(path) for path in found}
        return f"{folders.pop()}/{AMBIGUOUS}" if len(folders) == 1 else AMBIGUOUS


def read_definitions(build_dir: Path, inputs: Sequence[Path]) -> Definitions | None:
    """What the archives of the vmlinux.o link define; None when they are no longer there or cannot be read."""
    found = Definitions()
    try:
        for archive in inputs:
            for member in leaves(read_archive(archive)):
                path = os.path.relpath(member.path or member.where, build_dir)
                symbols = parse_object(member.data(), member.where).symbols()
                found.add(path, (symbol.name for symbol in symbols if symbol.defined))
    except MalformedObject:
        return None
    return found


def object_sizes(image: Image, definitions: Definitions) -> list[ObjectSize]:
    """Bytes of the image's symbols by the object that they came from, largest first."""
    sizes: dict[str, dict[str, int]] = {}
    for symbol in image.symbols():
        row = sizes.setdefault(definitions.object_of(symbol), {"text": 0, "data": 0, "bss": 0})
        row[symbol.kind] += symbol.size
    rows = [ObjectSize(path=path, **row) for path, row in sizes.items()]
    return sorted(rows, key=lambda row: (-(row.text + row.data + row.bss), row.path))


def directory_of(path: str, depth: int = 2) -> str:
    """The directory under which an object's size is shown, at most ``depth`` levels deep."""
    parts = path.split("/")
    return "/".join(parts[: min(depth, len(parts) - 1)]) or (path if path.startswith("(") else "(top)")
