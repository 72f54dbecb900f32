"""The hunt: random configurations built one after the other, what fails explained, compared, and minimised if new."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from klto.errors import BuildError, FindingsError, KltoError, ProofError, UsageError
from klto.explain import Explanations
from klto.files import make_directory, write_whole
from klto.kernel.kbuild_objects import objects_of
from klto.kernel.kconfig_requests import Requests, read_config
from klto.kernel.kconfig_settle import settling
from klto.kernel.toolchain import Toolchain
from klto.kernel.tree import KernelTree
from klto.process import quote
from klto.search.choose import OracleRequest, builder_of, building_judge
from klto.search.engine import CallLimit, Progress
from klto.search.hunt_config import RandomConfig, kconfig_for, random_config
from klto.search.hunt_store import (
    BASE_LOST,
    FAILED,
    MINIMISED,
    NOT_MINIMISED,
    PASSED,
    TOO_LARGE,
    UNRESOLVED,
    Finding,
    HuntStore,
    Run,
)
from klto.search.likeness import Failure, read_failure
from klto.search.minimise_options import OptionsQuestion, minimise_options
from klto.search.oracles import Builder, OfOptions, check_findings
from klto.search.runner import Ran, Runner

#: Seeds in a row that give no kernel (too large, or without the base) after which a hunt gives up.
_MOST_SKIPPED = 50


@dataclass(frozen=True)
class HuntRequest:
    """What to hunt.

    :ivar base: what every configuration has (see :func:`klto.search.hunt_config.base_of`).
    :ivar folder: where results go; several hunts may share it.
    :ivar count: kernels in all, those of earlier runs included; None for no end.
    :ivar seconds: how long to go on; a build that runs is finished first.
    :ivar most_objects: configurations that build more are left out.
    :ivar each: seconds that one build, with its boot, may take.
    :ivar minimise_calls: oracle calls for one finding; 0 minimises nothing.
    """

    tree: KernelTree
    toolchain: Toolchain
    base: Requests
    folder: Path
    first_seed: int = 1
    probability: str = "10"
    count: int | None = None
    seconds: float | None = None
    most_objects: int | None = None
    each: float | None = None
    boot: bool = False
    targets: tuple[str, ...] = ()
    jobs: int | None = None
    minimise_calls: int = 80

    @property
    def campaign(self) -> str:
        """Names what seeds stand for."""
        told = [
            self.tree.id, self.tree.version, self.tree.arch, self.toolchain.clang_text, self.probability,
            [request.line() for request in self.base], self.boot, self.targets, self.most_objects,
        ]  # fmt: skip
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:12]


@dataclass
class Hunt:
    """A hunt under way. ``note``: told what happens, in lines."""

    request: HuntRequest
    store: HuntStore
    runner: Runner
    note: Callable[[str], None]
    watch: Callable[[Progress], None]
    _work: Path = field(init=False)

    def __post_init__(self) -> None:
        # One folder for each process that shares the results; it is used again by the next one.
        self._work = self.request.folder / "work"

    def carry_out(self) -> None:
        """Go on until the count or the time is reached.

        :raises KeyboardInterrupt: on Ctrl-C; the seed that was being tried is given back.
        """
        begun, skipped = time.monotonic(), 0
        with _own_folder(self._work) as work:
            for finding in self.store.take_over():
                self._minimise(finding, work)
            while skipped < _MOST_SKIPPED:
                if self.request.seconds is not None and time.monotonic() - begun > self.request.seconds:
                    return
                seed = self.store.claim(self.request.first_seed, self.request.count)
                if seed is None:
                    return
                try:
                    run = self._try(seed, work)
                except BaseException:
                    self.store.release(seed)
                    raise
                skipped = skipped + 1 if run.outcome in (TOO_LARGE, BASE_LOST) else 0
        raise UsageError(
            f"{_MOST_SKIPPED} seeds in a row gave no kernel to build",
            "lower --probability, raise --max-objects, or put what blocks the base into it (-K CONFIG_X=n)",
        )

    def _try(self, seed: int, work: Path) -> Run:
        """One seed: from its configuration to what came of it, in the store."""
        begun = time.monotonic()
        made = self._configure(seed, work)
        write_whole(make_directory(work / "build") / ".config", made.config)
        run = Run(seed, BASE_LOST, None, None, None, "; ".join(f"{r.line()} did not hold" for r in made.lost))
        if not made.lost:
            objects = len(objects_of(self.request.tree, read_config(work / "build" / ".config")))
            limit = self.request.most_objects
            if limit is not None and objects > limit:
                run = Run(seed, TOO_LARGE, objects, None, None, f"more than {limit} objects")
            else:
                self.note(f"seed {seed}: {objects} objects")
                run = self._build(seed, objects, made.config, work, begun)
        self.store.finish(run)
        took = f", {run.seconds:.0f} s" if run.seconds is not None else ""
        self.note(f"seed {seed}: {run.outcome}{took}{f': {run.detail}' if run.detail else ''}")
        for finding in self.store.take_over():  # A new one is this hunt's to minimise.
            self._minimise(finding, work)
        return run

    def _configure(self, seed: int, work: Path) -> RandomConfig:
        kconfig = kconfig_for(self.request.tree, self.request.toolchain, make_directory(work / "kconfig"))
        with settling(kconfig) as settler:
            return random_config(kconfig, settler, seed, self.request.probability, self.request.base)

    def _build(self, seed: int, objects: int, config: bytes, work: Path, begun: float) -> Run:
        request = self.request
        asked = OracleRequest(targets=request.targets, jobs=request.jobs)
        builder = builder_of(asked, request.tree, request.toolchain, self.runner, work / "build")
        ran = builder.build(config, *(["--boot"] if request.boot else []), timeout=request.each)
        if ran.status == 0:
            return Run(seed, PASSED, objects, time.monotonic() - begun, None, None)
        seen = _what_failed(ran, builder)
        if seen is None:
            why = builder.last_line(ran) if ran.status is not None else f"not done within {request.each:g} s"
            return Run(seed, UNRESOLVED, objects, time.monotonic() - begun, None, why)
        finding, new = self.store.meet(seen.signature, seen.title, seen.stage, seed)
        self.note(f"seed {seed}: {'a new failure' if new else 'seen before'}: {seen.title}")
        if new:
            _keep(finding, seen, config, self._again(finding))
        return Run(seed, FAILED, objects, time.monotonic() - begun, seen.signature, seen.title)

    def _again(self, finding: Finding) -> str:
        request = self.request
        argv = [
            *("klto", "build", "-C", str(request.tree.path), "-a", request.tree.arch, "-b", "BUILD_DIR"),
            *("-k", str(finding.folder / ".config"), "--lto", "keep"),
            *(["--boot"] if request.boot else []),
            *request.targets,
        ]
        return quote(argv)

    def _minimise(self, finding: Finding, work: Path) -> None:
        """Shrink a finding's configuration to a fragment on top of the base."""
        request = self.request
        if not (finding.folder / "finding.json").exists():
            # Its hunt was killed between the store and the folder: the next one that meets it fills it.
            self.store.forget(finding.signature)
            return
        if request.minimise_calls == 0:
            self.store.settle(finding.signature, NOT_MINIMISED)
            return
        oracle = _oracle_for(finding, request)
        builder = builder_of(oracle, request.tree, request.toolchain, self.runner, work / "minimise")
        judge, words = building_judge(oracle, builder, finding.folder / ".config")
        self.note(f"finding {finding.number}: minimising; the oracle {words}")
        question = OptionsQuestion(
            request.tree, request.toolchain, "allnoconfig", finding.folder / ".config", request.base,
            make_directory(finding.folder / "minimise"),
        )  # fmt: skip
        try:
            result = minimise_options(
                question, OfOptions(judge), self.watch, note=self.note, stop=self.runner.stop,
                limit=request.minimise_calls,
            )  # fmt: skip
        except (CallLimit, UsageError) as error:
            self.note(f"finding {finding.number}: not minimised: {error.message}")
            write_whole(finding.folder / "not-minimised.txt", f"{error.message}\n")
            if question.best_fragment.exists():
                shutil.copy(question.best_fragment, finding.folder / "best.fragment")
            self.store.settle(finding.signature, NOT_MINIMISED)
            return
        write_whole(finding.folder / "minimal.fragment", result.fragment)
        self.store.settle(finding.signature, MINIMISED, len(result.changes))
        names = ", ".join(f"CONFIG_{c.name}={c.bad}" for c in result.changes)
        self.note(f"finding {finding.number}: {len(result.changes)} of {result.of} options matter: {names}")


