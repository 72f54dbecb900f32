"""What hunts share: seeds, findings, and what a killed one leaves behind."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sqlite3
from pathlib import Path

import pytest

from klto.cli.hunt import _part_of_lto
from klto.errors import UsageError
from klto.search.hunt_store import FAILED, MINIMISED, PASSED, TOO_LARGE, HuntStore, Run


def _done(store: HuntStore, seed: int | None, outcome: str = PASSED, signature: str | None = None) -> None:
    assert seed is not None
    store.finish(Run(seed, outcome, 700, 1.0, signature, None))


def test_seeds_in_order_up_to_the_count(tmp_path: Path) -> None:
    store = HuntStore(tmp_path, "one")
    for expected in (5, 6, 7):
        seed = store.claim(5, 3)
        assert seed == expected
        _done(store, seed)
    assert store.claim(5, 3) is None
    assert store.claim(5, 4) == 8


def test_what_is_no_kernel_does_not_count(tmp_path: Path) -> None:
    store = HuntStore(tmp_path, "one")
    _done(store, store.claim(1, 1), TOO_LARGE)
    _done(store, store.claim(1, 1))
    assert store.claim(1, 1) is None


def test_campaigns_have_seeds_of_their_own(tmp_path: Path) -> None:
    assert HuntStore(tmp_path, "one").claim(1, 1) == 1
    assert HuntStore(tmp_path, "two").claim(1, 1) == 1


def test_a_released_seed_comes_again(tmp_path: Path) -> None:
    store = HuntStore(tmp_path, "one")
    assert store.claim(1, 9) == 1
    assert store.claim(1, 9) == 2
    store.release(1)
    assert store.claim(1, 9) == 1


def _claims(
    folder: Path, ready: multiprocessing.synchronize.Barrier, queue: multiprocessing.Queue[int]
) -> None:
    store = HuntStore(folder, "one")
    ready.wait()
    while (seed := store.claim(1, 40)) is not None:
        _done(store, seed)
        queue.put(seed)
    queue.put(0)


def test_several_hunts_share_without_doing_anything_twice(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    ready, queue = context.Barrier(3), context.Queue()
    hunts = [context.Process(target=_claims, args=(tmp_path, ready, queue)) for _ in range(3)]
    for hunt in hunts:
        hunt.start()
    seeds, ended = [], 0
    while ended < 3:
        seed = queue.get(timeout=60)
        ended += seed == 0
        seeds += [seed] if seed else []
    assert sorted(seeds) == list(range(1, 41))
    for hunt in hunts:
        hunt.join(20)


def _killed(folder: Path) -> None:
    store = HuntStore(folder, "one")
    store.claim(1, 9)
    store.meet("error: bad", "it is bad", "compile", 1)
    os.kill(os.getpid(), signal.SIGKILL)


def test_what_a_killed_hunt_had_begun_is_taken_over(tmp_path: Path) -> None:
    hunt = multiprocessing.get_context("fork").Process(target=_killed, args=(tmp_path,))
    hunt.start()
    hunt.join(20)
    store = HuntStore(tmp_path, "one")
    assert [finding.title for finding in store.take_over()] == ["it is bad"]
    assert store.claim(1, 9) == 1
    assert store.claim(1, 9) == 2


def test_one_finding_for_one_failure(tmp_path: Path) -> None:
    store = HuntStore(tmp_path, "one")
    finding, new = store.meet("error: bad", "it is bad", "compile", 1)
    assert new
    _done(store, store.claim(1, 9), FAILED, "error: bad")
    again, new = store.meet("error: bad", "it is bad", "compile", 2)
    assert (new, again.number) == (False, finding.number)
    _done(store, store.claim(1, 9), FAILED, "error: bad")
    store.settle("error: bad", MINIMISED, 3)
    (kept,) = store.findings()
    assert (kept.seen, kept.seed, kept.state, kept.options) == (2, 1, MINIMISED, 3)
    assert store.take_over() == []
    other, new = store.meet("error: worse", "it is worse", None, 3)
    assert (new, other.number) == (True, 2)


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "hunt.sqlite").write_text(
        "this is no database, but long enough to look like a file of one\n" * 30
    )
    with pytest.raises(UsageError, match="cannot use"):
        HuntStore(tmp_path, "one")


def test_the_file_is_readable_by_anybodys_sqlite(tmp_path: Path) -> None:
    store = HuntStore(tmp_path, "one")
    _done(store, store.claim(1, 1))
    with sqlite3.connect(store.path) as database:
        assert database.execute("select seed, outcome from runs").fetchall() == [(1, PASSED)]
        assert database.execute("pragma journal_mode").fetchone() == ("wal",)


@pytest.mark.parametrize(
    ("explanations", "told"),
    [([], ""), ([{"lto": False}], ", not LTO's fault"), ([{"lto": False}, {"lto": True}], ""), (None, "")],
)
def test_a_finding_that_is_not_of_lto_is_said_to_be_none(
    tmp_path: Path, explanations: list[dict[str, bool]] | None, told: str
) -> None:
    if explanations is not None:
        (tmp_path / "explanation.json").write_text(json.dumps({"explanations": explanations}))
    assert _part_of_lto(tmp_path) == told
