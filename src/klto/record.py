"""The run record, ``<build dir>/.klto/record.json``, schema ``klto/record/1``.

Written when the run starts, after every stage and at the end, by rename: an out-of-memory kill runs no
``finally``. Fields may be added, never renamed. msgspec reads and writes it, checks types, and gives the JSON
Schema (:func:`record_schema`).
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from klto.errors import UsageError
from klto.events import (
    ClusterUse,
    Event,
    GuiltyModule,
    LinkBlamed,
    LinkedModule,
    LinkFinished,
    LinkStarted,
    Note,
    RunFinished,
    RunStarted,
    StageFinished,
    StageStarted,
    Step,
    Tick,
)
from klto.files import write_whole

SCHEMA = "klto/record/1"

#: Memory samples kept of a run: as many as a screen has columns, in a record of some tens of kilobytes.
MOST_SAMPLES = 400


class _Value(msgspec.Struct, frozen=True, kw_only=True):
    pass


class Asked(_Value, frozen=True):
    """What the user asked for. ``lto``: thin, full, none or keep."""

    argv: list[str]
    directory: str
    targets: list[str] = []
    lto: str = "keep"
    base: str | None = None
    requests: dict[str, str] = {}
    make_variables: list[str] = []
    jobs: int = 1
    boot: bool = False


class TreeIdentity(_Value, frozen=True):
    """Which source tree."""

    path: str
    version: str
    arch: str


class ConfigIdentity(_Value, frozen=True):
    """Which configuration. ``lto``: thin, full or none, read from the ``.config`` that was built."""

    path: str
    sha256: str
    lto: str


class ToolchainIdentity(_Value, frozen=True):
    """Which LLVM. ``spelling`` is make's argument; the texts are what the tools say of themselves."""

    spelling: str
    clang: str
    clang_version: str
    linker: str
    linker_version: str


class Machine(_Value, frozen=True):
    """What the machine offered at the start, memory in bytes."""

    cpus: int
    memory_bytes: int
    memory_available: int


class Stage(_Value, frozen=True):
    """One stage of the run. ``status``: running, done, failed, interrupted or skipped.

    ``peak_bytes`` is the largest resident set of a single process seen in the stage and ``peak_process`` its
    name; ``cpu_seconds`` is user and system time of all processes of the stage. None: not measured.
    """

    name: str
    start: float
    status: str
    wall_seconds: float | None = None
    cpu_seconds: float | None = None
    peak_bytes: int | None = None
    peak_process: str | None = None


class Attempt(_Value, frozen=True):
    """A run of the linker that was ended for want of memory, and was followed by another. Bytes and seconds."""

    jobs: int
    peak_bytes: int
    wall_seconds: float
    cause: str
    generated: int | None = None


class Link(_Value, frozen=True):
    """One LTO link. ``returncode``: negative for a signal, None while it runs or when it never reported.

    ``generated``: modules whose code was generated, the others came from the link cache; None without it.
    """

    output: str
    directory: str
    start: float
    jobs: int
    bitcode_inputs: int
    native_inputs: int
    bitcode_bytes: int
    memory_available: int
    returncode: int | None = None
    wall_seconds: float | None = None
    cpu_seconds: float | None = None
    peak_bytes: int | None = None
    generated: int | None = None
    #: The output of an equal link was taken from the cache as a whole: no linker ran.
    whole: bool = False
    #: What a link on a cluster used and met; None for a link in process.
    cluster: ClusterUse | None = None
    modules: list[LinkedModule] = []
    full: bool = False
    memory_budget: int | None = None
    memory_estimate: int | None = None
    #: Runs of the linker before the one that is described here.
    attempts: list[Attempt] = []
    guilty: list[GuiltyModule] = []


class FinishEstimate(_Value, frozen=True):
    """The process after the link that was expected to be the largest, and its bytes."""

    process: str
    bytes: int


class MemorySample(_Value, frozen=True):
    """Resident bytes of the largest process of the build at a moment, and its name."""

    time: float
    bytes: int
    process: str | None = None


class Verification(_Value, frozen=True):
    """What was found in the finished build. ``bitcode`` and ``native`` count the members of vmlinux.a."""

    lto: str
    bitcode: int
    native: int
    kernel_modules: int
    vmlinux_o_links: int
    #: Local functions and variables that LTO has made global and renamed to ``NAME.llvm.NUMBER`` in vmlinux.o.
    promoted_names: int | None = None
    problems: list[str] = []
    warnings: list[str] = []


class Initcall(_Value, frozen=True):
    """One initcall, as the objects have it; a list of them is in the order in which the kernel runs them."""

    level: str
    function: str
    object: str


