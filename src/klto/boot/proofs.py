"""The proofs, the protocol between klto and its init, and the verdict. Pure: no clock, no process, no file.

One boot can run several proofs. The init (init.c, which documents the records) runs them in the order of the
plan and reports each one's end over the channel. What the kernel's console says is charged to the proof that
ran at that time.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from klto.boot.console import Report
from klto.boot.initramfs import Entry

#: Records that are kept of one boot; init sends some ten for most proofs, two for each module and each initcall.
MAX_RECORDS = 20_000


class ProofStatus(StrEnum):
    """What became of a proof."""

    PASSED = "passed"
    FAILED = "failed"
    NOT_APPLICABLE = "not-applicable"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class ProofResult:
    """The verdict on one proof: ``seconds`` since the guest's start or the end of the proof before."""

    name: str
    status: ProofStatus
    seconds: float
    evidence: tuple[str, ...]


#: What init has found out, by name, as in {"release": "6.12.1"}.
Facts = Mapping[str, str]


@dataclass(frozen=True)
class Heard:
    """What a boot gave to judge one proof by.

    ``console``: all that the kernel printed in this boot. ``reports``: what it complained about while the
    proof ran. ``complete``: whether init lived to say how the proof ended.
    """

    facts: Facts
    console: str
    reports: Sequence[Report] = ()
    complete: bool = True


@dataclass(frozen=True)
class Finding:
    """What a proof's check says: the problem in one line, None when there is none, and evidence."""

    problem: str | None
    evidence: tuple[str, ...] = ()


class Place(StrEnum):
    """The boots among which the proofs are divided. ``MAIN`` takes all that need no kernel of their own."""

    MAIN = "main"
    VHE = "vhe"
    NVHE = "nvhe"
    CFI = "cfi"


@dataclass(frozen=True)
class Step:
    """What a proof does in one boot.

    ``plan``: lines for init behind ``proof NAME``. ``files``: for the initramfs. ``append``: for the kernel's
    command line. ``successor``: the plan of the kernel that kexec starts, None when there is none. ``dies``:
    the kernel is meant to complain, and may end of it; the check then looks at the reports itself.
    """

    name: str
    check: Callable[[Heard], Finding]
    place: Place = Place.MAIN
    plan: tuple[str, ...] = ()
    files: tuple[Entry, ...] = ()
    append: str = ""
    successor: tuple[str, ...] | None = None
    dies: bool = False


class NotApplicable(Exception):
    """A proof cannot be had from this kernel; the message says what it needs."""


@dataclass(frozen=True)
class Record:
    """One record of init's, received ``at`` seconds after the guest's start."""

    verb: str
    proof: str
    text: str
    at: float


class Transcript:
    """The records of one boot. A line counts only with this boot's nonce at both ends of the record."""

    def __init__(self, nonce: str) -> None:
        self._record = re.compile(rf"klto:{re.escape(nonce)} (\d{{1,9}}) ([a-z]+) (.*?) ?:{re.escape(nonce)}")
        self._records: dict[int, Record] = {}
        #: Whether init has said that nothing follows.
        self.done = False

    def take(self, line: str, at: float) -> None:
        """Look at one line of any channel; the same record may come by more than one."""
        for number, verb, rest in self._record.findall(line):
            name, _, text = rest.partition(" ")
            self.done = self.done or verb == "done"
            if len(self._records) < MAX_RECORDS:
                self._records.setdefault(int(number), Record(verb, name, text, at))

    @property
    def channel(self) -> str:
        """The channel that init has chosen; empty when nothing was received."""
        return next((r.proof for r in self._records.values() if r.verb == "hello"), "")

    def begun(self, proof: str) -> bool:
        """Whether init has begun a proof."""
        return any(r.verb == "begin" and r.proof == proof for r in self._records.values())

    def end(self, proof: str) -> Record | None:
        """The record that ended a proof; for kexec it comes from the second kernel."""
        names = (proof, f"{proof}-end")
        return next((r for r in self._records.values() if r.verb == "end" and r.proof in names), None)

    def facts(self, proof: str) -> dict[str, str]:
        """What init has found out in a proof."""
        names = (proof, f"{proof}-end")
        found = [
            r.text.partition(" ") for r in self._records.values() if r.verb == "fact" and r.proof in names
        ]
        return {key: value for key, _, value in found}


