"""Which modules' backends a link has started and finished, and when.

lld is asked for optimisation remarks of a pass that does not exist: LLVM then makes an empty file
``remarks.thin.N.`` when the backend of task N begins (llvm/lib/IR/LLVMRemarkStreamer.cpp and llvm/lib/LTO/LTO.cpp:
setupLLVMOptimizationRemarks, called by thinBackend's caller; none for a module that comes from the cache). Tasks
count the ThinLTO modules in the order of the command line from 1 on; 0 is the regular LTO module. A module is
finished when its object appears in the view (a rename). Same linked bytes with and without (tests/fast).
"""

from __future__ import annotations

import os
import time
from collections import deque

from klto.link.store import ENTRY_PREFIX
from klto.objects.file_symbol import file_symbol

TYPE_CHECKING = False
if TYPE_CHECKING:
    from klto.link.inputs import Inputs, Module
    from klto.link.request import LinkRequest
    from klto.link.store import View

#: The remark files' names before the task's number.
_PREFIX = "remarks.thin."


class Times:
    """What one generated module took. ``bytes_out``: of its native object."""

    __slots__ = ("bytes_out", "seconds")

    def __init__(self, seconds: float, bytes_out: int) -> None:
        self.seconds = seconds
        self.bytes_out = bytes_out


def tasks_in(
    view: View, inputs: Inputs, request: LinkRequest, name: str, modules: list[Module] | None = None
) -> Tasks | None:
    """A place in a view for a run's remark files.

    :param modules: those that the run is restricted to, in the order of the link; None: all.

    None for full LTO, which has no modules any more, and when the caller wants remarks himself.
    """
    if not inputs.thin or any("opt-remarks" in word for word in request.words):
        return None
    folder = os.path.join(view.folder, name)
    os.makedirs(folder)
    return Tasks(folder, view.objects, inputs.modules[: inputs.certain] if modules is None else modules)


class Tasks:
    """The backends of a link.

    :param folder: where remark files appear.
    :param objects: where finished objects appear: the view's.
    :param modules: the link's bitcode in the order of the command line.
    """

    def __init__(self, folder: str, objects: str, modules: list[Module]) -> None:
        self._folder, self._objects, self._modules = folder, objects, modules
        self._before = {item.name for item in os.scandir(objects)}
        #: By an object's path: the source file that it says it was made from.
        self._made_from: dict[str, str | None] = {}

    @property
    def options(self) -> list[str]:
        """What to give the linker so that starts are seen."""
        return [
            f"--plugin-opt=opt-remarks-filename={os.path.join(self._folder, 'remarks')}",
            "--plugin-opt=opt-remarks-passes=^klto-none$",
        ]

    def started(self) -> dict[int, float]:
        """Task to when its backend began, seconds since the epoch."""
        found: dict[int, float] = {}
        for item in os.scandir(self._folder):
            number = item.name.removeprefix(_PREFIX).partition(".")[0]
            if item.name.startswith(_PREFIX) and number.isdigit():
                try:
                    found[int(number)] = item.stat().st_mtime
                except FileNotFoundError:
                    continue  # LLVM removes them when it crashes.
        return found

    def finished(self) -> list[tuple[float, int, str]]:
        """(when, bytes, path) of the objects made by this link, the first one first."""
        found = []
        for item in os.scandir(self._objects):
            if item.name.startswith(ENTRY_PREFIX) and item.name not in self._before:
                try:
                    status = item.stat()
                except FileNotFoundError:
                    continue
                found.append((status.st_mtime, status.st_size, item.path))
        return sorted(found)

    def module(self, task: int) -> Module | None:
        """The module of a task; None where the order is not known (archive members that are taken on demand)."""
        return self._modules[task - 1] if 0 < task <= len(self._modules) else None

    def sort_out(self) -> tuple[dict[int, tuple[Times, str]], list[int]]:
        """(what each finished task took and its object's path, the tasks that began and have not finished).

        An object says which source file it was made from. Of the backends that ran when it was finished, the one
        for that file made it; of several such the one that had begun first.
        """
        started = self.started()
        waiting = deque(sorted(started, key=lambda task: started[task]))
        running: list[int] = []
        done: dict[int, tuple[Times, str]] = {}
        for when, size, path in self.finished():
            while waiting and started[waiting[0]] <= when:
                running.append(waiting.popleft())
            self.read_ahead(path)
            name = self._made_from[path]
            mine = [task for task in running if name is not None and name in _source_names(self.module(task))]
            # A module whose object is named otherwise (generated sources): the one that has run longest.
            task = (mine or running or [None])[0]  # type: ignore[list-item]
            if task is not None:
                running.remove(task)
                done[task] = (Times(max(0.0, when - started[task]), size), path)
        return done, [*running, *waiting]

    def read_ahead(self, path: str) -> None:
        """Ask a finished object now, and not when all are sorted out, what it was made from. It is asked once."""
        if path not in self._made_from:
            self._made_from[path] = file_symbol(path)


def _source_names(module: Module | None) -> tuple[str, ...]:
    """Base names of the source that an object of this name is made from."""
    if module is None:
        return ()
    stem = os.path.splitext(os.path.basename(module.identifier.partition(" at ")[0].rpartition("(")[2]))[0]
    # switch.nvhe.o is made from switch.c.
    first = stem.partition(".")[0]
    return tuple(f"{each}.{ending}" for each in (stem, first) for ending in ("c", "S", "ll", "cpp", "rs"))


class Watch:
    """Whether backends get nowhere: some run, and for ``timeout`` seconds none has begun or finished.

    As long as other backends come and go the hanging ones wait to be found: their workers are lost, the link is not.
    """

    def __init__(self, tasks: Tasks, timeout: float) -> None:
        self._tasks, self._timeout = tasks, timeout
        self._seen = (0, 0)
        self._since = self._next = time.monotonic()

    def stalled(self) -> bool:
        """Whether that is so now."""
        now = time.monotonic()
        if now < self._next:
            return False
        # A look costs a listing of two folders, so there are not many of them.
        self._next = now + min(5.0, self._timeout / 10)
        seen = (len(self._tasks.started()), len(self._tasks.finished()))
        if seen != self._seen:
            self._seen, self._since = seen, now
        return seen[0] > seen[1] and now - self._since > self._timeout
