"""Bits of a bitcode file: fixed and variable width integers, one by one or many at once.

Format: "LLVM Bitcode File Format" in LLVM's documentation, "Primitives"; names as in
llvm/include/llvm/Bitstream/BitstreamReader.h. A kernel's bitcode has some hundred million fields, most of them
six-bit chunks; runs of these are taken apart by the interpreter's base64 decoder and regular expressions.

Bit positions are counted from the first byte of the bitcode, its magic.
"""

from __future__ import annotations

import binascii
import re
import sys
from array import array

from klto.objects.errors import MalformedObject

TYPE_CHECKING = False
if TYPE_CHECKING:
    from klto.objects.source import Buffer

#: Chunks that a 64-bit integer can have in VBR6.
_MAX_CHUNKS = 13
#: Chunks decoded at once: bounds what a long record takes while it is read.
_SLICE = 1 << 14

#: Base64's digits back to their values: binascii cuts bytes into 6-bit groups at the speed of C.
_FROM_BASE64 = bytes.maketrans(
    b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/", bytes(range(64))
)
#: A 6-bit chunk with its high bit set continues in the next one ("Variable Width Integer").
_IS_LAST = bytes([1] * 32 + [0] * 224)
_VBR6 = re.compile(rb"[\x20-\x3f]*[\x00-\x1f]")


class _Vbr6Values(dict[bytes, int]):
    """Chunks to value; the one- and two-chunk values, which are nearly all, are looked up."""

    def __missing__(self, chunks: bytes) -> int:
        return sum((chunk & 31) << (5 * i) for i, chunk in enumerate(chunks))


_VALUES = _Vbr6Values({bytes([low]): low for low in range(32)})
_VALUES.update({bytes([low | 32, high]): low | high << 5 for low in range(32) for high in range(32)})


def characters(values: array[int]) -> bytes:
    """Operands as characters, each cut to 8 bits, as convertToString of BitcodeReader.cpp does."""
    low = 0 if sys.byteorder == "little" else values.itemsize - 1
    return values.tobytes()[low :: values.itemsize]


class Bits:
    """Random access to the bits of one bitcode file.

    :param data: the bitcode, from its magic on (no wrapper).
    :param where: how errors name it.
    :param base: bytes before ``data`` in the file, added to the offsets of errors.
    """

    __slots__ = ("base", "data", "limit", "where")

    def __init__(self, data: Buffer, where: str, base: int = 0) -> None:
        self.data = data
        self.where = where
        self.base = base
        self.limit = len(data) * 8

    def malformed(self, bit: int, problem: str) -> MalformedObject:
        """The error for a problem at a bit position."""
        return MalformedObject(self.where, self.base + bit // 8, problem)

    def fixed(self, at: int, width: int) -> int:
        """``width`` bits (0 to 64) at bit ``at``, little endian."""
        if at + width > self.limit:
            raise self.malformed(at, f"expected {width} bits, found the end")
        first = at >> 3
        word = int.from_bytes(self.data[first : first + 9], "little")
        return word >> (at & 7) & ((1 << width) - 1)

    def vbr(self, at: int, width: int) -> tuple[int, int]:
        """A variable width integer of ``width``-bit chunks, and the position after it."""
        high = 1 << (width - 1)
        chunk = self.fixed(at, width)
        at += width
        if chunk < high:
            return chunk, at
        value, shift = chunk ^ high, width - 1
        while True:
            chunk = self.fixed(at, width)
            at += width
            value |= (chunk & (high - 1)) << shift
            if chunk < high:
                return value, at
            shift += width - 1
            if shift >= 64:
                raise self.malformed(at, "expected an integer of at most 64 bits, found a longer one")

    def _chunks(self, at: int, count: int) -> bytes:
        """``count`` 6-bit chunks from bit ``at``, one to a byte; fewer where the stream ends."""
        count = min(count, (self.limit - at) // 6)
        first, bits = at >> 3, 6 * count
        groups = (count + 3) // 4
        word = int.from_bytes(self.data[first : (at + bits + 7) >> 3], "little") >> (at & 7)
        # Base64 takes the highest bits first, so the chunks come out last to first.
        digits = binascii.b2a_base64((word & ((1 << bits) - 1)).to_bytes(3 * groups, "big"), newline=False)
        return digits.translate(_FROM_BASE64)[: -count - 1 : -1]

    def pass_vbr6(self, at: int, count: int) -> int:
        """The position after ``count`` VBR6 integers."""
        if count <= 2:
            for _ in range(count):
                _, at = self.vbr(at, 6)
            return at
        most = at + 6 * _MAX_CHUNKS * count
        while count:
            # Characters have two chunks, most other values one or two.
            chunks = self._chunks(at, min(2 * count, _SLICE))
            parts = chunks.translate(_IS_LAST).split(b"\1", count)
            count -= len(parts) - 1
            at += 6 * (len(chunks) - len(parts[-1]))
            # A value that is longer than these chunks: the next ones are looked at behind it.
            if count and parts[-1]:
                at += 6 * len(parts[-1])
            if count and (not chunks or at > most):
                raise self.malformed(at, f"expected {count} more operands of at most 64 bits, found the end")
        return at

    def vbr6_values(self, at: int, count: int) -> array[int]:
        """``count`` VBR6 integers from bit ``at``.

        :raises MalformedObject: when one has more than 32 bits.
        """
        values = array("I")
        while len(values) < count:
            chunks = self._chunks(at, min(2 * (count - len(values)) + _MAX_CHUNKS, _SLICE))
            tokens = _VBR6.findall(chunks)
            if not tokens:
                raise self.malformed(at, f"expected {count} operands of at most 64 bits, found the end")
            del tokens[count - len(values) :]
            at += 6 * sum(map(len, tokens))
            try:
                values.extend(map(_VALUES.__getitem__, tokens))
            except OverflowError:
                raise self.malformed(at, "expected values of at most 32 bits, found a larger one") from None
        return values
