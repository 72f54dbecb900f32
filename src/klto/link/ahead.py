"""Reads finished objects before the linker has ended: what is left to do then is waited for."""

from __future__ import annotations

import os
import time

from klto.link.store import ENTRY_PREFIX, TOO_YOUNG

TYPE_CHECKING = False
if TYPE_CHECKING:
    from klto.link.store import View
    from klto.link.tasks import Tasks

#: Seconds that a look may take: the linker is not watched meanwhile.
_LONGEST = 0.1


class Ahead:
    """Has a view and the tasks of its link read each new object once."""

    def __init__(self, view: View, tasks: Tasks | None) -> None:
        self._view, self._tasks = view, tasks
        self._read: set[str] = set()
        self._done = False

    def look(self) -> None:
        """Read some of what has come since the last look; when none was left for later, the next looks do nothing.

        What cannot be read is left to those that need it.
        """
        if self._done:
            return
        try:
            self._done = self._look()
        except OSError:
            self._done = True

    def _look(self) -> bool:
        """Whether none is left for later."""
        until, settled, complete = time.monotonic() + _LONGEST, time.time_ns() - TOO_YOUNG, True
        for item in os.scandir(self._view.objects):
            if item.name in self._read or not item.name.startswith(ENTRY_PREFIX) or item.is_symlink():
                continue
            if time.monotonic() > until:
                return False
            if item.stat().st_ctime_ns > settled:
                complete = False
                continue
            self._read.add(item.name)
            self._view.read_ahead(item.path)
            if self._tasks is not None:
                self._tasks.read_ahead(item.path)
        return complete
