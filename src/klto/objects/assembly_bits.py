"""Words of assembly as they stand in bitcode, looked for without reading it.

Assembly is written without abbreviation (llvm/lib/Bitcode/Writer/BitcodeWriter.cpp, writeStringRecord, for
MODULE_CODE_ASM and CST_CODE_INLINEASM): each character is two VBR6 chunks, five low bits and "more", then the high
bits, so 12 bits, and the first one begins at any bit. Standard library only: the link's own process uses it.
"""

from __future__ import annotations

from functools import cache

#: Bits of a written character, and the one among them in which a letter's cases differ: the lowest of its high bits.
CHARACTER_BITS, _CASE_BIT = 12, 6


def written_bits(word: bytes) -> int:
    """The bits of ``word`` as bitcode holds them, the first one lowest; 12 a character."""
    bits = 0
    for place, character in enumerate(word):
        bits |= (character & 31 | 32 | character >> 5 << 6) << (CHARACTER_BITS * place)
    return bits


def may_hold(data: bytes | memoryview, word: bytes) -> bool:
    """Whether a bitcode file's bytes hold ``word`` as assembly text may stand in them; False rules it out."""
    raw = bytes(data)
    return any(needle in raw for needle in _needles(word))


def may_hold_in_any_case(data: bytes, words: tuple[bytes, ...]) -> bool:
    """Whether a bitcode file's bytes hold one of ``words``, in any case; False rules them all out.

    Where a character begins within a byte says which bit of a byte can be one that differs between cases: two of the
    eight, as 12 bits further on it is another one. Both are made 0 in all bytes, of words and data alike, once for
    each two beginnings that have them in common.
    """
    for cleared, needles in _any_case_needles(words):
        image = data.translate(cleared)
        for needle in needles:
            if needle in image:
                return True
    return False


@cache
def _needles(word: bytes) -> tuple[bytes, ...]:
    return tuple(_whole_bytes(word, begin) for begin in range(8))


@cache
def _any_case_needles(words: tuple[bytes, ...]) -> tuple[tuple[bytes, tuple[bytes, ...]], ...]:
    """(a table for bytes.translate, what to look for in its results), four of them."""
    apart = CHARACTER_BITS % 8
    found = []
    for first in range(apart):
        begins = range(first, 8, apart)
        cases = sum(1 << (begin + _CASE_BIT) % 8 for begin in begins)
        table = bytes(value & ~cases for value in range(256))
        needles = (_whole_bytes(word, begin).translate(table) for begin in begins for word in words)
        found.append((table, tuple(needles)))
    return tuple(found)


def _whole_bytes(word: bytes, begin: int) -> bytes:
    """The bytes that a written word fills when it begins at a byte's bit ``begin``."""
    skipped = -begin % 8
    whole = (CHARACTER_BITS * len(word) - skipped) // 8
    return (written_bits(word) >> skipped & (1 << 8 * whole) - 1).to_bytes(whole, "little")