@dataclass(frozen=True)
class Course:
    """How a boot went, for :func:`judge`.

    ``ending``: one line that says why the guest ended. ``lost``: whether it was the harness that failed, so
    that what did not finish is unknown. ``notes``: further evidence for what did not finish. ``silent``: the
    console printed nothing, as that of a kernel without a driver for it. ``console``: all that it printed.
    """

    transcript: Transcript
    reports: Sequence[Report]
    ending: str
    lost: bool
    seconds: float
    notes: tuple[str, ...] = ()
    silent: bool = False
    console: str = ""


def judge(steps: Sequence[Step], course: Course) -> tuple[ProofResult, ...]:
    """The verdict on each step of a boot."""
    results: list[ProofResult] = []
    begun = 0.0
    for position, step in enumerate(steps):
        end = course.transcript.end(step.name)
        last = end is None or position == len(steps) - 1
        until = course.seconds if last or end is None else end.at
        reports = [r for r in course.reports if r.at <= until and (r.at > begun or position == 0)]
        seconds = (course.seconds if end is None else end.at) - begun
        if end is None:
            died = step.dies and course.transcript.begun(step.name) and not course.lost
            judged = _died if died else _unfinished
            results.append(judged(step, course, reports, seconds))
            results += [_not_run(other, step) for other in steps[position + 1 :]]
            break
        results.append(_finished(step, course, end, reports, seconds))
        begun = end.at
    return tuple(results)


def _finished(
    step: Step, course: Course, end: Record, reports: Sequence[Report], seconds: float
) -> ProofResult:
    said, _, why = end.text.partition(" ")
    heard = Heard(course.transcript.facts(step.name), course.console, reports)
    if reports and not step.dies:
        return ProofResult(step.name, ProofStatus.FAILED, seconds, _report_lines(reports))
    if said == ProofStatus.NOT_APPLICABLE:
        return ProofResult(step.name, ProofStatus.NOT_APPLICABLE, seconds, (why,))
    if said != ProofStatus.PASSED:
        shown = tuple(f"{key}: {value}" for key, value in heard.facts.items() if not key.startswith("@"))
        return ProofResult(
            step.name, ProofStatus.FAILED, seconds, (why or f"init said {said!r}", *shown[:10])
        )
    finding = step.check(heard)
    if finding.problem is not None:
        return ProofResult(step.name, ProofStatus.FAILED, seconds, (finding.problem, *finding.evidence))
    channel = f"verdict: over {course.transcript.channel}"
    unseen = ("console: silent, so a WARNING would not have been seen",) if course.silent else ()
    return ProofResult(step.name, ProofStatus.PASSED, seconds, (*finding.evidence, channel, *unseen))


def _died(step: Step, course: Course, reports: Sequence[Report], seconds: float) -> ProofResult:
    """The kernel has ended in a step that is meant to make it complain."""
    heard = Heard(course.transcript.facts(step.name), course.console, reports, complete=False)
    finding = step.check(heard)
    if finding.problem is None:
        return ProofResult(step.name, ProofStatus.PASSED, seconds, finding.evidence)
    evidence = (finding.problem, *finding.evidence, course.ending, *course.notes)
    return ProofResult(step.name, ProofStatus.FAILED, seconds, evidence)


def _unfinished(step: Step, course: Course, reports: Sequence[Report], seconds: float) -> ProofResult:
    # A report is the kernel's own word, whatever became of QEMU afterwards.
    status = ProofStatus.UNKNOWN if course.lost and not reports else ProofStatus.FAILED
    evidence = (*_report_lines(reports), course.ending, *course.notes)
    return ProofResult(step.name, status, seconds, evidence)


def _not_run(step: Step, culprit: Step) -> ProofResult:
    return ProofResult(step.name, ProofStatus.UNKNOWN, 0.0, (f"not run: {culprit.name} did not finish",))


def _report_lines(reports: Sequence[Report]) -> tuple[str, ...]:
    return tuple(f"{report.kind}: {report.line}" for report in reports[:10])
