"""One distributed link: thin link, backends, final link.

Jobs are made longest first and leave as soon as they are made; what the final link needs besides objects is found
out while backends run.
"""

from __future__ import annotations

import hashlib
import os
import resource
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from klto import process
from klto.cluster.backend import LocalFiles
from klto.cluster.feed import Feed
from klto.cluster.final_link import FinalLink, plan_final_link, symbol_names, write_names
from klto.cluster.jobs import Preparation
from klto.cluster.modules import Helpers, Memo
from klto.cluster.options import link_options
from klto.cluster.results import Results
from klto.cluster.thin_link import thin_link
from klto.cluster.times import Times
from klto.cluster.toolchain import compiler_of_linker

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Sequence
    from concurrent.futures import Future

    from klto.cluster.job import Job
    from klto.cluster.local import Runner
    from klto.cluster.toolchain import Compiler
    from klto.cluster.use import Use
    from klto.link.request import LinkRequest

#: Inputs whose symbols are read in one piece of work.
_INPUTS_AT_ONCE = 32


def distributed_link(
    linker: str,
    arguments: list[str],
    request: LinkRequest,
    use: Use,
    cache: Path | None,
    make_runner: Callable[[Compiler, Use], Runner],
) -> process.Finished:
    """Link; the final linker's result.

    :param make_runner: called when there is something to run.
    :raises Undistributable: when only the linker itself can do it; no output has been written then.
    :raises BuildError: a backend failed on its own merits.
    :raises klto.process.CommandFailed: the thin link failed.
    """
    compiler = compiler_of_linker(linker)
    options = link_options(request)
    scratch = Path(tempfile.mkdtemp(prefix="klto-link-"))
    try:
        thin = thin_link(linker, arguments, request, scratch)
        use.thin_link_seconds = thin.usage.wall_seconds
        begun, cpu = time.monotonic(), _cpu_seconds()
        places = {name: thin.sources[name].place for name in thin.order}
        # Not the folder: a link in a new one is very much like the same link in another.
        times = Times(cache, "\0".join((request.output, *thin.order[:1])))
        order = sorted(thin.order, key=lambda name: times.expected(name, places[name].size), reverse=True)
        files, memo = LocalFiles(), Memo(_memo(cache, request))
        with Helpers(len(order)) as helpers:
            preparation = Preparation(
                order, places, thin.shards, options, compiler.identity, files, helpers, memo, use
            )
            preparation.start()
            plan = plan_final_link(request, thin.sources, scratch)
            symbols = _Symbols(plan, helpers, use)
            objects = run_jobs(
                symbols.read_after(preparation.jobs()), thin.order, files, times, scratch, cache, use,
                lambda: make_runner(compiler, use), begun,
            )  # fmt: skip
            naming = symbols.write(scratch / "symbols")
        use.client_cpu_seconds += _cpu_seconds() - cpu
        finished = process.run([linker, *naming, *plan.arguments, *map(str, objects)], check=False)
        use.final_link_seconds = finished.usage.wall_seconds
        sys.stderr.write(finished.stderr)
        return finished
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


class _Symbols:
    """Reads the symbols that the final link has to be told of."""

    def __init__(self, plan: FinalLink, helpers: Helpers, use: Use) -> None:
        self._inputs, self._helpers, self._use = plan.inputs, helpers, use
        self._parts: list[Future[tuple[bytes, float]]] = []

    def read_after(self, jobs: Iterable[Job]) -> Generator[Job]:
        """Pass jobs on; when the last one is made the helpers are free for this."""
        yield from jobs
        for first in range(0, len(self._inputs), _INPUTS_AT_ONCE):
            inputs = list(self._inputs[first : first + _INPUTS_AT_ONCE])
            self._parts.append(self._helpers.submit(symbol_names, inputs))

    def write(self, path: Path) -> list[str]:
        """Wait for the symbols; the argument that names them."""
        if not self._inputs:
            return []
        parts = [part.result() for part in self._parts]
        self._use.helper_cpu_seconds += sum(seconds for _, seconds in parts)
        write_names((names for names, _ in parts), path)
        return [f"@{path}"]


def _cpu_seconds() -> float:
    """CPU seconds of this process alone."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def run_jobs(
    jobs: Generator[Job],
    names: Sequence[str],
    files: LocalFiles,
    times: Times,
    scratch: Path,
    cache: Path | None,
    use: Use,
    make_runner: Callable[[], Runner],
    begun: float,
) -> list[Path]:
    """The objects of jobs, from the cache or from backends.

    :param jobs: one for each of ``names``, those that are expected to take longest first.
    :returns: the objects' files in the order of ``names``.
    """
    folder = scratch / "objects"
    folder.mkdir()
    targets = {name: folder / f"{number:06d}.o" for number, name in enumerate(names)}
    results = Results(cache)
    use.modules = len(names)

    def missing() -> Generator[Job]:
        for job in jobs:
            if results.find(job, targets[job.name]):
                use.cached += 1
            else:
                yield job
        use.prepare_seconds = time.monotonic() - begun

    def deliver(job: Job, data: bytes, seconds: float) -> None:
        targets[job.name].write_bytes(data)
        results.keep(job, data)
        times.took(job.name, seconds)

    try:
        with Feed(missing()) as feed:
            if feed.any():
                started, cpu = time.monotonic(), time.thread_time()
                runner = make_runner()
                use.client_cpu_seconds -= time.thread_time() - cpu
                runner.run(feed, files, deliver)
                use.backend_seconds = time.monotonic() - started
    finally:
        results.close()
        times.save()
    return list(targets.values())


def _memo(cache: Path | None, request: LinkRequest) -> Path | None:
    """Where it is remembered what the modules of this link are."""
    if cache is None:
        return None
    place = f"{os.getcwd()}\0{request.output}".encode("utf-8", "surrogateescape")
    return cache / "modules" / f"{hashlib.sha256(place).hexdigest()}.json"
