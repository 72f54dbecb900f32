"""Makes the jobs of a link: which files each backend needs, by content, and its options.

Jobs come in the order asked for, each as soon as its module and those that it imports from have been looked at.
"""

from __future__ import annotations

import os
from collections import deque
from concurrent.futures import FIRST_COMPLETED, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import TYPE_CHECKING

from klto.cluster.job import Blob, Job, digest_of, inside
from klto.cluster.modules import Seen, Wanted, look_at
from klto.cluster.options import LinkOptions, Undistributable
from klto.cluster.shard import canonical_name

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
    from concurrent.futures import Future

    from klto.cluster.backend import LocalFiles
    from klto.cluster.modules import Helpers, Memo, Module, Place
    from klto.cluster.shard import Shard
    from klto.cluster.use import Use

#: How a job's folder calls the shard.
_INDEX = "index.thinlto.bc"
#: Files that included files include are looked for to this depth (as klto.link.includes does).
_MAX_DEPTH = 16


class Preparation:
    """Makes one job for each module.

    :param order: the linker's names, the modules whose jobs should come first at its beginning.
    :param places: where each module lies. ``shards``: its shard as the thin link wrote it.
    :param files: gets the content that jobs need.
    """

    def __init__(
        self,
        order: Sequence[str],
        places: Mapping[str, Place],
        shards: Mapping[str, Path],
        options: LinkOptions,
        toolchain: str,
        files: LocalFiles,
        helpers: Helpers,
        memo: Memo,
        use: Use,
    ) -> None:
        self._places, self._shards = places, shards
        self._options, self._toolchain, self._files = options, toolchain, files
        self._helpers, self._memo, self._use = helpers, memo, use
        self._modules: dict[str, Module] = {}
        self._todo, self._urgent = deque(order), deque[str]()
        self._asked: set[str] = set()
        self._running: dict[Future[tuple[list[Seen], float]], list[str]] = {}
        #: Modules whose imports are not all known yet, by what they wait for, and for how many.
        self._waiting: dict[str, list[str]] = {}
        self._lacking: dict[str, tuple[Shard, int]] = {}

    def start(self) -> None:
        """Begin; from a process with one thread (:class:`klto.cluster.modules.Helpers`)."""
        while len(self._running) < self._helpers.window:
            names = self._next_names()
            if not names:
                return
            wanted = [
                Wanted(name, place, str(self._shards[name]), self._memo.module(place))
                for name in names
                for place in [self._places[name]]
            ]
            self._running[self._helpers.submit(look_at, wanted)] = names

    def _next_names(self) -> list[str]:
        """What to look at next: first what others wait for."""
        names: list[str] = []
        while len(names) < self._helpers.chunk and (self._urgent or self._todo):
            name = (self._urgent or self._todo).popleft()
            if name not in self._asked:
                self._asked.add(name)
                names.append(name)
        return names

    def jobs(self) -> Generator[Job]:
        """All jobs.

        :raises Undistributable: when a module cannot be understood or needs what cannot travel.
        """
        while True:
            self.start()
            if not self._running:
                break
            done = wait(self._running, return_when=FIRST_COMPLETED).done
            for future in done:
                names = self._running.pop(future)
                try:
                    found, seconds = future.result()
                except BrokenProcessPool as error:
                    raise Undistributable("a process that looked at its modules was killed") from error
                self._use.helper_cpu_seconds += seconds
                for name, seen in zip(names, found, strict=True):
                    yield from self._take(name, seen)
        self._memo.save()

    def _take(self, name: str, seen: Seen) -> Iterator[Job]:
        """A module has been looked at: its job if that can be made now, and those that have waited for it."""
        module, shard, lasting = seen
        place = self._places[name]
        if lasting:
            self._memo.keep(place, module)
        self._modules[name] = module
        self._files.add_place(module.sha256, place)
        if name not in shard.modules:
            raise Undistributable(f"the index of {name} does not mention it")
        missing = [other for other in shard.modules if other not in self._modules]
        for other in missing:
            if other not in self._places:
                raise Undistributable(f"{name} imports from {other}, which is no part of this link")
            self._waiting.setdefault(other, []).append(name)
        self._urgent.extend(missing)
        if missing:
            self._lacking[name] = (shard, len(missing))
        else:
            yield self._job(name, shard)
        for other in self._waiting.pop(name, ()):
            waiting, count = self._lacking[other]
            self._lacking[other] = (waiting, count - 1)
            if count == 1:
                del self._lacking[other]
                yield self._job(other, waiting)

    def _job(self, name: str, shard: Shard) -> Job:
        index = digest_of(shard.data)
        self._files.add_bytes(index, shard.data)
        modules = [self._modules[path] for path in shard.modules]
        blobs = [Blob(canonical_name(rank), module.sha256) for rank, module in enumerate(modules)]
        blobs.append(Blob(_INDEX, index))
        blobs += _included({path for module in modules for path in module.includes}, name, self._files)
        own = self._modules[name]
        return Job(
            name=name,
            toolchain=self._toolchain,
            options=self._options.of_module(own.triple, own.pic),
            module=shard.name_of(name),
            index=_INDEX,
            files=tuple(blobs),
        )


def _included(paths: Iterable[str], name: str, files: LocalFiles) -> list[Blob]:
    """The files that assembly includes, and those that they include, with the paths that it names them by."""
    from klto.objects.assembly import included_files

    found: dict[str, Blob] = {}
    todo = [(path, 0) for path in sorted(paths)]
    while todo:
        path, depth = todo.pop()
        if path in found or not os.path.isfile(path):
            continue  # A missing file is the compiler's to complain about.
        if not inside(path) or depth > _MAX_DEPTH:
            raise Undistributable(f"{name} includes {path}, which lies outside of the folder of the link")
        data = Path(path).read_bytes()
        sha256 = digest_of(data)
        files.add_bytes(sha256, data)
        found[path] = Blob(path, sha256)
        todo += [(include.path, depth + 1) for include in included_files(data) if include.path is not None]
    return list(found.values())