@contextlib.contextmanager
def _own_folder(place: Path) -> Iterator[Path]:
    """The first numbered folder below ``place`` that no other hunt works in."""
    import fcntl

    for number in range(1000):
        folder = make_directory(place / str(number))
        with ExitStack() as stack:
            lock = stack.enter_context((folder / "lock").open("w"))
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            yield folder
            return
    raise UsageError(f"too many hunts at work in {place}")


@dataclass(frozen=True)
class _Seen:
    """A failure of a hunt's build. ``rule``: of ``klto check``, where that is what failed."""

    kind: str
    signature: str
    title: str
    stage: str | None
    log: Path
    explained: Explanations | None
    rule: str | None = None


def _what_failed(ran: Ran, builder: Builder) -> _Seen | None:
    """The failure of a build; None when it is not the kernel's."""
    if ran.status == FindingsError.exit_status:
        found = check_findings(builder)
        if not found:
            return None
        rule = found[0].rule
        title = f"{rule}: {found[0].artifact or ''} {found[0].symbol or ''}".strip()
        return _Seen("check", f"check: {rule}", title, "check", builder.own_log, None, rule)
    logs = {BuildError.exit_status: ("build", builder.log), ProofError.exit_status: ("boot", builder.console)}
    kind, log = logs.get(ran.status or 0, ("", builder.log))
    if not kind:
        return None
    if not log.exists():
        log = builder.own_log
    failure, explained = read_failure(log)
    if failure.id is None and not failure.first_error:
        # No error in the log itself (a boot that only stands still, a verification): klto's own words.
        failure = Failure(None, builder.last_line(ran), builder.last_line(ran), kind, None)
    return _Seen(kind, f"{kind}: {failure.signature}", failure.title, failure.stage, log, explained)