class Proof(_Value, frozen=True):
    """One proof of a boot. ``status``: passed, failed, not-applicable or unknown."""

    name: str
    status: str
    seconds: float
    evidence: list[str] = []


class Boot(_Value, frozen=True):
    """One boot of the kernel. ``place``: which of the boots that the proofs are divided among.

    ``proofs`` that take several boots are in each of them; those that do not apply are in the first.
    """

    image: str
    accelerator: str
    seconds: float
    console: str
    proofs: list[Proof]
    place: str = "main"
    ending: str = ""
    #: When the results were recorded, seconds since the epoch; None in older records.
    recorded: float | None = None


class Artifact(_Value, frozen=True):
    """A file that the build made. ``path`` is relative to the build dir."""

    path: str
    bytes: int
    sha256: str


class SectionSize(_Value, frozen=True):
    """Sections of one name in vmlinux. ``kind``: text, data, bss, or other for what is not loaded."""

    name: str
    bytes: int
    kind: str


class ObjectSize(_Value, frozen=True):
    """Bytes of vmlinux's symbols that came from one object. ``path`` is relative to the build dir; names in
    parentheses stand for what no object or more than one defines."""

    path: str
    text: int = 0
    data: int = 0
    bss: int = 0


class ImageSizes(_Value, frozen=True):
    """What vmlinux is made of. ``objects`` is empty where the link's inputs could not be read."""

    sections: list[SectionSize]
    objects: list[ObjectSize] = []


class Record(_Value, frozen=True):
    """A run of ``klto build``. ``status``: running, done, failed or interrupted. Times in seconds."""

    schema: str
    klto_version: str
    status: str
    started: float
    pid: int
    asked: Asked
    machine: Machine
    wall_seconds: float | None = None
    exit_status: int | None = None
    message: str | None = None
    tree: TreeIdentity | None = None
    config: ConfigIdentity | None = None
    toolchain: ToolchainIdentity | None = None
    stages: list[Stage] = []
    objects_compiled: int = 0
    #: Objects compiled more than once in this run, and outputs of LTO links linked more than once.
    compiled_twice: list[str] = []
    linked_twice: list[str] = []
    links: list[Link] = []
    #: At most :data:`MOST_SAMPLES`; of neighbours that were put together, the larger.
    memory: list[MemorySample] = []
    finish_estimate: FinishEstimate | None = None
    #: Outputs that were made under an option of klto which Kbuild cannot see: no-lto, keep-names.
    overrides: dict[str, str] = {}
    removed: list[str] = []
    notes: list[str] = []
    verification: Verification | None = None
    initcalls: list[Initcall] = []
    findings: list[dict[str, Any]] = []
    #: Whether the checks of the finished build have run; ``findings`` then has all of what they found.
    checked: bool = False
    boots: list[Boot] = []
    artifacts: list[Artifact] = []
    sizes: ImageSizes | None = None
    log: str | None = None


