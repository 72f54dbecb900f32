"""Carries out a search: candidates become outcomes, outcomes are judged by the oracle once each.

Different candidates may become the same thing (kconfig decides): they share one oracle call. Every verdict is on
disk before the next question is asked, and so is the best result so far.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from klto.errors import KltoError
from klto.search.minimise import Candidate, minimise
from klto.search.verdicts import Judged, Memory, Verdict


@dataclass(frozen=True)
class Outcome:
    """What a candidate became. ``key`` names it: equal keys are the same thing to every oracle."""

    key: str
    #: For people: ``37 of 300 options``.
    label: str


O_contra = TypeVar("O_contra", bound=Outcome, contravariant=True)
O_co = TypeVar("O_co", bound=Outcome, covariant=True)
O = TypeVar("O", bound=Outcome)  # noqa: E741


class Space(Protocol[O_co]):
    """The candidates of a search: subsets of ``count`` items."""

    @property
    def count(self) -> int:
        """How many items."""

    def become(self, chosen: frozenset[int]) -> O_co:
        """What a subset becomes."""

    def loses(self, chosen: frozenset[int], kept: frozenset[int], known: frozenset[int]) -> bool:
        """Whether an item of ``kept``, which is needed, has no effect in ``chosen`` though it has in ``known``.

        Such a candidate is no other than one without that item: the oracle is spared.
        """


class Oracle(Protocol[O_contra]):
    """Judges an outcome; :class:`Judged` without key."""

    def __call__(self, outcome: O_contra) -> tuple[Verdict, str]:
        """The verdict and what it rests on, in a line."""


class CallLimit(KltoError):
    """The search has used up the oracle calls that it was allowed."""

    exit_status = 1


@dataclass(frozen=True)
class Progress:
    """After each verdict. ``fresh``: an oracle call made it; otherwise it was remembered from an earlier run."""

    calls: int
    judged: Judged
    fresh: bool
    best: int | None


@dataclass
class Search(Generic[O]):
    """One search. ``wanted``: the verdict that makes a candidate have what is sought.

    :param save: called with every new best candidate, before the search goes on.
    :param limit: oracle calls allowed in this run.
    """

    space: Space[O]
    oracle: Oracle[O]
    memory: Memory
    save: Callable[[frozenset[int], O], None]
    watch: Callable[[Progress], None] = lambda progress: None
    #: Ends what oracles run, from another thread than theirs.
    stop: Callable[[], None] = lambda: None
    wanted: Verdict = Verdict.FAILS
    at_once: int = 1
    limit: int | None = None
    #: Oracle calls made in this run, and verdicts that were there from earlier ones.
    calls: int = 0
    remembered: int = 0
    #: Candidates that needed no oracle: see :meth:`Space.loses`.
    spared: int = 0
    best: frozenset[int] | None = None

    def __post_init__(self) -> None:
        self._met: set[str] = set()

    def judge(self, chosen: frozenset[int]) -> Judged:
        """The verdict on one candidate."""
        return self._judge_all([chosen])[0]

    def minimise(self) -> frozenset[int]:
        """A smallest subset that has what is sought, as the full set does (which is not asked here)."""
        questions = minimise(self.space.count, self.at_once)
        try:
            asked = next(questions)
            while True:
                asked = questions.send(self._has(asked))
        except StopIteration as stop:
            result: frozenset[int] = stop.value
            return result

    def _has(self, asked: Sequence[Candidate]) -> list[bool]:
        viable = [not self.space.loses(c.chosen, c.kept, c.known) for c in asked]
        self.spared += viable.count(False)
        judged = iter(self._judge_all([c.chosen for c, good in zip(asked, viable, strict=True) if good]))
        return [good and next(judged).verdict is self.wanted for good in viable]

    def _judge_all(self, candidates: Sequence[frozenset[int]]) -> list[Judged]:
        outcomes = [self.space.become(chosen) for chosen in candidates]
        pending = {o.key: (o, c) for o, c in zip(outcomes, candidates, strict=True) if not self._known(o, c)}
        if pending:
            self._ask(list(pending.values()))
        found = [self.memory.get(outcome.key) for outcome in outcomes]
        return [judged for judged in found if judged is not None]

    def _known(self, outcome: O, chosen: frozenset[int]) -> bool:
        judged = self.memory.get(outcome.key)
        if judged is None:
            return False
        self._keep(judged, outcome, chosen)
        if outcome.key not in self._met:
            self._met.add(outcome.key)
            self.remembered += 1
            self.watch(Progress(self.calls, judged, False, self._best_size()))
        return True

    def _ask(self, pending: list[tuple[O, frozenset[int]]]) -> None:
        if self.limit is not None and self.calls + len(pending) > self.limit:
            raise CallLimit(
                f"stopped after {self.calls} oracle calls, as asked", "run the same command again to go on"
            )
        if len(pending) == 1 or self.at_once == 1:
            for outcome, chosen in pending:
                self._learn(self._call(outcome), outcome, chosen)
            return
        with ThreadPoolExecutor(min(self.at_once, len(pending))) as pool:
            running = {pool.submit(self._call, outcome): (outcome, chosen) for outcome, chosen in pending}
            try:
                for future in as_completed(running):
                    self._learn(future.result(), *running[future])
            except BaseException:
                self.stop()
                pool.shutdown(wait=True, cancel_futures=True)
                raise

    def _learn(self, judged: Judged, outcome: O, chosen: frozenset[int]) -> None:
        self.memory.put(judged)
        self.calls += 1
        self._met.add(outcome.key)
        self._keep(judged, outcome, chosen)
        self.watch(Progress(self.calls, judged, True, self._best_size()))

    def _call(self, outcome: O) -> Judged:
        begun = time.monotonic()
        verdict, evidence = self.oracle(outcome)
        return Judged(outcome.key, verdict, round(time.monotonic() - begun, 2), evidence, outcome.label)

    def _keep(self, judged: Judged, outcome: O, chosen: frozenset[int]) -> None:
        if judged.verdict is self.wanted and (self.best is None or len(chosen) < len(self.best)):
            self.best = chosen
            self.save(chosen, outcome)

    def _best_size(self) -> int | None:
        return len(self.best) if self.best is not None else None
