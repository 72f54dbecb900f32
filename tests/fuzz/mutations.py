"""Damage to a file."""

from __future__ import annotations

import random
import re
import struct

#: Numbers at which readers tend to go wrong.
_SPECIAL = [
    0,
    1,
    2,
    3,
    4,
    7,
    8,
    0xFF,
    0xFFF1,
    0xFFFF,
    0x10000,
    0x7FFFFFFF,
    0xFFFFFFFF,
    1 << 63,
    (1 << 64) - 1,
]
#: A field of an archive's header: digits and their padding.
_DECIMAL = re.compile(rb"[0-9]+ *")


def mutated(data: bytes, others: list[bytes], rng: random.Random) -> bytes:
    """``data`` with some damage: bits, numbers, pieces moved, doubled, cut out or taken from elsewhere."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
        if not out:
            return bytes(out)
        at = _place(len(out), rng)
        match rng.randrange(11):
            case 0:
                out[at] ^= 1 << rng.randrange(8)
            case 1:
                out[at] = rng.randrange(256)
            case 2 | 3:
                _set_number(out, at & ~3, rng)
            case 4:
                del out[at:]
            case 5:
                del out[at : at + rng.choice((1, 4, 8, 64))]
            case 6:
                piece = bytes(out[at : at + rng.choice((1, 4, 64, 500))])
                out[at:at] = piece * rng.choice((1, 1, 2, 20))
            case 7:
                other = rng.choice(others)
                begin = rng.randrange(len(other))
                piece = other[begin : begin + rng.choice((4, 16, 64, 300))]
                out[at : at + len(piece)] = piece
            case 8:
                _shift_bits(out, at, rng)
            case 9:
                _set_decimal(out, at, rng)
            case 10:
                _repeat(out, at & ~7, rng)
    return bytes(out)


def _place(size: int, rng: random.Random) -> int:
    """Anywhere, but headers are at the beginning, and ELF's section headers and bitcode's symbol table at the
    end."""
    match rng.randrange(5):
        case 0:
            return rng.randrange(min(size, 64))
        case 1:
            return size - 1 - rng.randrange(size // 4 + 1)
    return rng.randrange(size)


def _set_number(out: bytearray, at: int, rng: random.Random) -> None:
    kind = rng.choice(("<I", "<Q", "<H", ">I"))
    if at + struct.calcsize(kind) <= len(out):
        value = rng.choice((*_SPECIAL, len(out), at, rng.getrandbits(32)))
        struct.pack_into(kind, out, at, value & ((1 << 8 * struct.calcsize(kind)) - 1))


def _shift_bits(out: bytearray, at: int, rng: random.Random) -> None:
    """Bits put in or taken out, and those behind them moved up to some word's end: bitcode's fields have no
    bytes."""
    end = min(len(out), (at & ~3) + rng.choice((4, 8, 64, 1024)))
    size, bits, count = end - at, 8 * (end - at), rng.randrange(1, 33)
    word = int.from_bytes(out[at:end], "little")
    word = word << count | rng.getrandbits(count) if rng.random() < 0.5 else word >> count
    out[at:end] = (word & (1 << bits) - 1).to_bytes(size, "little")


def _set_decimal(out: bytearray, at: int, rng: random.Random) -> None:
    """Another number in the next decimal field, as wide as it was."""
    field = _DECIMAL.search(out, at)
    if field is not None:
        width = len(field[0])
        number = b"%d" % rng.choice((*_SPECIAL, len(out), at, rng.randrange(1000)))
        out[field.start() : field.end()] = number[:width].ljust(width)


def _repeat(out: bytearray, at: int, rng: random.Random) -> None:
    """An entry of a table over those behind it."""
    size = rng.choice((4, 8, 16, 24, 40, 64))
    piece = bytes(out[at : at + size])
    for place in range(at + size, min(len(out) - size, at + size * rng.choice((2, 8, 100))), size):
        out[place : place + size] = piece
