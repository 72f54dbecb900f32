"""A quick look for a word of assembly in bitcode, for thousands of files."""

from __future__ import annotations

import numpy as np

from klto.objects.assembly_bits import CHARACTER_BITS, may_hold, written_bits
from klto.objects.source import Buffer

_WORD_BITS = 32
#: Looking at so many places one by one takes as long as looking at all of a module.
_MOST_PLACES = 200


class WordScan:
    """Looks for one word, as :func:`klto.objects.assembly_bits.may_hold` does, in a fifth of the time.

    Wherever the word's bits begin, one whole aligned 32-bit word lies within them: 32 values are looked for in every
    fourth byte. What is around them is looked at again.
    """

    def __init__(self, word: bytes) -> None:
        if len(word) * CHARACTER_BITS < 2 * _WORD_BITS - 1:
            raise ValueError(f"{word!r} is too short to hold an aligned word")
        self._word = word
        bits = written_bits(word)
        values = {bits >> shift & 0xFFFF_FFFF for shift in range(_WORD_BITS)}
        low, high = [value & 0xFFFF for value in values], [value >> 16 for value in values]
        if len(set(low)) != len(values):
            raise ValueError(f"{word!r} repeats itself")
        self._is_low, self._high = np.zeros(1 << 16, bool), np.zeros(1 << 16, np.uint16)
        self._is_low[low] = True
        self._high[low] = high

    def may_hold(self, data: Buffer) -> bool:
        """False rules the word out."""
        # "<u2": LLVM's bit stream is little endian, whatever the host is.
        halves = np.frombuffer(data, "<u2", (len(data) & ~3) // 2)
        places = np.flatnonzero(self._is_low.take(halves[0::2]))
        low, high = halves[0::2][places], halves[1::2][places]
        found = places[self._high.take(low) == high].tolist()
        if len(found) > _MOST_PLACES:
            return may_hold(data, self._word)
        around = len(self._word) * CHARACTER_BITS // 8 + 1
        return any(
            may_hold(data[max(0, 4 * place - around) : 4 * place + 4 + around], self._word) for place in found
        )
