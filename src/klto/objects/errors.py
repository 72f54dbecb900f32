"""The one error of this room: an input that cannot be read or is not what its format says."""

from __future__ import annotations

from klto.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import os


class MalformedObject(UsageError):
    """An object, archive or member that cannot be read.

    :param where: the file, with the member in parentheses when there is one.
    :param offset: byte offset within that file or member, or None when no place is to blame.
    :param problem: what was expected there and what was found.
    """

    def __init__(self, where: str, offset: int | None, problem: str, hint: str | None = None) -> None:
        place = where if offset is None else f"{where}: at offset {offset:#x}"
        super().__init__(f"{place}: {problem}", hint)
        self.where = where
        self.offset = offset
        self.problem = problem


def cannot_read(path: str | os.PathLike[str], error: OSError) -> MalformedObject:
    """The error for a file that the system would not give us."""
    return MalformedObject(str(path), None, f"cannot be read: {error.strerror or error}")
