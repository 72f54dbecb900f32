"""Oracles: what failing means. A command's exit status, a build's failure, a boot, a rule of ``klto check``.

Those that build run klto itself, and only as far as they need: an object that fails alone is built alone, and not
at all where the candidate does not have it.
"""

from __future__ import annotations

import json
import re
import signal
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import msgspec

from klto.errors import BuildError, ProofError, UsageError
from klto.files import make_directory, write_whole
from klto.kernel.kbuild_objects import leaves_out
from klto.kernel.kconfig_requests import read_config
from klto.kernel.tree import KernelTree
from klto.process import describe_status, quote
from klto.search.likeness import Failure, read_failure
from klto.search.options import OptionsOutcome
from klto.search.runner import Ran, Runner
from klto.search.verdicts import Verdict

#: ``git bisect run``'s status for "cannot be tested" (git-bisect(1)); and from where on a status is not the
#: command's own: a shell's for a program that cannot be run (126, 127), or a signal's (128 + N).
_SKIP, _ABORT = 125, 126


#: For oracles that are not about what ``klto check`` finds: it must not end the build.
NO_CHECKS = ("--fail-on", "never")


class Places:
    """Numbered folders for oracle calls that run at once; a folder is used again when its call has ended."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._free: list[int] = []
        self._made = 0
        self._lock = threading.Lock()

    def take(self) -> Path:
        """A folder that no other call uses; it exists."""
        with self._lock:
            if not self._free:
                self._free.append(self._made)
                self._made += 1
            number = self._free.pop()
        return make_directory(self._folder / str(number))

    def give_back(self, place: Path) -> None:
        """The call has ended."""
        with self._lock:
            self._free.append(int(place.name))


@dataclass
class Command:
    """A command's exit status, as ``git bisect run`` reads it: 0 passes, 125 cannot be judged, 1 to 124 fails.

    :ivar argv: run in a folder of its own.
    :ivar timeout: seconds, after which it fails.
    """

    argv: tuple[str, ...]
    runner: Runner
    timeout: float | None = None

    def judge(self, place: Path, extra: Mapping[str, str]) -> tuple[Verdict, str]:
        """Run it in ``place``.

        :raises UsageError: it cannot be started, or ended by a signal.
        """
        ran = self.runner.run(self.argv, place / "oracle.log", cwd=place, extra=extra, timeout=self.timeout)
        if ran.status is None:
            return Verdict.FAILS, f"no answer within {self.timeout:g} s"
        if ran.status < 0 or ran.status >= _ABORT:
            raise UsageError(
                f"the oracle ended with {describe_status(ran.status)}: {quote(self.argv)}",
                "0 means passes, 1 to 124 fails, 125 cannot be judged",
                details=tuple(ran.output.splitlines()[-10:]),
            )
        last = next((line.strip() for line in reversed(ran.output.splitlines()) if line.strip()), "")
        said = f"{describe_status(ran.status)}" + (f": {last[:120]}" if last else "")
        if ran.status == _SKIP:
            return Verdict.UNRESOLVED, said
        return (Verdict.FAILS if ran.status else Verdict.PASSES), said


@dataclass
class ConfigCommand:
    """A command that looks at a configuration: ``.config`` in its folder, and ``KLTO_CONFIG``, its path."""

    command: Command
    places: Places

    def __call__(self, outcome: OptionsOutcome) -> tuple[Verdict, str]:
        """Judge."""
        place = self.places.take()
        try:
            config = place / ".config"
            write_whole(config, outcome.config)
            return self.command.judge(place, {"KLTO_CONFIG": str(config)})
        finally:
            self.places.give_back(place)


@dataclass(frozen=True)
class Builder:
    """``klto build``, for one tree and toolchain. ``options``: ``-C``, ``-a``, ``-t``, ``-j`` as given."""

    tree: KernelTree
    options: tuple[str, ...]
    runner: Runner
    build_dir: Path
    #: Targets and NAME=VALUE for make; empty for the whole kernel.
    targets: tuple[str, ...] = ()
    #: Of a candidate's: what it does not build, and what cannot be told, since the failing configuration seems not to.
    left_out: tuple[str, ...] = ()
    untold: tuple[str, ...] = ()

    @property
    def log(self) -> Path:
        """make's own output."""
        return self.build_dir / ".klto" / "build.log"

    @property
    def console(self) -> Path:
        """What the kernel said when it was booted."""
        return self.build_dir / ".klto" / "console.log"

    @property
    def own_log(self) -> Path:
        """What klto itself said."""
        return self.build_dir.parent / f"{self.build_dir.name}.klto.log"

    def build(self, config: bytes | None, *more: str, timeout: float | None = None) -> Ran:
        """Build; ``config`` becomes the build dir's ``.config``, which keeps its time when it is the same."""
        place = make_directory(self.build_dir)
        if config is not None and (
            not (place / ".config").exists() or (place / ".config").read_bytes() != config
        ):
            write_whole(place / ".config", config)
        return self.klto("build", *self.options, "--lto", "keep", "-q", *more, *self.targets, timeout=timeout)

    def for_candidate(self, config: bytes | None) -> Builder | None:
        """This without the objects and folders that a configuration leaves out, which make would build when they are
        named; None when nothing else was to be built."""
        if config is None or not any(map(_may_be_left_out, self.targets)):
            return self
        candidate = make_directory(self.build_dir) / "candidate.config"
        write_whole(candidate, config)
        out = self._leaves_out(candidate)
        left = tuple(target for target in self.targets if target not in out)
        return (
            replace(self, targets=left, left_out=out) if any("=" not in target for target in left) else None
        )

    def for_search(self, failing: Path) -> Builder:
        """This, knowing a configuration that builds all targets."""
        return replace(self, untold=self._leaves_out(failing))

    def _leaves_out(self, config: Path) -> tuple[str, ...]:
        asked = [t for t in self.targets if _may_be_left_out(t) and t not in self.untold]
        values = read_config(config) if asked else {}
        return tuple(target for target in asked if leaves_out(self.tree, values, target))

    def klto(self, command: str, *arguments: str, timeout: float | None = None) -> Ran:
        """Another command of klto on the build dir."""
        argv = [sys.executable, "-m", "klto", command, "-b", str(self.build_dir), *arguments]
        ran = self.runner.run(argv, self.own_log, timeout=timeout)
        if ran.status in (130, -signal.SIGINT, -signal.SIGTERM):
            raise KeyboardInterrupt
        return ran

    def last_line(self, ran: Ran) -> str:
        """klto's own message."""
        said = re.findall(r"(?m)^klto: (.*)$", ran.output)
        return said[-1][:160] if said else describe_status(ran.status or 0)


