"""Names of an ELF file's sections or symbols, searched where they stand: of tens of thousands a few are wanted."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import numpy.typing as npt

from klto.objects.errors import MalformedObject
from klto.objects.source import Buffer

Mask = npt.NDArray[np.bool_]
_HEAD = 8
#: Most names are shorter.
_MOST_LETTERS = 64
#: A few symbols have the name of another; a small table must not stand for large names.
_MAX_SHARING = 8


class NameColumn:
    """A column of names.

    :param table: the string table's bytes, not copied.
    :param offsets: of each name in it, all of them before its last NUL.
    :param where: how errors name the file.
    """

    def __init__(self, table: Buffer, offsets: npt.NDArray[np.uint32], where: str = "") -> None:
        self._where = where
        self._table = memoryview(table)
        self._characters = np.frombuffer(table, np.uint8)
        self._offsets = offsets.astype(np.int64)

    def __len__(self) -> int:
        return len(self._offsets)

    def __getitem__(self, index: int) -> str:
        begin = int(self._offsets[index])
        step = _MOST_LETTERS
        while (end := bytes(self._table[begin : begin + step]).find(b"\0")) < 0:
            step *= 16
        return bytes(self._table[begin : begin + end]).decode("utf-8", "surrogateescape")

    def at(self, indexes: npt.NDArray[np.int64]) -> list[str]:
        """Many of them: the table is looked at as a whole.

        :raises MalformedObject: when they share more bytes than any table has.
        """
        table = bytes(self._table)
        begins = self._offsets[indexes].tolist()
        ends = [table.index(b"\0", at) for at in begins]
        if sum(ends) - sum(begins) > _MAX_SHARING * len(table):
            raise MalformedObject(self._where, None, "expected names of their own, found shared ones")
        pairs = zip(begins, ends, strict=True)
        return [table[begin:end].decode("utf-8", "surrogateescape") for begin, end in pairs]

    @cached_property
    def _heads(self) -> npt.NDArray[np.uint64]:
        """The first 8 bytes of each name, and of what follows it, the first one lowest."""
        characters = self._characters
        if len(characters) < _HEAD:
            characters = np.concatenate((characters, np.zeros(_HEAD, np.uint8)))
        windows: npt.NDArray[np.uint64] = np.ndarray(
            len(characters) - _HEAD + 1, "<u8", characters, strides=(1,)
        )
        at = np.minimum(self._offsets, len(windows) - 1)
        heads: npt.NDArray[np.uint64] = windows[at] >> (8 * (self._offsets - at)).astype(np.uint64)
        return heads

    def starting(self, *prefixes: str) -> Mask:
        """Which names begin with one of these."""
        mask = np.zeros(len(self), bool)
        characters = self._characters
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
        wanted, table = word.encode("utf-8", "surrogateescape"), bytes(self._table)
        order = np.argsort(self._offsets, kind="stable")
        offsets = self._offsets[order]
        spans: list[tuple[int, int]] = []
        at = table.find(wanted)
        while at >= 0:
            # Names may share their ends: each that begins between the string's begin and the word holds it.
            begin, end = table.rfind(b"\0", 0, at) + 1, table.find(b"\0", at)
            if end < 0:
                break  # Behind the last name.
            spans.append((begin, table.rfind(wanted, at, end) + 1))
            at = table.find(wanted, end)
        bounds = np.searchsorted(offsets, np.array(spans, np.int64).reshape(-1, 2)).tolist()
        found: set[int] = set()
        for first, after in bounds:
            found.update(order[first:after].tolist())
        return sorted(found)
