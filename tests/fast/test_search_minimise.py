"""The decisions of a minimising search, and the engine that carries them out."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from klto.errors import UsageError
from klto.search.engine import CallLimit, Outcome, Search
from klto.search.minimise import minimise
from klto.search.verdicts import Judged, Memory, Verdict


def _carry_out(
    count: int, has: Callable[[frozenset[int]], bool], at_once: int = 1
) -> tuple[frozenset[int], int]:
    """The result and the number of questions."""
    questions, asked = minimise(count, at_once), 0
    try:
        candidates = next(questions)
        while True:
            assert len(candidates) <= max(2, at_once)
            asked += len(candidates)
            assert all(c.kept <= c.chosen < c.known and has(c.known) for c in candidates)
            candidates = questions.send([has(c.chosen) for c in candidates])
    except StopIteration as stop:
        return stop.value, asked


@given(st.sets(st.integers(0, 299), max_size=6), st.integers(1, 4))
def test_finds_exactly_what_matters(planted: set[int], at_once: int) -> None:
    found, asked = _carry_out(300, lambda chosen: planted <= chosen, at_once)
    assert found == planted
    if at_once == 1:
        # Bisection for each item, one question whether it is enough, one whether it is needed.
        assert asked <= len(planted) * (9 + 2) + 1


def test_three_of_three_hundred_in_forty_questions() -> None:
    worst = max(_carry_out(300, {first, 150, 299}.__le__)[1] for first in range(0, 149, 7))
    assert worst <= 40


@given(st.lists(st.sets(st.integers(0, 11), min_size=1, max_size=4), min_size=1, max_size=4))
def test_of_several_causes_one_is_found(causes: list[set[int]]) -> None:
    found, _ = _carry_out(12, lambda chosen: any(cause <= chosen for cause in causes))
    assert set(found) in causes
    assert not any(cause < found for cause in causes)


@given(st.sets(st.frozensets(st.integers(0, 7)), max_size=60))
def test_whatever_the_property_the_result_has_it_and_no_item_can_be_missed(
    failing: set[frozenset[int]],
) -> None:
    failing = failing | {frozenset(range(8))}
    found, _ = _carry_out(8, failing.__contains__)
    assert found in failing
    assert not any(found - {item} in failing for item in found)


class _Numbers:
    """Subsets of numbers; ``same`` are as if they were not there."""

    def __init__(self, count: int, same: frozenset[int] = frozenset()) -> None:
        self.count = count
        self._same = same

    def become(self, chosen: frozenset[int]) -> Outcome:
        left = sorted(chosen - self._same)
        return Outcome(",".join(map(str, left)), f"{len(chosen)} numbers")

    def loses(self, chosen: frozenset[int], kept: frozenset[int], known: frozenset[int]) -> bool:
        return False


class _Planted:
    """Fails when all of ``numbers`` are there; remembers what it was asked."""

    def __init__(self, *numbers: int) -> None:
        self.numbers = {str(number) for number in numbers}
        self.asked: list[str] = []

    def __call__(self, outcome: Outcome) -> tuple[Verdict, str]:
        self.asked.append(outcome.key)
        fails = self.numbers <= set(outcome.key.split(","))
        return (Verdict.FAILS if fails else Verdict.PASSES), "tried"


def _search(space: _Numbers, oracle: _Planted, memory: Memory, **more: object) -> Search[Outcome]:
    return Search(space, oracle, memory, lambda chosen, outcome: None, **more)  # type: ignore[arg-type]


def test_identical_outcomes_share_one_call(tmp_path: Path) -> None:
    oracle = _Planted(3)
    with Memory(tmp_path) as memory:
        search = _search(_Numbers(40, frozenset(range(10, 40))), oracle, memory)
        assert search.minimise() == {3}
    assert len(oracle.asked) == len(set(oracle.asked)) == search.calls


def test_a_second_run_asks_nothing(tmp_path: Path) -> None:
    for expected in (True, False):
        oracle = _Planted(5, 77, 150)
        with Memory(tmp_path) as memory:
            search = _search(_Numbers(200), oracle, memory)
            assert search.minimise() == {5, 77, 150}
        assert bool(oracle.asked) is expected
    assert search.remembered == len(memory)


def test_the_best_so_far_is_saved_as_it_comes(tmp_path: Path) -> None:
    saved: list[int] = []
    with Memory(tmp_path) as memory:
        search = _search(_Numbers(100), _Planted(10, 20), memory)
        search.save = lambda chosen, outcome: saved.append(len(chosen))
        search.minimise()
    assert saved == sorted(saved, reverse=True)
    assert saved[-1] == 2


def test_a_limit_stops_and_the_next_run_goes_on(tmp_path: Path) -> None:
    asked: list[str] = []
    for _ in range(30):
        oracle = _Planted(7, 9)
        with Memory(tmp_path) as memory:
            search = _search(_Numbers(64), oracle, memory, limit=3)
            try:
                found = search.minimise()
            except CallLimit:
                continue
            finally:
                asked += oracle.asked
        break
    assert found == {7, 9}
    assert len(asked) == len(set(asked))


def test_calls_at_once(tmp_path: Path) -> None:
    together = threading.Barrier(2, timeout=20)

    class Both(_Planted):
        def __call__(self, outcome: Outcome) -> tuple[Verdict, str]:
            if outcome.key in ("21", "21,22") or len(self.asked) < 2:
                together.wait()  # Only passes when two calls run.
            return super().__call__(outcome)

    with Memory(tmp_path) as memory:
        search = _search(_Numbers(300), Both(20), memory, at_once=2)
        search._judge_all([frozenset([1]), frozenset([20])])
    assert search.calls == 2


def test_a_failing_oracle_ends_the_search_and_keeps_what_is_known(tmp_path: Path) -> None:
    class Broken(_Planted):
        def __call__(self, outcome: Outcome) -> tuple[Verdict, str]:
            if len(self.asked) == 4:
                raise UsageError("no such program")
            return super().__call__(outcome)

    with Memory(tmp_path) as memory, pytest.raises(UsageError):
        _search(_Numbers(100), Broken(50), memory).minimise()
    with Memory(tmp_path) as memory:
        assert len(memory) == 4


_KILLED = """
import os, signal, sys, time
from pathlib import Path
sys.path[:0] = [{tests!r}]
from test_search_minimise import _Numbers, _Planted, _search
from klto.search.verdicts import Memory

