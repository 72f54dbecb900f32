"""Finds many literals in many bytes at once, in a time that hardly depends on how many they are.

Of each literal seven bytes in a row are taken. Wherever they lie, one word of four bytes at a multiple of four
lies within them: so the words of the bytes searched are looked up in a table of all words that may be (four for
each literal), by numpy, and only where one is found the seven bytes, and then the whole literal, are compared.
One pass over 100 MB takes about 0.2 s (bench/explain.py); a search per literal takes 0.05 s each.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

#: The shortest literal that can be looked for.
SPAN = 7
_WORD = 4
#: Multiplicative hashing (Knuth, TAOCP 3, 6.4): 2^32 divided by the golden ratio; 20 bits are kept.
_FACTOR, _SHIFT = np.uint32(2654435761), np.uint32(12)
_SPAN_MASK = np.uint64((1 << 8 * SPAN) - 1)

#: Bytes that are frequent in logs: a span with few of them is found by chance less often.
_FREQUENT = frozenset(b"abcdefghilmnoprstuvx/._ ")


class Literals:
    """Literals to look for; they are known by their place in the sequence.

    :raises ValueError: when one is shorter than :data:`SPAN`.
    """

    def __init__(self, literals: Sequence[bytes]) -> None:
        self.literals = tuple(literals)
        self._spans: list[tuple[int, bytes]] = []
        for literal in self.literals:
            if len(literal) < SPAN:
                raise ValueError(f"{literal!r} is shorter than {SPAN} bytes")
            start = _rarest(literal)
            self._spans.append((start, literal[start : start + SPAN]))
        self._left = set(range(len(self.literals)))
        self._make_table()

    def _make_table(self) -> None:
        owners: dict[int, list[tuple[int, int]]] = {}
        for number in sorted(self._left):
            span = self._spans[number][1]
            for shift in range(SPAN - _WORD + 1):
                word = int.from_bytes(span[shift : shift + _WORD], "little")
                owners.setdefault(word, []).append((number, shift))
        self._words = np.array(sorted(owners), np.uint32)
        self._owners = [owners[word] for word in sorted(owners)]
        self._table = np.zeros(1 << 32 - int(_SHIFT), np.bool_)
        self._table[(self._words * _FACTOR) >> _SHIFT] = True

    def drop(self, numbers: Iterable[int]) -> None:
        """Look for these no more: they are so frequent that each place costs more than it tells."""
        self._left -= set(numbers)
        self._make_table()

    def find(self, data: bytes, begin: int, end: int) -> dict[int, NDArray[np.int64]]:
        """Where literals begin in ``data[begin:end]``, by their seven bytes only: a caller compares the rest. After
        the last of those must come eight more bytes of whatever value."""
        if not len(self._words) or end <= begin:
            return {}
        # All of the data: a literal's seven bytes may lie anywhere in it.
        words = np.frombuffer(data, np.dtype("<u4"), len(data) // _WORD)
        slots = words * _FACTOR
        slots >>= _SHIFT
        places = np.flatnonzero(self._table[slots])
        if not len(places):
            return {}
        found = words[places]
        owner = np.minimum(np.searchsorted(self._words, found), len(self._words) - 1)
        exact = self._words[owner] == found
        places, owner = places[exact] * _WORD, owner[exact]
        eights = np.ndarray((max(0, len(data) - 7),), np.dtype("<u8"), data, strides=(1,))
        starts: dict[int, list[NDArray[np.int64]]] = {}
        for which in np.flatnonzero(np.bincount(owner)).tolist():
            here = places[owner == which]
            for number, shift in self._owners[which]:
                offset, span = self._spans[number]
                at = here - shift
                at = at[(at - offset >= begin) & (at - offset < end) & (at < len(eights))]
                at = at[(eights[at] & _SPAN_MASK) == int.from_bytes(span, "little")] - offset
                if len(at):
                    starts.setdefault(number, []).append(at)
        # Of the four words that can lead to an occurrence one is at a multiple of four: none is found twice.
        return {number: np.sort(np.concatenate(parts)) for number, parts in starts.items()}


def _rarest(literal: bytes) -> int:
    """Where the seven bytes begin that are least likely to be met by chance."""
    spans = range(len(literal) - SPAN + 1)
    return min(spans, key=lambda start: sum(b in _FREQUENT for b in literal[start : start + SPAN]))