def _keep(finding: Finding, seen: _Seen, config: bytes, again: str) -> None:
    """Write a finding's folder: ``.config``, the log, the explanation, the command that reproduces it."""
    folder = make_directory(finding.folder)
    write_whole(folder / ".config", config)
    write_whole(folder / "log", seen.log.read_bytes() if seen.log.exists() else b"")
    told = {"kind": seen.kind, "signature": seen.signature, "title": seen.title, "rule": seen.rule}
    write_whole(folder / "finding.json", json.dumps(told, indent=2) + "\n")
    write_whole(folder / "again.sh", f"#!/bin/sh\n# {' '.join(seen.title.split())}\n{again}\n", mode=0o755)
    if seen.explained is not None:
        write_whole(folder / "explanation.json", msgspec.json.format(msgspec.json.encode(seen.explained)))
    write_whole(folder / "explanation.txt", _told(seen))


def _told(seen: _Seen) -> str:
    lines = [seen.title, f"stage: {seen.stage or 'unknown'}"]
    known = seen.explained.explanations if seen.explained else ()
    if not known:
        lines.append("klto knows no explanation; the first errors:")
        lines += [f"  {line.text}" for line in (seen.explained.unexplained[:10] if seen.explained else ())]
    for explanation in known[:3]:
        lines += ["", f"{explanation.id} ({explanation.confidence}): {explanation.title}", explanation.cause]
        lines += [f"  remedy: {remedy.text}" for remedy in explanation.remedies]
        lines += [f"  {reference}" for reference in explanation.references]
    return "\n".join(lines) + "\n"


def _oracle_for(finding: Finding, request: HuntRequest) -> OracleRequest:
    """What a finding's failing means, from its folder."""
    try:
        told = json.loads((finding.folder / "finding.json").read_bytes())
        kind, rule = str(told["kind"]), told["rule"]
    except (OSError, ValueError, KeyError) as error:
        raise KltoError(f"the folder of finding {finding.number} is damaged: {finding.folder}") from error
    return OracleRequest(
        build_fails_like=finding.folder / "log" if kind == "build" else None,
        boot_fails=kind == "boot",
        rule=str(rule) if kind == "check" else None,
        targets=request.targets,
        jobs=request.jobs,
    )
