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
from klto.boot.images import Arch, KernelImage
from klto.errors import UsageError

#: Records that are kept of one boot; init sends some ten for each proof.
MAX_RECORDS = 10_000


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
class Proof:
    """One proof that init can run.

    ``needs``: options, without ``CONFIG_``, that the kernel must have built in. ``check``: looks at the facts
    that init reported and says what is wrong with them, or None.
    """

    name: str
    summary: str
    needs: tuple[str, ...]
    check: Callable[[Facts, KernelImage], str | None]


#: uname -m of the architectures (UTS_MACHINE, arch/*/Makefile).
_UTS_MACHINE = {Arch.X86_64: "x86_64", Arch.ARM64: "aarch64"}


def _check_init(facts: Facts, image: KernelImage) -> str | None:
    """The kernel that runs must be the one that was given."""
    machine, release = facts.get("machine", ""), facts.get("release", "")
    if machine != _UTS_MACHINE[image.arch]:
        return f"the guest says it is {machine!r}, not {_UTS_MACHINE[image.arch]!r}"
    if image.release is not None and release != image.release:
        return f"the guest runs Linux {release!r}, the image is {image.release!r}"
    return None


PROOFS: dict[str, Proof] = {
    "init": Proof(
        "init",
        "the kernel starts its first process, and reports no panic, oops, BUG, WARNING or CFI failure",
        ("BLK_DEV_INITRD", "BINFMT_ELF"),
        _check_init,
    ),
}


def select_proofs(names: Sequence[str]) -> tuple[Proof, ...]:
    """The named proofs, each once, in the given order; all of them when none is named.

    :raises UsageError: a name that does not exist.
    """
    for name in names:
        if name not in PROOFS:
            raise UsageError(f"no proof is called {name!r}", hint=f"proofs: {', '.join(PROOFS)}")
    return tuple(PROOFS[name] for name in dict.fromkeys(names or PROOFS))


#: Options that give init a way to klto; one of them will do (see ``channels`` in init.c).
_CHANNELS = {
    Arch.X86_64: ("VIRTIO_CONSOLE", "SERIAL_8250"),
    Arch.ARM64: ("VIRTIO_CONSOLE", "SERIAL_AMBA_PL011"),
}


def missing_options(proof: Proof, arch: Arch, config: Mapping[str, str]) -> tuple[str, ...]:
    """What in a ``.config`` (name without ``CONFIG_`` to value) keeps a proof from running, a line each."""
    lines = [f"CONFIG_{name} is not y" for name in proof.needs if config.get(name) != "y"]
    if all(config.get(name) != "y" for name in _CHANNELS[arch]):
        names = " nor ".join(f"CONFIG_{name}" for name in _CHANNELS[arch])
        lines.append(f"neither {names} is y: the guest could not report")
    return tuple(lines)


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

    def take(self, line: str, at: float) -> None:
        """Look at one line of any channel; the same record may come by more than one."""
        for number, verb, rest in self._record.findall(line):
            name, _, text = rest.partition(" ")
            if len(self._records) < MAX_RECORDS:
                self._records.setdefault(int(number), Record(verb, name, text, at))

    @property
    def channel(self) -> str:
        """The channel that init has chosen; empty when nothing was received."""
        return next((r.proof for r in self._records.values() if r.verb == "hello"), "")

    @property
    def done(self) -> bool:
        """Whether init has said that nothing follows."""
        return any(r.verb == "done" for r in self._records.values())

    def end(self, proof: str) -> Record | None:
        """The record that ended a proof."""
        return next((r for r in self._records.values() if r.verb == "end" and r.proof == proof), None)

    def facts(self, proof: str) -> dict[str, str]:
        """What init has found out in a proof."""
        found = [
            r.text.partition(" ") for r in self._records.values() if r.verb == "fact" and r.proof == proof
        ]
        return {key: value for key, _, value in found}


@dataclass(frozen=True)
class Course:
    """How a boot went, for :func:`judge`.

    ``ending``: one line that says why the guest ended. ``lost``: whether it was the harness that failed, so
    that what did not finish is unknown. ``notes``: further evidence for what did not finish. ``silent``: the
    console printed nothing, as that of a kernel without a driver for it.
    """

    transcript: Transcript
    reports: Sequence[Report]
    ending: str
    lost: bool
    seconds: float
    notes: tuple[str, ...] = ()
    silent: bool = False


def judge(plan: Sequence[Proof], image: KernelImage, course: Course) -> tuple[ProofResult, ...]:
    """The verdict on each proof of the plan."""
    results: list[ProofResult] = []
    begun = 0.0
    for position, proof in enumerate(plan):
        end = course.transcript.end(proof.name)
        last = end is None or position == len(plan) - 1
        until = course.seconds if last or end is None else end.at
        reports = [r for r in course.reports if r.at <= until and (r.at > begun or position == 0)]
        if end is None:
            results.append(_unfinished(proof, course, reports, course.seconds - begun))
            results += [_not_run(other, proof) for other in plan[position + 1 :]]
            break
        results.append(_finished(proof, image, course, end, reports, end.at - begun))
        begun = end.at
    return tuple(results)


def _finished(
    proof: Proof, image: KernelImage, course: Course, end: Record, reports: Sequence[Report], seconds: float
) -> ProofResult:
    said, _, why = end.text.partition(" ")
    facts = course.transcript.facts(proof.name)
    evidence = tuple(f"{key}: {value}" for key, value in facts.items())
    if reports:
        return ProofResult(proof.name, ProofStatus.FAILED, seconds, _report_lines(reports) + evidence)
    if said == ProofStatus.NOT_APPLICABLE:
        return ProofResult(proof.name, ProofStatus.NOT_APPLICABLE, seconds, (why, *evidence))
    wrong = proof.check(facts, image) if said == ProofStatus.PASSED else why or f"init said {said!r}"
    if wrong:
        return ProofResult(proof.name, ProofStatus.FAILED, seconds, (wrong, *evidence))
    channel = f"verdict: over {course.transcript.channel}"
    unseen = ("console: silent, so a WARNING would not have been seen",) if course.silent else ()
    return ProofResult(proof.name, ProofStatus.PASSED, seconds, (*evidence, channel, *unseen))


def _unfinished(proof: Proof, course: Course, reports: Sequence[Report], seconds: float) -> ProofResult:
    # A report is the kernel's own word, whatever became of QEMU afterwards.
    status = ProofStatus.UNKNOWN if course.lost and not reports else ProofStatus.FAILED
    evidence = (*_report_lines(reports), course.ending, *course.notes)
    return ProofResult(proof.name, status, seconds, evidence)


def _not_run(proof: Proof, culprit: Proof) -> ProofResult:
    return ProofResult(proof.name, ProofStatus.UNKNOWN, 0.0, (f"not run: {culprit.name} did not finish",))


def _report_lines(reports: Sequence[Report]) -> tuple[str, ...]:
    return tuple(f"{report.kind}: {report.line}" for report in reports[:10])
