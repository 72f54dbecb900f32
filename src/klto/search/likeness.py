"""What makes two failures the same: the explanation's id, or the first error without what differs by chance."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from klto.explain import Explanations, explain_file
from klto.kernel.kbuild import find_failures

#: Targets that can be asked of make by themselves: objects and the LTO link's result.
_TARGET = re.compile(r"(?:[\w.+-]+/)+[\w.+-]+\.o|vmlinux\.o|vmlinux")

#: The folders of an absolute path.
_FOLDERS = re.compile(r"(?<![\w.])/[^\s:'\"]*/")

#: What differs from one occurrence to the next: places in files, addresses, numbers, clang's quotes.
_CHANCE = (
    (re.compile(r"\x1b\[[0-9;]*m"), ""),
    (_FOLDERS, ""),
    (re.compile(r":\d+(?::\d+)?(?=[:\s])"), ""),
    (re.compile(r"\.llvm\.\d+"), ".llvm.N"),
    (re.compile(r"\b0x[0-9a-f]+\b|\b[0-9a-f]{8,}\b"), "0xN"),
    (re.compile(r"\d+"), "N"),
    (re.compile(r"\s+"), " "),
)


@dataclass(frozen=True)
class Failure:
    """A failure as a log tells it.

    :ivar id: of the explanation, None where it is unknown or the explanation is not sure of itself.
    :ivar first_error: the first real error line without numbers and places; empty when there is none.
    :ivar title: one line for people.
    :ivar target: what make could not make, when that can be asked for alone: an object's path, ``vmlinux.o``.
    """

    id: str | None
    first_error: str
    title: str
    stage: str | None
    target: str | None

    @property
    def signature(self) -> str:
        """Equal for failures that are the same."""
        return self.id or f"error: {self.first_error}"

    def is_like(self, other: Failure) -> bool:
        """Whether they are the same failure: the same explanation, or the same first error."""
        if self.id is not None and other.id is not None:
            return self.id == other.id
        return bool(self.first_error) and self.first_error == other.first_error


def read_failure(log: Path) -> tuple[Failure, Explanations]:
    """The failure in a log, and all that is known about it.

    :raises UsageError: the log cannot be read.
    """
    said = explain_file(log)
    known = next((e for e in said.explanations if e.severity == "error" and e.confidence != "low"), None)
    first = said.first_error.text if said.first_error else ""
    targets = said.failed_targets
    if not targets:
        failures = find_failures(log.read_text("utf-8", "replace").splitlines())
        targets = tuple(failure.target for failure in failures)
        first = first or next((line for failure in failures for line in failure.lines), "")
    target = targets[0] if targets and _TARGET.fullmatch(targets[0]) else None
    title = known.title if known else _FOLDERS.sub("", first).strip()[:160] or "no error in the log"
    stage = said.stage.value if said.stage else None
    return Failure(known.id if known else None, without_chance(first), title, stage, target), said


def without_chance(line: str) -> str:
    """An error line without what differs by chance."""
    for pattern, instead in _CHANCE:
        line = pattern.sub(instead, line)
    return line.strip()