class Slow(_Planted):
    def __call__(self, outcome):
        with open({log!r}, "a") as stream:
            stream.write(outcome.key + "\\n")
        if len(self.asked) == {calls}:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(outcome)

with Memory(Path({state!r})) as memory:
    print(sorted(_search(_Numbers(300), Slow(30, 31, 290), memory).minimise()))
"""


def test_killed_by_sigkill_it_repeats_no_finished_call(tmp_path: Path) -> None:
    log = tmp_path / "asked"
    said = ""
    for calls in (9, 7, 1000):
        source = _KILLED.format(
            tests=str(Path(__file__).parent), log=str(log), state=str(tmp_path / "state"), calls=calls
        )
        done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, cwd=Path.cwd())
        assert done.returncode in (0, -signal.SIGKILL), done.stderr
        said = done.stdout
    assert said == "[30, 31, 290]\n"
    asked = log.read_text().split("\n")[:-1]
    # The two calls that were under way when it was killed were never answered.
    assert len(asked) == len(set(asked)) + 2


def test_a_torn_line_is_one_verdict_less(tmp_path: Path) -> None:
    with Memory(tmp_path) as memory:
        memory.put(Judged("one", Verdict.FAILS, 1.0))
        memory.put(Judged("two", Verdict.PASSES, 1.0))
    file = tmp_path / "verdicts.jsonl"
    file.write_bytes(file.read_bytes()[:-9])
    with Memory(tmp_path) as memory:
        assert memory.get("two") is None
        memory.put(Judged("three", Verdict.PASSES, 1.0))
    with Memory(tmp_path) as memory:
        assert [memory.get(key) is not None for key in ("one", "two", "three")] == [True, False, True]


def test_one_search_at_a_time(tmp_path: Path) -> None:
    with Memory(tmp_path), pytest.raises(UsageError, match="another klto"), Memory(tmp_path):
        pass


def test_stopping_ends_the_oracles_that_run(tmp_path: Path) -> None:
    from klto.search.runner import Runner

    runner = Runner()
    pid = tmp_path / "pid"
    ended: list[type[BaseException]] = []

    def call() -> None:
        try:
            runner.run(["sh", "-c", f"echo $$ > {pid}.part; mv {pid}.part {pid}; sleep 60"], tmp_path / "log")
        except KeyboardInterrupt as error:
            ended.append(type(error))

    thread = threading.Thread(target=call)
    thread.start()
    while not pid.exists():
        time.sleep(0.01)
    runner.stop()
    thread.join(20)
    assert ended == [KeyboardInterrupt]
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


def test_a_folder_has_verdicts_on_one_question(tmp_path: Path) -> None:
    """Nothing is refused before there is a verdict."""
    verdict = Judged("key", Verdict.FAILS, 0.0)
    for question in ("first", "second"):
        with Memory(tmp_path / "chosen", question):
            pass
    with Memory(tmp_path / "chosen", "second") as memory:
        memory.put(verdict)
    for other in ("first", "third"):
        with (
            pytest.raises(UsageError, match="verdicts on another question"),
            Memory(tmp_path / "chosen", other),
        ):
            pass
    with Memory(tmp_path / "chosen", "second") as memory:
        assert memory.get("key") == verdict
    # As klto made them before it wrote the question down: by name alone.
    with Memory(tmp_path / "named") as memory:
        memory.put(verdict)
    with Memory(tmp_path / "named", "named") as memory:
        assert len(memory) == 1
    (tmp_path / "named/question").write_bytes(b"\xff\x00")
    with pytest.raises(UsageError, match="verdicts on another question"), Memory(tmp_path / "named", "named"):
        pass
