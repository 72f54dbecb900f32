"""The fuzzer finds bugs that are planted in the readers, and none where there are none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from klto.objects import archive
from klto.objects.bits import Bits
from klto.objects.errors import MalformedObject
from klto.objects.kind import kind_of_bytes
from tests.conftest import missing
from tests.fuzz import objects
from tests.fuzz.corpus import seeds

#: Archives are read ten times as fast as bitcode.
INPUTS = {"archive": 1000, "bitcode": 100}


@pytest.fixture(scope="module")
def corpus() -> list[bytes]:
    if not Path("/usr/lib/llvm-19/bin/clang").exists():
        missing("clang-19")
    return seeds(llvms=(19,))


def found(corpus: list[bytes], kind: str) -> list[str]:
    """What the fuzzer says of inputs made from objects of a kind."""
    chosen = [data for data in corpus if kind_of_bytes(data) == kind]
    return [failure.problem for failure in objects.fuzz(chosen, range(INPUTS[kind]), 1)]


def test_nothing_is_found_in_sound_readers(corpus: list[bytes]) -> None:
    assert found(corpus, "archive") == found(corpus, "bitcode") == []


def _unchecked_number(where: str, offset: int, field: bytes, what: str) -> int:
    return int(field)


def _endless(where: str, offset: int, field: bytes, what: str) -> int:
    while not field.strip().isdigit():
        pass
    return int(field)


def _greedy(self: Bits, bit: int, problem: str) -> MalformedObject:
    """An error that keeps a megabyte of the input for its message."""
    return MalformedObject(self.where, bit, problem + "." * (1 << 20))


@pytest.mark.parametrize(
    ("place", "name", "bug", "wanted"),
    [
        (archive, "_decimal", _unchecked_number, "ValueError: "),
        (archive, "_decimal", _endless, "did not end within 0.1 s"),
        (Bits, "malformed", _greedy, "took "),
    ],
)
def test_planted_bugs_are_found(
    place: object,
    name: str,
    bug: Callable[..., object],
    wanted: str,
    corpus: list[bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(place, name, bug)
    monkeypatch.setattr(objects, "GIVE_UP_SECONDS", 0.1)
    problems = found(corpus, "archive" if place is archive else "bitcode")
    assert problems
    assert all(problem.startswith(wanted) for problem in problems), problems
