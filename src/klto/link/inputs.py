"""The inputs of a link, told apart: LLVM bitcode or native code."""

from __future__ import annotations

import os

from klto.link.request import LinkRequest
from klto.objects.archive import leaves, read_archive
from klto.objects.errors import MalformedObject
from klto.objects.kind import kind_of
from klto.objects.source import read_whole

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from klto.objects.source import Buffer


class Module:
    """One bitcode input.

    :param argument: the argument of the command line that brings it: the file itself or an archive.
    :param name: its path, or ``archive(member)`` in a full archive.
    :param identifier: how lld names it to LLVM (lld/ELF/InputFiles.cpp, createBitcodeFile / BitcodeFile).
    :param size: bytes of bitcode.
    :param data: gives its bytes.
    """

    __slots__ = ("argument", "data", "identifier", "name", "path", "size")

    def __init__(
        self,
        argument: str,
        name: str,
        identifier: str,
        path: str | None,
        size: int,
        data: Callable[[], Buffer],
    ) -> None:
        self.data = data
        self.argument = argument
        self.name = name
        self.identifier = identifier
        self.path = path
        self.size = size


class Inputs:
    """A link's inputs: its bitcode modules in the order of the command line, and its native objects.

    Each member of an archive is one. ``certain``: how many modules from the first one on are surely linked, and in
    this order; behind them are members of archives that are taken on demand. ``files``: every file that is read, the
    archives and the members of thin ones; None when one of them could not be.
    """

    __slots__ = ("certain", "files", "modules", "native", "native_bytes")

    def __init__(
        self,
        modules: list[Module],
        certain: int,
        native: int,
        native_bytes: int,
        files: list[str] | None = None,
    ) -> None:
        self.files = files
        self.modules = modules
        self.certain = certain
        self.native = native
        self.native_bytes = native_bytes

    @property
    def bitcode(self) -> int:
        """How many bitcode modules."""
        return len(self.modules)

    @property
    def thin(self) -> bool:
        """Whether the bitcode is ThinLTO's: it carries a summary. What the smallest module has, all have."""
        from klto.objects.bitcode import Bitcode  # Late: only a link with bitcode needs it.

        module = min(self.modules, key=lambda module: module.size)
        try:
            return any(
                part.properties.summary == "thin" for part in Bitcode(module.data(), module.name).modules
            )
        except (MalformedObject, OSError):
            return True  # The linker will say what is wrong with it.

    @property
    def bitcode_bytes(self) -> int:
        """Their bytes together."""
        return sum(module.size for module in self.modules)


def read_inputs(request: LinkRequest) -> Inputs:
    """Look at the first bytes of every input.

    An input that is missing, broken or of another kind counts as neither: the linker itself will say so.
    """
    modules: list[Module] = []
    native = native_bytes = 0
    certain: int | None = None
    files: list[str] | None = []
    for path, eager in zip(request.inputs, request.eager, strict=True):
        try:
            if files is not None:
                files.append(path)
            for kind, module in _objects(path):
                if files is not None and module.path not in (None, path):
                    files.append(str(module.path))
                if kind == "bitcode":
                    if not eager and certain is None:
                        certain = len(modules)
                    modules.append(module)
                elif kind == "elf":
                    native += 1
                    native_bytes += module.size
        except (MalformedObject, OSError):
            files = None
    return Inputs(modules, len(modules) if certain is None else certain, native, native_bytes, files)


def _objects(path: str) -> list[tuple[str, Module]]:
    """(kind, module) of the object at ``path`` or of each object in the archive there."""
    kind = kind_of(path)
    if kind not in ("archive", "thin-archive"):
        return [(kind, Module(path, path, path, path, os.stat(path).st_size, lambda: read_whole(path)))]
    found: list[tuple[str, Module]] = []
    for member in leaves(read_archive(path)):
        name = os.path.basename(member.name)
        identifier = f"{path}({name} at {member.header_offset})"
        size = os.stat(member.path).st_size if member.path else member.size
        found.append((member.kind(), Module(path, member.where, identifier, member.path, size, member.data)))
    return found
