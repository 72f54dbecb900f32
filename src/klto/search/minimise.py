"""The decisions of a minimising search: which subsets to try. Pure, no I/O: a generator that is sent verdicts.

The shortest failing prefix is found by bisection; its last item is one of those sought, and the search goes on
in front of it. That is the linear scheme of minimal-unsatisfiable-subset extraction (Marques-Silva, Janota and
Belov, "Minimal Sets over Monotone Predicates in Boolean Formulae", CAV 2013, section 3.2): about ``k * log2(n)``
tests for ``k`` items among ``n``, where ddmin (Zeller and Hildebrandt, 2002) needs up to ``k * k + 3 * n``.

Items should be in an order in which what they depend on comes first.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Candidate:
    """A subset to try.

    :ivar kept: the items in it that are known to be needed.
    :ivar known: a larger subset that has the property.
    """

    chosen: frozenset[int]
    kept: frozenset[int]
    known: frozenset[int]


#: Subsets to try, none depending on another's verdict, and for each whether it has the property sought.
Questions = Generator[list[Candidate], list[bool], frozenset[int]]


def minimise(count: int, at_once: int = 1) -> Questions:
    """A smallest subset of ``range(count)`` that has the property: taking any one item away loses it.

    The full set is taken to have it (the caller has tried). What is returned was itself tried and had it,
    whatever the property is like; "smallest" is in the sense of single items (1-minimal), and for a property
    that larger sets keep it is exact when there is one such subset.

    :param at_once: how many subsets to ask for together. More save time and cost a few more tests.
    """
    kept: list[int] = []
    length = count
    while True:
        length = yield from _shortest_prefix(kept, length, at_once)
        if length == 0:
            break
        length -= 1
        kept.append(length)
    return (yield from _without_needless(kept, at_once))


def _shortest_prefix(
    kept: Sequence[int], length: int, at_once: int
) -> Generator[list[Candidate], list[bool], int]:
    """The least ``n`` for which ``kept`` and the first ``n`` items have the property, as they do with
    ``length``; where larger sets may lose it, some ``n`` that has it while ``n - 1`` has not."""
    low, high = -1, length  # Not with low (-1: not even asked), but with high.
    while high - low > 1:
        points = {0} if low < 0 else set()
        room = max(1, at_once - len(points)) if low >= 0 else at_once - 1
        begin = max(low, 0)
        points |= {begin + (high - begin) * n // (room + 1) for n in range(1, room + 1)}
        asked = sorted(n for n in points if low < n < high)
        known = frozenset([*kept, *range(high)])
        has = yield [Candidate(frozenset([*kept, *range(n)]), frozenset(kept), known) for n in asked]
        for n, answer in zip(asked, has, strict=True):
            if answer:
                high = n
                break
            low = n
    return high


def _without_needless(kept: list[int], at_once: int) -> Questions:
    """Leave out each item in turn until none can be missed."""
    needed: set[int] = set()
    while True:
        open_items = [item for item in kept if item not in needed][: max(1, at_once)]
        if not open_items:
            return frozenset(kept)
        all_kept = frozenset(kept)
        has = yield [Candidate(all_kept - {item}, all_kept - {item}, all_kept) for item in open_items]
        for item, answer in zip(open_items, has, strict=True):
            if answer:
                # The others' verdicts were about a set that has this item: they are asked again.
                kept = [other for other in kept if other != item]
                needed.clear()
                break
            needed.add(item)
