"""The inputs of a link, told apart: LLVM bitcode or native code."""

from __future__ import annotations

import os

from klto.link.request import LinkRequest
from klto.objects.archive import leaves, read_archive
from klto.objects.errors import MalformedObject
from klto.objects.kind import kind_of


class Inputs:
    """Counts of a link's input objects (each member of an archive is one) and the bytes of the bitcode ones."""

    __slots__ = ("bitcode", "bitcode_bytes", "native")

    def __init__(self, bitcode: int, native: int, bitcode_bytes: int) -> None:
        self.bitcode = bitcode
        self.native = native
        self.bitcode_bytes = bitcode_bytes


def read_inputs(request: LinkRequest) -> Inputs:
    """Look at the first bytes of every input.

    An input that is missing, broken or of another kind counts as neither: the linker itself will say so.
    """
    bitcode = native = size = 0
    for path in request.inputs:
        for kind, length in _objects(path):
            if kind == "bitcode":
                bitcode += 1
                size += length
            elif kind == "elf":
                native += 1
    return Inputs(bitcode, native, size)


def _objects(path: str) -> list[tuple[str, int]]:
    """(kind, bytes) of the object at ``path`` or of each object in the archive there."""
    try:
        kind = kind_of(path)
        if kind in ("archive", "thin-archive"):
            return [
                (member.kind(), os.stat(member.path).st_size if member.path else member.size)
                for member in leaves(read_archive(path))
            ]
        return [(kind, os.stat(path).st_size)]
    except (MalformedObject, OSError):
        return []
