"""Bytes in, tables out: ELF, LLVM bitcode and archives. Knows no kernels, no LTO, no processes.

:func:`read_object` is its one face. It is imported when first asked for: ``archive``, ``kind``, ``irsymtab``
and ``nm`` serve programs that have milliseconds, and must not load numpy on the way.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from klto.objects.object_file import ObjectFile as ObjectFile
    from klto.objects.object_file import Symbol as Symbol
    from klto.objects.object_file import parse_object as parse_object
    from klto.objects.object_file import read_object as read_object

__all__ = ["ObjectFile", "Symbol", "parse_object", "read_object"]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from klto.objects import object_file

    return getattr(object_file, name)