def record_schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of ``klto/record/1``."""
    return msgspec.json.schema(Record)


def read_record(path: Path) -> Record:
    """The record in a file.

    :raises UsageError: when it cannot be read or is no record of this schema.
    """
    try:
        record = msgspec.json.decode(path.read_bytes(), type=Record)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    except msgspec.DecodeError as error:
        raise UsageError(f"{path} is no klto record: {error}") from error
    if record.schema != SCHEMA:
        raise UsageError(f"{path} has schema {record.schema!r}; this klto reads {SCHEMA!r}")
    return record


#: Boots that a record keeps: the latest.
MOST_BOOTS = 50


def add_boots(path: Path, boots: Sequence[Boot]) -> bool:
    """Add boots to the record of a build; False when there is none, as in a dir that plain make has built.

    :raises UsageError: when the record cannot be read or written.
    """
    if not path.is_file():
        return False
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)  # Boots side by side must not lose each other's results.
        record = read_record(path)
        kept = [*record.boots, *boots][-MOST_BOOTS:]
        write_whole(path, encode_record(msgspec.structs.replace(record, boots=kept)), durable=True)
    finally:
        os.close(folder)
    return True


def encode_record(record: Record) -> bytes:
    """The record as indented JSON."""
    return msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n"


class _MemoryCurve:
    """Samples over a run of any length: when there are too many, two neighbours become one."""

    def __init__(self) -> None:
        self.samples: list[MemorySample] = []
        self._every, self._waiting = 1, list[MemorySample]()

    def add(self, sample: MemorySample) -> None:
        """One more; a peak is never lost."""
        self._waiting.append(sample)
        if len(self._waiting) < self._every:
            return
        self.samples.append(_largest(self._waiting))
        self._waiting.clear()
        if len(self.samples) >= MOST_SAMPLES:
            pairs = zip(self.samples[::2], self.samples[1::2], strict=True)
            self.samples = [_largest(pair) for pair in pairs]
            self._every *= 2


def _largest(samples: Iterable[MemorySample]) -> MemorySample:
    return max(samples, key=lambda sample: sample.bytes)


class RecordKeeper:
    """Follows the events of a run and keeps its record up to date on disk."""

    def __init__(self, path: Path, record: Record) -> None:
        self.path = path
        self.record = record
        self._compiled: set[str] = set()
        self._memory = _MemoryCurve()
        self.save()

    def update(self, **fields: object) -> None:
        """Replace fields of the record; it is written with the next stage or at the end."""
        self.record = msgspec.structs.replace(self.record, **fields)

    def save(self) -> None:
        """Write the record now."""
        self.update(memory=list(self._memory.samples))
        write_whole(self.path, encode_record(self.record), durable=True)

    def __call__(self, event: Event) -> None:
        """Take in one event."""
        match event:
            case RunStarted():
                self.update(started=event.time)
            case StageStarted():
                stage = Stage(name=event.stage, start=event.time, status="running")
                self.update(stages=[*self.record.stages, stage])
                self.save()
            case StageFinished():
                self._finish_stage(event)
                self.save()
            case Step(verb="CC" | "AS"):
                self._compile(event.target)
            case Tick():
                self._memory.add(
                    MemorySample(time=event.time, bytes=event.resident_bytes, process=event.process)
                )
            case LinkStarted():
                self._begin_link(event)
            case LinkFinished():
                self._finish_link(event)
            case LinkBlamed():
                self._change_link(event.output, guilty=event.modules)
            case Note():
                self.update(notes=[*self.record.notes, event.text])
            case RunFinished():
                self.update(
                    status=event.status,
                    exit_status=event.exit_status,
                    message=event.message,
                    wall_seconds=event.time - self.record.started,
                )
                self.save()

    def _compile(self, target: str) -> None:
        self.update(objects_compiled=self.record.objects_compiled + 1)
        if target in self._compiled:
            self.update(compiled_twice=[*self.record.compiled_twice, target])
        self._compiled.add(target)

    def _finish_stage(self, event: StageFinished) -> None:
        stages = list(self.record.stages)
        for index in reversed(range(len(stages))):
            if stages[index].name == event.stage:
                stages[index] = msgspec.structs.replace(
                    stages[index],
                    status=event.status,
                    wall_seconds=event.wall_seconds,
                    cpu_seconds=event.cpu_seconds,
                    peak_bytes=event.peak_bytes,
                    peak_process=event.peak_process,
                )
                break
        self.update(stages=stages)

    def _begin_link(self, event: LinkStarted) -> None:
        link = _link_of(event)
        if event.attempt > 1:
            self._change_link(event.output, jobs=link.jobs, memory_estimate=link.memory_estimate)
            return
        if any(link.output == event.output for link in self.record.links):
            self.update(linked_twice=[*self.record.linked_twice, event.output])
        self.update(links=[*self.record.links, link])

    def _finish_link(self, event: LinkFinished) -> None:
        link = next((link for link in reversed(self.record.links) if link.output == event.output), None)
        if link is None:
            return
        if event.again:
            attempt = Attempt(
                jobs=link.jobs,
                peak_bytes=event.peak_bytes,
                wall_seconds=event.wall_seconds,
                cause=event.cause,
                generated=event.generated,
            )
            self._change_link(event.output, attempts=[*link.attempts, attempt])
            return
        self._change_link(
            event.output,
            returncode=event.returncode,
            wall_seconds=event.wall_seconds,
            cpu_seconds=event.cpu_seconds,
            peak_bytes=event.peak_bytes,
            generated=event.generated,
            whole=event.whole,
            modules=event.modules,
            cluster=event.cluster,
        )

    def _change_link(self, output: str, **fields: object) -> None:
        """Replace fields of the last link of that output."""
        links = list(self.record.links)
        for index in reversed(range(len(links))):
            if links[index].output == output:
                links[index] = msgspec.structs.replace(links[index], **fields)
                break
        self.update(links=links)


def _link_of(event: LinkStarted) -> Link:
    return Link(
        output=event.output,
        directory=event.directory,
        start=event.time,
        jobs=event.jobs,
        bitcode_inputs=event.bitcode_inputs,
        native_inputs=event.native_inputs,
        bitcode_bytes=event.bitcode_bytes,
        memory_available=event.memory_available,
        full=event.full,
        memory_budget=event.memory_budget,
        memory_estimate=event.memory_estimate,
    )
