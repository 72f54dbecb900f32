"""One distributed link: thin link, backends, final link."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from klto import process
from klto.cluster.backend import LocalFiles
from klto.cluster.final_link import final_arguments
from klto.cluster.jobs import Module, Modules, make_job
from klto.cluster.options import link_options
from klto.cluster.results import Results
from klto.cluster.thin_link import thin_link
from klto.cluster.times import Times
from klto.cluster.toolchain import compiler_of_linker

if TYPE_CHECKING:
    from collections.abc import Callable

    from klto.cluster.job import Job
    from klto.cluster.local import Runner
    from klto.cluster.toolchain import Compiler
    from klto.cluster.use import Use
    from klto.link.request import LinkRequest


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
    :raises Undistributable: when only the linker itself can do it; nothing has been written then.
    :raises BuildError: a backend failed on its own merits.
    :raises klto.process.CommandFailed: the thin link failed.
    """
    compiler = compiler_of_linker(linker)
    options = link_options(request)
    scratch = Path(tempfile.mkdtemp(prefix="klto-link-"))
    try:
        thin = thin_link(linker, arguments, request, scratch)
        use.thin_link_seconds = thin.usage.wall_seconds
        begun = time.monotonic()
        files = LocalFiles()
        modules = Modules(files, _memo(cache, request))

        def module_of(name: str) -> Module:
            source = thin.sources[name]
            return modules.add(name, source.read, source.path)

        jobs = [
            make_job(name, thin.shards[name].read_bytes(), module_of, options, compiler.identity, files)
            for name in thin.order
        ]
        modules.save()
        objects = run_jobs(
            jobs, files, lambda job: module_of(job.name).size, scratch, cache, use,
            lambda: make_runner(compiler, use), begun,
        )  # fmt: skip
        final = [linker, *final_arguments(request, thin.sources, objects, scratch)]
        finished = process.run(final, check=False)
        use.final_link_seconds = finished.usage.wall_seconds
        sys.stderr.write(finished.stderr)
        return finished
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def run_jobs(
    jobs: list[Job],
    files: LocalFiles,
    size_of: Callable[[Job], int],
    scratch: Path,
    cache: Path | None,
    use: Use,
    make_runner: Callable[[], Runner],
    begun: float,
) -> list[Path]:
    """The objects of jobs, in their order, from the cache or from backends.

    :param size_of: a job's bytes of bitcode. The jobs that are expected to take longest come first.
    """
    folder = scratch / "objects"
    folder.mkdir()
    targets = {id(job): folder / f"{number:06d}.o" for number, job in enumerate(jobs)}
    results, times = Results(cache), Times(cache, jobs)
    use.modules = len(jobs)
    todo = [job for job in jobs if not results.find(job, targets[id(job)])]
    use.cached = len(jobs) - len(todo)
    use.prepare_seconds = time.monotonic() - begun

    def deliver(job: Job, data: bytes, seconds: float) -> None:
        targets[id(job)].write_bytes(data)
        results.keep(job, data)
        times.took(job.name, seconds)

    if todo:
        started = time.monotonic()
        make_runner().run(
            sorted(todo, key=lambda job: times.expected(job.name, size_of(job)), reverse=True), files, deliver
        )
        use.backend_seconds = time.monotonic() - started
    results.close()
    times.save()
    return list(targets.values())


def _memo(cache: Path | None, request: LinkRequest) -> Path | None:
    """Where the modules' flags of this link are remembered."""
    if cache is None:
        return None
    import hashlib

    folder = cache / "modules"
    folder.mkdir(parents=True, exist_ok=True)
    place = f"{os.getcwd()}\0{request.output}".encode("utf-8", "surrogateescape")
    return folder / f"{hashlib.sha256(place).hexdigest()}.json"
