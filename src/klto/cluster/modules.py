"""Looks at the modules of a link: content, flags, included files, shard, symbols. In helper processes when there are
many: a link's first jobs should leave while the last modules are still unread.

What was found of a file counts as long as it has the same inode, size and time stamps.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from klto.cluster.job import digest_of
from klto.cluster.module_flags import code_flags
from klto.cluster.options import Undistributable
from klto.cluster.shard import Shard, canonical_shard
from klto.files import write_whole
from klto.link.includes import Uncacheable, included_names, may_include
from klto.machine import usable_cpus
from klto.objects.errors import MalformedObject
from klto.process import SignalsLater, die_with_parent

if TYPE_CHECKING:
    from collections.abc import Callable

W = TypeVar("W")
R = TypeVar("R")

#: Helpers at the most; fewer modules than this for each of them are looked at here.
_HELPERS, _WORTH_A_HELPER = 4, 32
#: Nanoseconds: a file whose time stamp is younger may change once more with the same stamp (CONFIG_HZ_100).
_TOO_YOUNG = 50_000_000


class Place(NamedTuple):
    """Where a module lies: ``size`` bytes at ``offset`` of the file at ``path``; all of it when ``whole``."""

    path: str
    offset: int
    size: int
    whole: bool

    def read(self) -> bytes:
        """The module."""
        with open(self.path, "rb") as stream:
            if self.whole:
                return stream.read()
            stream.seek(self.offset)
            return stream.read(self.size)


def place_of_file(path: str) -> Place:
    """A file that is one module.

    :raises OSError: when there is none.
    """
    return Place(path, 0, os.path.getsize(path), True)


class Module(NamedTuple):
    """What jobs need to know of a bitcode module.

    :ivar includes: files that its assembly includes, as it names them.
    """

    sha256: str
    size: int
    triple: str
    pic: bool
    includes: tuple[str, ...]


class Seen(NamedTuple):
    """A module and its shard. ``lasting``: whether what was found may be remembered by the file's stamps."""

    module: Module
    shard: Shard
    lasting: bool


class Wanted(NamedTuple):
    """A module to look at. ``known``: what was found of it before, so that only its shard is read."""

    name: str
    place: Place
    shard: str
    known: Module | None


def look_at(wanted: list[Wanted]) -> tuple[list[Seen], float]:
    """Look at some modules: what they are, and the CPU seconds that it took.

    :raises Undistributable: when one cannot be understood, or is not there.
    """
    begun = time.thread_time()
    found = [_look(one) for one in wanted]
    return found, time.thread_time() - begun


def _look(wanted: Wanted) -> Seen:
    try:
        module, lasting = wanted.known, False
        if module is None:
            begun = time.time_ns()
            data = wanted.place.read()
            triple, pic = code_flags(data, wanted.name)
            includes = included_names(data, wanted.name) if may_include(data) else []
            module = Module(digest_of(data), len(data), triple, pic, tuple(includes))
            lasting = wanted.place.whole and begun - _youngest(wanted.place.path) > _TOO_YOUNG
        return Seen(module, canonical_shard(Path(wanted.shard).read_bytes(), wanted.name), lasting)
    except (MalformedObject, Uncacheable) as error:
        raise Undistributable(str(error)) from error
    except OSError as error:
        raise Undistributable(f"cannot read {error.filename}: {error.strerror}") from error


def _youngest(path: str) -> int:
    status = os.stat(path)
    return max(status.st_mtime_ns, status.st_ctime_ns)


class Memo:
    """What the last link of the same output found, by file. ``path`` None: nothing is kept."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._known: dict[str, list[object]] = {}
        self._used: dict[str, list[object]] = {}
        self._fresh = False
        if path is not None:
            try:
                known = json.loads(path.read_text())
            except (OSError, ValueError):
                return  # Everything is looked at anew.
            self._known = known if isinstance(known, dict) else {}

    def module(self, place: Place) -> Module | None:
        """What is known of the module there; None when the file has changed since, or was never seen."""
        known = self._known.get(place.path)
        if known is None or not place.whole:
            return None
        match known:
            case [list(stamps), str(sha256), int(size), str(triple), bool(pic), list(includes)]:
                if stamps == _stamps(place.path):
                    self._used[place.path] = known
                    return Module(sha256, size, triple, pic, tuple(map(str, includes)))
        return None

    def keep(self, place: Place, module: Module) -> None:
        """Remember what was found."""
        if self._path is not None:
            stamps = _stamps(place.path)
            if stamps is not None:
                self._used[place.path] = [stamps, *module]
                self._fresh = True

    def save(self) -> None:
        """For the next link."""
        if self._path is not None and self._fresh:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(self._path, json.dumps(self._used))


def _stamps(path: str) -> list[int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return [status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]


class Helpers:
    """Processes that look at modules. A context manager.

    They are forked, which is safe as long as this process has one thread: submit something before others begin.
    """

    def __init__(self, modules: int) -> None:
        self.count = min(_HELPERS, usable_cpus(), modules // _WORTH_A_HELPER)
        self._pool: Executor | None = None
        #: Pieces of work that are under way at once, and modules in one of them.
        self.window, self.chunk = (4 * self.count, 8) if self.count else (1, 1)

    def __enter__(self) -> Helpers:
        if self.count:
            self._pool = ProcessPoolExecutor(
                self.count,
                multiprocessing.get_context("fork"),
                initializer=_begin_helper,
                initargs=(os.getpid(),),
            )
        return self

    def submit(self, work: Callable[[W], R], on: W) -> Future[R]:
        """Have something done by a helper, or at once when there are none."""
        if self._pool is not None:
            later = SignalsLater()  # The first one forks.
            try:
                return self._pool.submit(work, on)
            finally:
                later.now()
        future: Future[R] = Future()
        try:
            future.set_result(work(on))
        except Exception as error:  # noqa: BLE001 - it is raised again where the result is asked for
            future.set_exception(error)
        return future

    def __exit__(self, *exc: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)


def _begin_helper(parent: int) -> None:
    """A helper ends with its parent, however that ends; an interrupt is the parent's to see to."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    die_with_parent(signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
