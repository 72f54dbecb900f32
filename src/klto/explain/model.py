"""What an explanation is."""

from __future__ import annotations

from dataclasses import dataclass, field

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from klto.explain.stages import Stage


@dataclass(frozen=True)
class LogLine:
    """A line of the log.

    :ivar number: counted from 1 by line feeds, as an editor does.
    :ivar text: without line end, escape sequences and control characters; long ones clipped.
    """

    number: int
    text: str


@dataclass(frozen=True)
class Remedy:
    """Something to do.

    :ivar command: the command that does it, names filled in; None when there is none.
    """

    text: str
    command: str | None = None


@dataclass(frozen=True)
class Explanation:
    """A failure that is known.

    :ivar confidence: ``high``, ``medium`` or ``low``.
    :ivar culprit: the object, module, symbol or option at fault, None when the log does not name one.
    :ivar culprits: all of them, first one first, at most :data:`klto.explain.conclude.MAX_CULPRITS`.
    :ivar lines: the line that shows it, with those beside it that belong to it.
    :ivar count: lines of the log that say the same.
    :ivar count_exact: False when there may be more.
    :ivar severity: ``error``, or ``warning`` when it alone does not stop a build or boot.
    :ivar lto: whether LTO causes it, or brings it out.
    :ivar confirmed: whether the cause was checked against kernel or LLVM source or their trackers.
    :ivar found: what the build dir, or the rest of the log, says about it.
    :ivar captures: what the patterns caught, by name.
    """

    id: str
    title: str
    stage: Stage
    confidence: str
    culprit: str | None
    culprits: tuple[str, ...]
    lines: tuple[LogLine, ...]
    count: int
    count_exact: bool
    severity: str
    lto: bool
    confirmed: bool
    cause: str
    why: str
    affects: str
    remedies: tuple[Remedy, ...]
    references: tuple[str, ...]
    found: tuple[str, ...] = ()
    captures: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Folded:
    """Warnings that differ in names and numbers only: the first of them, how many, and whether all were counted."""

    line: LogLine
    count: int
    exact: bool = True


@dataclass(frozen=True)
class Explanations:
    """A log, explained.

    :ivar explanations: best first.
    :ivar unexplained: error lines that no entry covers.
    :ivar stage: which stage failed first, ``unknown`` when the log does not say, None when nothing failed.
    :ivar first_error: the first real error, explained or not; None when the log has none.
    :ivar failed_targets: targets that make could not make, innermost ones, in order.
    :ivar noise: folded warnings, most frequent first.
    :ivar advice: how to get what a maintainer needs, when something is unexplained.
    :ivar log_lines: lines read.
    """

    explanations: tuple[Explanation, ...] = ()
    unexplained: tuple[LogLine, ...] = ()
    stage: Stage | None = None
    first_error: LogLine | None = None
    failed_targets: tuple[str, ...] = ()
    noise: tuple[Folded, ...] = ()
    advice: tuple[Remedy, ...] = ()
    log_lines: int = 0
    unexplained_context: tuple[LogLine, ...] = field(default=())

    @property
    def best(self) -> Explanation | None:
        """The first explanation."""
        return self.explanations[0] if self.explanations else None
