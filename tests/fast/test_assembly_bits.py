"""Words of assembly are found in bitcode's bytes wherever they begin, in any case, and random bytes hold none."""

from __future__ import annotations

import random

import pytest

from klto.objects.assembly_bits import may_hold_in_any_case, written_bits

WORDS = (b"incbin", b"include", b".macro", b".irp")


@pytest.mark.parametrize("word", WORDS)
def test_word_in_any_case_at_any_bit(word: bytes) -> None:
    source = random.Random(word)
    for at in range(48):
        cases = [bytes(source.choice((c, c ^ 32)) if chr(c).isalpha() else c for c in word) for _ in range(8)]
        for spelled in (word, word.upper(), *cases):
            length = 12 * len(word)
            noise = source.getrandbits(1600) & ~((1 << length) - 1 << at) | written_bits(spelled) << at
            assert may_hold_in_any_case(noise.to_bytes(200, "little"), WORDS), (at, spelled)


def test_random_bytes_are_ruled_out() -> None:
    assert not may_hold_in_any_case(random.Random(1).randbytes(1 << 20), WORDS[:3])
    for near in (b"inccin", b"inc bin", b".makro", b".i.rp"):
        assert not may_hold_in_any_case((written_bits(near) << 3).to_bytes(20, "little"), WORDS)
