"""The names in the bitcode of a link, from the tables that its modules bring."""

from __future__ import annotations

from collections.abc import Collection
from functools import cached_property

import numpy as np
import numpy.typing as npt

from klto.objects import irsymtab
from klto.objects.bitcode import Bitcode
from klto.objects.errors import MalformedObject
from klto.objects.irsymtab import SymbolTable

_GLOBAL, _UNDEFINED, _SPECIFIC = irsymtab.FB_GLOBAL, irsymtab.FB_UNDEFINED, irsymtab.FB_FORMAT_SPECIFIC
_HIDDEN = _UNDEFINED | _SPECIFIC
#: storage::Symbol as words: Name (offset, size), IRName (offset, size), ComdatIndex, Flags.
_WORDS = 6
#: A name stands once in a string table and belongs to a symbol or two.
_MAX_SHARING = 4


class IrSymbols:
    """Tables are taken in with :meth:`add`, module by module; afterwards the names are there."""

    def __init__(self) -> None:
        self._tables: list[tuple[bytes, bytes, str]] = []
        self._records: list[tuple[int, str, bool]] = []
        self._modules: list[int] = []
        self._count = 0

    def add(self, table: SymbolTable, where: str) -> None:
        """The next module, by its symbol table; ``where`` is for errors."""
        symbols, names = table.raw()
        self._tables.append((bytes(symbols), bytes(names), where))
        self._modules.append(self._count)
        self._count += 1

    def add_records(self, bitcode: Bitcode) -> None:
        """The next module, which has no symbol table.

        :raises MalformedObject: when its records are broken.
        """
        self._records += [
            (self._count, symbol.name, symbol.is_global)
            for symbol in bitcode.symbols()
            if symbol.defined and not symbol.format_specific
        ]
        self._count += 1

    @cached_property
    def _columns(self) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """All symbols' words; where each one's module has its strings in :attr:`_text`; its module.

        :raises MalformedObject: when a name is outside of its module's strings.
        """
        counts = np.array([len(symbols) // (4 * _WORDS) for symbols, _, _ in self._tables], np.int64)
        sizes = np.array([len(names) for _, names, _ in self._tables], np.int64)
        words = np.frombuffer(b"".join(symbols for symbols, _, _ in self._tables), "<u4").reshape(-1, _WORDS)
        wrong = np.flatnonzero(words[:, 0].astype(np.int64) + words[:, 1] > np.repeat(sizes, counts))
        if len(wrong) or words[:, 1].sum(dtype=np.int64) > _MAX_SHARING * (sizes.sum() + words.nbytes):
            number = int(np.searchsorted(np.cumsum(counts), wrong[0], "right")) if len(wrong) else 0
            where, size = self._tables[number][2], sizes[number]
            raise MalformedObject(where, None, f"expected names of their own within {size} bytes of strings")
        begins = np.cumsum(sizes) - sizes
        return words, np.repeat(begins, counts), np.repeat(np.array(self._modules, np.int64), counts)

    @cached_property
    def _text(self) -> bytes:
        return b"".join(names for _, names, _ in self._tables)

    def _chosen(self, mask: npt.NDArray[np.bool_]) -> tuple[list[str], list[int]]:
        """Names and modules of some symbols, in link order."""
        words, base, module = self._columns
        chosen = np.flatnonzero(mask)
        begin = base[chosen] + words[chosen, 0]
        end = begin + words[chosen, 1]
        text = self._text
        pairs = zip(begin.tolist(), end.tolist(), strict=True)
        if text.isascii():
            decoded = text.decode("ascii")
            return [decoded[first:last] for first, last in pairs], module[chosen].tolist()
        names = [text[first:last].decode("utf-8", "surrogateescape") for first, last in pairs]
        return names, module[chosen].tolist()

    @cached_property
    def defined(self) -> dict[str, int]:
        """Global definition to the first module that has it."""
        flags = self._columns[0][:, 5]
        names, modules = self._chosen((flags & (_HIDDEN | _GLOBAL)) == _GLOBAL)
        rows = [(name, number) for number, name, is_global in self._records if is_global]
        return _first(names, modules, rows)

    @cached_property
    def local(self) -> dict[str, int]:
        """Name of local definitions only, to the first module that has one."""
        flags = self._columns[0][:, 5]
        names, modules = self._chosen((flags & (_HIDDEN | _GLOBAL)) == 0)
        rows = [(name, number) for number, name, is_global in self._records if not is_global]
        return {name: n for name, n in _first(names, modules, rows).items() if name not in self.defined}

    def defines(self, names: Collection[str], *, globally: bool) -> set[str]:
        """Those of some names that have a global (or a local) definition, without a look at all others."""
        wanted = {name.encode("utf-8", "surrogateescape") for name in names}
        found = {name for _, name, is_global in self._records if is_global == globally and name in names}
        words, base, _ = self._columns
        kind = _GLOBAL if globally else 0
        mask = (words[:, 5] & (_HIDDEN | _GLOBAL)) == kind
        mask &= np.isin(words[:, 1], np.array([len(name) for name in wanted], np.uint32))
        chosen = np.flatnonzero(mask)
        begin = base[chosen] + words[chosen, 0]
        # By two of a name's characters before it is cut out; a name is followed by other bytes of its table.
        text = np.frombuffer(self._text + b"\0", np.uint8)
        pairs = {name[:2].ljust(2, b"\0") for name in wanted if len(name) > 1}
        heads = np.zeros(1 << 16, bool)
        heads[[first | second << 8 for first, second in pairs]] = True
        likely = heads[text[begin] | text[begin + 1].astype(np.uint16) << 8] | (words[chosen, 1] < 2)
        for first, index in zip(begin[likely].tolist(), chosen[likely].tolist(), strict=True):
            name = self._text[first : first + int(words[index, 1])]
            if name in wanted:
                found.add(name.decode("utf-8", "surrogateescape"))
        return found

    @cached_property
    def of_asm(self) -> dict[str, list[int]]:
        """Name that module-level assembly defines, to the modules that do."""
        words = self._columns[0]
        names, modules = self._chosen(((words[:, 5] & _HIDDEN) == 0) & (words[:, 3] == 0))
        found: dict[str, list[int]] = {}
        for name, number in zip(names, modules, strict=True):
            if name and not name.startswith(".L"):
                found.setdefault(name, []).append(number)
        return found


def _first(names: list[str], modules: list[int], more: list[tuple[str, int]]) -> dict[str, int]:
    """Name to the smallest number: of equal keys the last one stays."""
    found = dict(zip(reversed(names), reversed(modules), strict=True))
    for name, number in more:
        found[name] = min(number, found.get(name, number))
    return found
