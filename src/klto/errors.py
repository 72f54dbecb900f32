"""What can go wrong, one class per exit status.

The library raises these; only :mod:`klto.cli` prints them and exits. A message is one line: what, where.
A hint is one line: what to do about it.
"""

from __future__ import annotations

TYPE_CHECKING = False  # typing costs 10 ms to import, and klto.objects is imported by a linker shim
if TYPE_CHECKING:
    from typing import ClassVar


class KltoError(Exception):
    """Base of every error that klto raises on purpose.

    :param message: one line that names the thing and the place.
    :param hint: one line that says what to do, or None when nothing is known.
    :param details: lines to show below the message (a failing command's own output), oldest first.
    """

    exit_status: ClassVar[int] = 2

    def __init__(self, message: str, hint: str | None = None, details: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.details = details


class BuildError(KltoError):
    """The kernel's build or link failed."""

    exit_status = 1


class UsageError(KltoError):
    """Usage or environment: a bad option, a missing tool, unreadable or malformed input."""

    exit_status = 2


class FindingsError(KltoError):
    """A check found something at or above ``--fail-on``."""

    exit_status = 3


class ProofError(KltoError):
    """A boot or a proof failed."""

    exit_status = 4


class LostMachineError(KltoError):
    """The harness lost a machine (QEMU or a worker died): the result is unknown."""

    exit_status = 5


class InterruptedRun(KltoError):
    """Ctrl-C or TERM ended the run."""

    exit_status = 130