def _is_below(artifact: str, targets: tuple[str, ...]) -> bool:
    """Whether it is of another candidate, that had these targets."""
    return any(
        artifact == target or (target.endswith("/") and artifact.startswith(target)) for target in targets
    )


def _may_be_left_out(target: str) -> bool:
    made_later = target in ("vmlinux.o", "init/version-timestamp.o") or target.endswith(".mod.o")
    return target.endswith((".o", "/")) and not made_later and "=" not in target


class _Judge(Protocol):
    def __call__(self, config: bytes | None) -> tuple[Verdict, str]: ...


@dataclass
class BuildFailsLike:
    """Fails when the build fails in the same way as a log tells."""

    builder: Builder
    like: Failure

    def __call__(self, config: bytes | None) -> tuple[Verdict, str]:
        """Build and compare."""
        builder = self.builder.for_candidate(config)
        if builder is None:
            return Verdict.PASSES, f"{' '.join(self.builder.targets)}: not built"
        ran = builder.build(config, *NO_CHECKS)
        if ran.status == 0:
            return Verdict.PASSES, "builds"
        if ran.status != BuildError.exit_status:
            return Verdict.UNRESOLVED, self.builder.last_line(ran)
        failure, _ = read_failure(self.builder.log)
        if failure.is_like(self.like):
            return Verdict.FAILS, failure.title
        return Verdict.UNRESOLVED, f"another failure: {failure.title}"


@dataclass
class BootFails:
    """Fails when it builds and does not boot, or a proof fails."""

    builder: Builder
    timeout: float | None = None

    def __call__(self, config: bytes | None) -> tuple[Verdict, str]:
        """Build and boot."""
        deadline = [] if self.timeout is None else ["--timeout", f"{self.timeout:g}"]
        ran = self.builder.build(config, "--boot", *NO_CHECKS, *deadline)
        if ran.status == 0:
            return Verdict.PASSES, "boots"
        verdict = Verdict.FAILS if ran.status == ProofError.exit_status else Verdict.UNRESOLVED
        return verdict, self.builder.last_line(ran)


class CheckFinding(msgspec.Struct):
    """A finding of ``klto check``, as far as it is needed here."""

    rule: str
    artifact: str | None = None
    symbol: str | None = None


class _Findings(msgspec.Struct):
    findings: list[CheckFinding] = []


def check_findings(builder: Builder) -> list[CheckFinding] | None:
    """What ``klto check`` finds in the build dir; None when it cannot say."""
    said = builder.klto("check", "--format", "json").output
    try:
        # What klto says on stderr may stand before it and after it.
        parsed, _ = json.JSONDecoder().raw_decode(said, max(0, said.find("{")))
        return msgspec.convert(parsed, _Findings).findings
    except (json.JSONDecodeError, msgspec.ValidationError):
        return None


def finds(builder: Builder, rule: str) -> tuple[Verdict, str]:
    """Whether ``klto check`` has a finding of a rule in what is built."""
    found = check_findings(builder)
    if found is None:
        return Verdict.UNRESOLVED, "klto check could not say"
    out = builder.left_out
    mine = [f for f in found if f.rule == rule and not _is_below(f.artifact or "", out)]
    if not mine:
        return Verdict.PASSES, f"no {rule}"
    return Verdict.FAILS, f"{len(mine)} {rule}: {mine[0].artifact} {mine[0].symbol or ''}".strip()


@dataclass
class CheckFinds:
    """Fails when ``klto check`` has a finding of a rule."""

    builder: Builder
    rule: str

    def __call__(self, config: bytes | None) -> tuple[Verdict, str]:
        """Build and check."""
        builder = self.builder.for_candidate(config)
        if builder is None:
            return Verdict.PASSES, f"{' '.join(self.builder.targets)}: not built"
        ran = builder.build(config)
        if ran.status not in (0, 3):
            return Verdict.UNRESOLVED, self.builder.last_line(ran)
        return finds(builder, self.rule)


@dataclass
class OfOptions:
    """A building oracle on configurations, one at a time: it has one build dir."""

    judge: _Judge
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, outcome: OptionsOutcome) -> tuple[Verdict, str]:
        """Judge."""
        with self._lock:
            return self.judge(outcome.config)
