"""Run one LTO link: take a share of the build's jobs, start the linker, measure it."""

from __future__ import annotations

import os
import signal
import time

from klto.kernel.jobserver import ENV_JOBS, ENV_PATH, Tokens
from klto.link import journal
from klto.link.cached import ENV_CACHE, CachedLink, note

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType

    from klto.link.inputs import Inputs
    from klto.link.request import LinkRequest
    from klto.link.store import View

#: Seconds to wait, for each byte of bitcode, for jobs that compilers still hold: a link cannot take more of them
#: once it runs. 23 MB of an x86_64 6.12 kernel's bitcode take 56 s of CPU, so this is 4 % of a link's work; and
#: at most three seconds, since compile jobs end in one or two.
_PATIENCE_PER_BYTE, _MOST_PATIENCE = 0.1 / 1e6, 3.0

#: Bytes: LLVM ends the link when it cannot write a cache entry, and objects of modules are smaller than this.
_LEAST_FREE = 16 << 20

#: The environment variable that names a cluster for backends (klto.cluster.address); empty or absent: none.
ENV_CLUSTER = "KLTO_CLUSTER"

#: Modules of a link that is worth the second it takes to reach a cluster. Links of smaller kernel modules are done
#: here, beside each other, under make's own -j.
LEAST_FOR_CLUSTER = 16

#: How klto.cluster.__main__ says that a link can only be done here (EX_UNAVAILABLE of sysexits.h).
NOT_DISTRIBUTED = 69

#: lld's options for its own parallelism (lld/ELF/Options.td): given by the caller, they are left alone.
_PARALLEL_OPTIONS = ("threads", "thinlto-jobs", "no-threads", "plugin-opt=jobs")


class LinkResult:
    """``returncode`` is negative for a signal; ``peak_bytes`` is the linker's largest resident set."""

    __slots__ = ("cpu_seconds", "peak_bytes", "returncode", "wall_seconds")

    def __init__(self, returncode: int, wall_seconds: float, cpu_seconds: float, peak_bytes: int) -> None:
        self.returncode = returncode
        self.wall_seconds = wall_seconds
        self.cpu_seconds = cpu_seconds
        self.peak_bytes = peak_bytes


def run_link(linker: str, arguments: list[str], request: LinkRequest, inputs: Inputs) -> LinkResult:
    """Run the real linker on what was asked, with the link cache if there is one, and journal it."""
    tokens = Tokens(os.environ.get(ENV_PATH))
    try:
        # One module is one backend: more jobs than modules would idle.
        wanted = min(int(os.environ.get(ENV_JOBS, "1")), inputs.bitcode) - 1
        patience = min(inputs.bitcode_bytes * _PATIENCE_PER_BYTE, _MOST_PATIENCE)
        jobs = 1 + tokens.acquire(wanted, patience)
        parallel = [] if request.sets(*_PARALLEL_OPTIONS) else [f"--threads={jobs}", f"--thinlto-jobs={jobs}"]
        root = os.environ.get(ENV_CACHE)
        if os.environ.get(ENV_CLUSTER) and inputs.bitcode >= LEAST_FOR_CLUSTER:
            distributed = _run_on_cluster(linker, arguments, request, inputs, jobs)
            if distributed.returncode != NOT_DISTRIBUTED:
                return distributed
        if root:
            result = _run_cached(root, linker, arguments, parallel, request, inputs, jobs)
            if result is not None:
                return result
        return _run([linker, *arguments, *parallel], request, inputs, jobs)
    finally:
        tokens.release()


def _run_cached(
    root: str,
    linker: str,
    arguments: list[str],
    parallel: list[str],
    request: LinkRequest,
    inputs: Inputs,
    jobs: int,
) -> LinkResult | None:
    """The link with the cache; None when it failed for the cache's sake and is to be done without."""
    with CachedLink(root, linker, arguments, request) as cached:
        result = _run([linker, *cached.arguments, *parallel], request, inputs, jobs, cached.view)
        failed = result.returncode > 0 or result.returncode == -signal.SIGABRT
        if failed and cached.view is not None and _is_full(root):
            note(f"no space for the link cache in {root}: {request.output} is linked again without it")
            return None
    return result


def _run_on_cluster(
    linker: str, arguments: list[str], request: LinkRequest, inputs: Inputs, jobs: int
) -> LinkResult:
    """The link with backends on a cluster: another process, since this one has no site packages."""
    import sys
    import tempfile

    program = os.path.join(
        os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "cluster", "__main__.py"
    )
    with tempfile.NamedTemporaryFile(prefix="klto-use-") as use:
        argv = [sys.executable, "-P", program, use.name, str(jobs), linker, *arguments]
        return _run(argv, request, inputs, jobs, use=use.name)


def _is_full(folder: str) -> bool:
    """Whether the cache cannot take a module's object: no space, no quota, read-only. Found by trying."""
    trial = os.path.join(folder, f"trial-{os.getpid()}")
    try:
        descriptor = os.open(trial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError:
        return True
    try:
        os.posix_fallocate(descriptor, 0, _LEAST_FREE)
    except OSError:
        return True
    finally:
        os.close(descriptor)
        os.unlink(trial)
    return False


def _run(
    argv: list[str],
    request: LinkRequest,
    inputs: Inputs,
    jobs: int,
    view: View | None = None,
    use: str | None = None,
) -> LinkResult:
    # Not klto.process: the linker stays in make's process group, so that whatever ends the build ends it too.
    begun = time.monotonic()
    pid = os.posix_spawn(argv[0], argv, os.environ)
    forwarded = _forward_signals(pid)
    journal.append(
        "link-started",
        output=request.output,
        directory=os.getcwd(),
        pid=pid,
        jobs=jobs,
        bitcode_inputs=inputs.bitcode,
        native_inputs=inputs.native,
        bitcode_bytes=inputs.bitcode_bytes,
        memory_available=_memory_available(),
        view=view.objects if view is not None else None,
    )
    _, status, used = os.wait4(pid, 0)
    result = LinkResult(
        os.waitstatus_to_exitcode(status),
        time.monotonic() - begun,
        used.ru_utime + used.ru_stime,
        used.ru_maxrss * 1024,  # KiB on Linux, getrusage(2)
    )
    journal.append(
        "link-finished",
        output=request.output,
        returncode=result.returncode,
        wall_seconds=result.wall_seconds,
        cpu_seconds=result.cpu_seconds,
        peak_bytes=result.peak_bytes,
        stopped_by=forwarded[0] if forwarded else None,
        generated=sum(1 for _ in view.generated()) if view is not None else None,
        **_cluster_use(use),
    )
    return result


def _cluster_use(file: str | None) -> dict[str, object]:
    """What klto.cluster has written about the link, for the journal."""
    if file is None:
        return {}
    import json

    try:
        with open(file, encoding="utf-8") as stream:
            return {"cluster": json.load(stream)}
    except (OSError, ValueError):
        return {}  # It was killed before it wrote anything.


def _forward_signals(pid: int) -> list[int]:
    """Pass TERM, INT and HUP on to the linker; the list fills with the ones that came."""
    came: list[int] = []

    def forward(number: int, frame: FrameType | None) -> None:
        came.append(number)
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return  # It has just ended by itself.

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
            signal.signal(number, forward)
    return came


def _memory_available() -> int:
    """MemAvailable of /proc/meminfo in bytes."""
    with open("/proc/meminfo") as stream:
        for line in stream:
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return 0
