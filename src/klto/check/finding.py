"""What a rule has found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from enum import StrEnum


class Level(StrEnum):
    """How bad it is: an error breaks the kernel, a warning may, a note is worth knowing."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


#: Worst first; ``never`` of ``--fail-on`` is no level.
ORDER = (Level.ERROR, Level.WARNING, Level.NOTE)


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, in one place.

    :ivar artifact: the file, relative to the build dir where there is one; an archive's member as ``lib.a(x.o)``.
    :ivar offset: bytes from the section's start, or None.
    :ivar seen: what was found, and ``allowed`` what may be, with numbers where there are any.
    :ivar why: why LTO causes it.
    :ivar remedies: best first.
    :ivar source: the Makefile or source file to look at, relative to the kernel tree, or None.
    """

    rule: str
    level: Level
    artifact: str
    message: str
    symbol: str | None = None
    section: str | None = None
    offset: int | None = None
    seen: str | None = None
    allowed: str | None = None
    why: str | None = None
    remedies: tuple[str, ...] = ()
    references: tuple[str, ...] = ()
    source: str | None = None

    def as_json(self) -> dict[str, object]:
        """The object of schema ``klto/check/1`` and of the run record."""
        return asdict(self) | {
            "level": str(self.level),
            "remedies": list(self.remedies),
            "references": list(self.references),
        }


def many(count: int, what: str) -> str:
    """``1 module``, ``2 modules``."""
    return f"{count} {what}{'' if count == 1 else 's'}"


def in_order(findings: Iterable[Finding]) -> list[Finding]:
    """Worst first, then as the rules gave them."""
    return sorted(findings, key=lambda finding: ORDER.index(finding.level))


def counts(findings: Iterable[Finding]) -> dict[str, int]:
    """Findings of each level."""
    found = Counter(finding.level for finding in findings)
    return {str(level): found[level] for level in ORDER}


def fails(findings: Iterable[Finding], fail_on: str) -> bool:
    """Whether one is at or above ``fail_on``: error, warning or never."""
    if fail_on == "never":
        return False
    bad = ORDER[: ORDER.index(Level(fail_on)) + 1]
    return any(finding.level in bad for finding in findings)
