"""Names of an ELF file's sections or symbols, searched where they stand: of tens of thousands a few are wanted."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import numpy.typing as npt

Mask = npt.NDArray[np.bool_]
_HEAD = 8


class NameColumn:
    """A column of names.

    :param table: the string table's bytes; its end is the last name's.
    :param offsets: of each name in it, all of them within it.
    """

    def __init__(self, table: bytes, offsets: npt.NDArray[np.uint32]) -> None:
        self._table = table if table.endswith(b"\0") else table + b"\0"
        self._offsets = offsets.astype(np.int64)

    def __len__(self) -> int:
        return len(self._offsets)

    def __getitem__(self, index: int) -> str:
        begin = int(self._offsets[index])
        return self._table[begin : self._table.index(b"\0", begin)].decode("utf-8", "surrogateescape")

    @cached_property
    def _heads(self) -> npt.NDArray[np.uint64]:
        """The first 8 bytes of each name, and of what follows it, the first one lowest."""
        characters = np.frombuffer(self._table + bytes(_HEAD), np.uint8)
        heads = np.zeros(len(self), np.uint64)
        for place in range(_HEAD):
            heads |= characters[self._offsets + place].astype(np.uint64) << np.uint64(8 * place)
        return heads

    def starting(self, *prefixes: str) -> Mask:
        """Which names begin with one of these."""
        mask = np.zeros(len(self), bool)
        characters = np.frombuffer(self._table, np.uint8)
        for prefix in prefixes:
            wanted = prefix.encode("utf-8", "surrogateescape")
            head = wanted[:_HEAD]
            bits = np.uint64((1 << 8 * len(head)) - 1)
            left = np.flatnonzero((self._heads & bits) == np.uint64(int.from_bytes(head, "little")))
            left = left[self._offsets[left] + len(wanted) <= len(characters)]
            for place in range(_HEAD, len(wanted)):
                left = left[characters[self._offsets[left] + place] == wanted[place]]
            mask[left] = True
        return mask

    def equal(self, *names: str) -> Mask:
        """Which names are one of these."""
        return self.starting(*(f"{name}\0" for name in names))

    def holding(self, word: str) -> list[int]:
        """Indexes of the names that hold ``word``, in order."""
        wanted, table = word.encode("utf-8", "surrogateescape"), self._table
        order = np.argsort(self._offsets, kind="stable")
        offsets = self._offsets[order]
        found: set[int] = set()
        at = table.find(wanted)
        while at >= 0:
            # Names may share their ends: each that begins between the string's begin and the word holds it.
            begin, end = table.rfind(b"\0", 0, at) + 1, table.index(b"\0", at)
            last = table.rfind(wanted, at, end)
            first, after = np.searchsorted(offsets, (begin, last + 1))
            found.update(order[first:after].tolist())
            at = table.find(wanted, end)
        return sorted(found)
