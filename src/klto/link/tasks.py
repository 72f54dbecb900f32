"""Which modules' backends a link has started and finished, and when.

lld is asked for optimisation remarks of a pass that does not exist: LLVM then makes an empty file
``remarks.thin.N.`` when the backend of task N begins (llvm/lib/IR/LLVMRemarkStreamer.cpp and llvm/lib/LTO/LTO.cpp:
setupLLVMOptimizationRemarks, called by thinBackend's caller; none for a module that comes from the cache). Tasks
count the ThinLTO modules in the order of the command line from 1 on; 0 is the regular LTO module. A module is
finished when its object appears in the view (a rename). Same linked bytes with and without (tests/fast).

With remarks passes also look for what they could report (llvm/include/llvm/Analysis/OptimizationRemarkEmitter.h,
allowExtraAnalysis), which is 2 % of a kernel's first link (bench/README.md). Such a link goes without, and when its
backends began is worked out from when they finished.
"""

from __future__ import annotations

import os
import time
from collections import deque
from functools import cached_property

from klto.link.store import ENTRY_PREFIX
from klto.objects.errors import MalformedObject
from klto.objects.file_symbol import file_symbol
from klto.objects.module_size import HEAD_BYTES, module_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from klto.link.inputs import Inputs, Module
    from klto.link.linker import Linker
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
    view: View,
    inputs: Inputs,
    request: LinkRequest,
    name: str,
    modules: list[Module] | None = None,
    inferred: int = 0,
) -> Tasks | None:
    """A place in a view for a run's remark files.

    :param modules: those that the run is restricted to, in the order of the link; None: all.
    :param inferred: do without such files; the number of threads that the linker is given for backends.

    None for full LTO, which has no modules any more, and when the caller wants remarks himself.
    """
    if not inputs.thin or any("opt-remarks" in word for word in request.words):
        return None
    if modules is None:
        modules = inputs.modules[: inputs.certain]
    if inferred:
        return InferredTasks(view.objects, modules, inferred)
    folder = os.path.join(view.folder, name)
    os.makedirs(folder)
    return Tasks(folder, view.objects, modules)


class Tasks:
    """The backends of a link, followed one by one. ``followed``: which have begun is known, and not worked out.

    :param folder: where remark files appear.
    :param objects: where finished objects appear: the view's.
    :param modules: the link's bitcode in the order of the command line.
    """

    followed = True

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

    def stand(self) -> tuple[float, int] | None:
        """What changes when a backend begins or finishes; None when none can be at work."""
        begun, finished = len(self.started()), len(self.finished())
        return (begun, finished) if begun > finished else None

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


class InferredTasks(Tasks):
    """The backends of a link that is asked for no remarks.

    LLVM gives modules to its threads the largest first, or with one thread in their order (llvm/lib/LTO/LTO.cpp,
    runThinLTO and generateModulesOrdering, 14 to 22), and a thread takes the next one when it has finished one.

    :param jobs: threads for backends.
    """

    followed = False

    def __init__(self, objects: str, modules: list[Module], jobs: int) -> None:
        super().__init__("", objects, modules)
        self._jobs = jobs
        #: The run of the linker, once there is one.
        self.linker: Linker | None = None

    @property
    def options(self) -> list[str]:
        """None."""
        return []

    def stand(self) -> tuple[float, int] | None:
        """When the linker got its last threads and how many have finished; None when its backends have ended."""
        finished = len(self.finished())
        if self.linker is None or (self.linker.winding_up and finished):
            return None
        return self.linker.working_since, finished

    def started(self) -> dict[int, float]:
        """Those of finished tasks alone."""
        return {task: when - times.seconds for task, (when, times, _) in self._done().items()}

    def sort_out(self) -> tuple[dict[int, tuple[Times, str]], list[int]]:
        """What each finished task took and its object's path; of others nothing is known."""
        return {task: (times, path) for task, (_, times, path) in self._done().items()}, []

    def _done(self) -> dict[int, tuple[float, Times, str]]:
        finished = self.finished()
        made = self._made(finished)
        # Modules of one size LLVM takes in any order: the one that was done first for the one that began first.
        order = sorted(made, key=lambda task: (self._places[task], made[task][0]))
        # The first ones began together, each further one when another was done.
        ends = [when for when, _, _ in finished]
        first = min([self.linker.working_since if self.linker else 0.0, *ends])
        begins = [first] * self._jobs + ends
        done: dict[int, tuple[float, Times, str]] = {}
        for begin, task in zip(begins, order, strict=False):
            when, size, path = made[task]
            done[task] = when, Times(max(0.0, when - begin), size), path
        return done

    def read_ahead(self, path: str) -> None:
        """The same, and the modules' sizes."""
        super().read_ahead(path)
        _ = self._places

    @cached_property
    def _places(self) -> dict[int, int]:
        """What LLVM's threads take tasks by, the smallest first."""
        tasks = enumerate(self._modules, start=1)
        return {task: -_size(module) if self._jobs > 1 else task for task, module in tasks}

    def _made(self, finished: list[tuple[float, int, str]]) -> dict[int, tuple[float, int, str]]:
        """By task its object: of the tasks for a source of that name the first one that has none yet."""
        order = sorted(self._places, key=self._places.__getitem__)
        by_name: dict[str, deque[int]] = {}
        for task in order:
            for name in _source_names(self.module(task)):
                by_name.setdefault(name, deque()).append(task)
        made: dict[int, tuple[float, int, str]] = {}
        strange = []
        for item in finished:
            self.read_ahead(item[2])
            tasks = by_name.get(self._made_from[item[2]] or "", deque())
            while tasks and tasks[0] in made:
                tasks.popleft()
            if tasks:
                made[tasks.popleft()] = item
            else:
                strange.append(item)
        # Objects that are named otherwise (generated sources).
        made.update(zip((task for task in order if task not in made), strange, strict=False))
        return made


def _size(module: Module) -> int:
    try:
        if module.path is None:
            head = bytes(memoryview(module.data())[:HEAD_BYTES])
        else:
            descriptor = os.open(module.path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                head = os.read(descriptor, HEAD_BYTES)
            finally:
                os.close(descriptor)
    except (OSError, MalformedObject):
        return module.size  # It was read by the linker, and has gone since.
    return module_size(head) or module.size


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
        self._seen: tuple[float, int] | None = None
        self._since = self._next = time.monotonic()

    def stalled(self) -> bool:
        """Whether that is so now."""
        now = time.monotonic()
        if now < self._next:
            return False
        # A look costs a listing of two folders, so there are not many of them.
        self._next = now + min(5.0, self._timeout / 10)
        seen = self._tasks.stand()
        if seen is None or seen != self._seen:
            self._seen, self._since = seen, now
        return now - self._since > self._timeout
