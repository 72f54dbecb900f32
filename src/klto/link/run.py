"""Run one LTO link: take a share of the build's jobs, start the linker, watch it, measure it, and go on after a
lack of memory with fewer backends."""

from __future__ import annotations

import os
import resource
import signal
import time

from klto.kernel.jobserver import ENV_JOBS, ENV_PATH, Tokens
from klto.link import journal
from klto.link.ahead import Ahead
from klto.link.cached import CACHE_TROUBLE, ENV_CACHE, ENV_WHOLE, CachedLink, note
from klto.link.linker import INPUTS, MEMORY, REFUSED, TIMEOUT, Ended, Linker, stopped_by
from klto.link.memory import Budget, budget_of, estimate, remember
from klto.link.output import STDERR
from klto.link.tasks import InferredTasks, Tasks, Watch, tasks_in
from klto.units import size as human

TYPE_CHECKING = False
if TYPE_CHECKING:
    from klto.link.hooks import Running
    from klto.link.inputs import Inputs, Module
    from klto.link.request import LinkRequest
    from klto.link.store import View

#: Seconds to wait, for each byte of bitcode, for jobs that compilers still hold: a link cannot take more of them
#: once it runs. 23 MB of an x86_64 6.12 kernel's bitcode take 56 s of CPU, so this is 4 % of a link's work; and
#: at most three seconds, since compile jobs end in one or two.
_PATIENCE_PER_BYTE, _MOST_PATIENCE = 0.1 / 1e6, 3.0

#: Bytes: LLVM ends the link when it cannot write a cache entry, and objects of modules are smaller than this.
_LEAST_FREE = 16 << 20

#: lld's options for its own parallelism (lld/ELF/Options.td): given by the caller, they are left alone.
_PARALLEL_OPTIONS = ("threads", "thinlto-jobs", "no-threads", "plugin-opt=jobs")

#: The environment variable with the seconds after which a backend that gets nowhere is ended; 0: never.
ENV_MODULE_TIMEOUT = "KLTO_MODULE_TIMEOUT"
DEFAULT_MODULE_TIMEOUT = 600.0

#: The environment variable that says to keep the names of promoted locals, and the options for it (LLVM's
#: llvm/lib/Transforms/Utils/FunctionImportUtils.cpp; releases up to 22 do not have it: ask the linker).
ENV_KEEP_NAMES = "KLTO_KEEP_NAMES"
KEEP_NAMES_OPTIONS = ("-mllvm", "-always-rename-promoted-locals=false")


#: The environment variable that names a cluster for backends (klto.cluster.address); empty or absent: none.
ENV_CLUSTER = "KLTO_CLUSTER"

#: Modules of a link that is worth the seconds it takes to reach a cluster. Smaller kernel modules' links are done
#: here, beside each other, under make's own -j.
LEAST_FOR_CLUSTER = 16


class Link:
    """A link to be done: the linker, its arguments, what they mean, and what klto may use for it."""

    def __init__(self, linker: str, arguments: list[str], request: LinkRequest, inputs: Inputs) -> None:
        self.linker, self.arguments, self.request, self.inputs = linker, arguments, request, inputs
        self.root = os.environ.get(ENV_CACHE, "")
        self.module_timeout = float(os.environ.get(ENV_MODULE_TIMEOUT) or DEFAULT_MODULE_TIMEOUT)
        self.budget: Budget = budget_of(os.environ)
        self.full = not inputs.thin
        self.jobs = 1
        self.attempts = 0
        #: How many of them ended because the linker had to be given other inputs.
        self.restarts = 0
        self.begun = time.monotonic()
        #: What may yet refuse the link while the linker runs.
        self.before: Running | None = None

    def parallel(self) -> list[str]:
        """Options for the number of backends at once, and for the linker's own trace."""
        tracing = _tracing(self.request)
        if self.request.sets(*_PARALLEL_OPTIONS):
            return tracing
        return [*tracing, f"--threads={self.jobs}", f"--thinlto-jobs={self.jobs}"]


def run_link(
    linker: str, arguments: list[str], request: LinkRequest, inputs: Inputs, before: Running | None = None
) -> int:
    """Run the real linker on what was asked, with the link cache if there is one, and journal it.

    :param before: runs beside the linker and ends it by failing. Where memory is limited, the linker waits for it.
    :returns: its status; negative for a signal.
    """
    link = Link(linker, arguments, request, inputs)
    if (
        before is not None
        and (link.budget.limit is not None or os.environ.get(ENV_CLUSTER))
        and before.wait()
    ):
        return 1
    link.before = before
    tokens = Tokens(os.environ.get(ENV_PATH))
    try:
        # One module is one backend: more jobs than modules would idle.
        wanted = min(int(os.environ.get(ENV_JOBS, "1")), inputs.bitcode)
        wanted = link.budget.jobs_for(inputs, link.full, wanted)
        if link.budget.hopeless:
            note(f"{request.output} {link.budget.hopeless}")
            return 1
        patience = min(inputs.bitcode_bytes * _PATIENCE_PER_BYTE, _MOST_PATIENCE)
        link.jobs = 1 + tokens.acquire(wanted - 1, patience)
        if os.environ.get(ENV_CLUSTER) and inputs.bitcode >= LEAST_FOR_CLUSTER:
            from klto.link.elsewhere import run_on_cluster  # Late: few links go to a cluster.

            returncode = run_on_cluster(link)
            if returncode is not None:
                return returncode
        if link.root:
            returncode = _run_cached(link)
            if returncode is not None:
                return returncode
        return _run_plain(link)
    finally:
        tokens.release()


#: The environment variable that names the file for lld's own trace of the vmlinux.o link; and what is too short
#: to be in it, in microseconds: a kernel's backends run two million passes.
ENV_TIME_TRACE, _TRACE_GRANULARITY = "KLTO_TIME_TRACE", 5000

#: Its name in the build dir's ``.klto``.
TIME_TRACE = "time-trace.json"


def _tracing(request: LinkRequest) -> list[str]:
    path = os.environ.get(ENV_TIME_TRACE)
    if not path or os.path.basename(request.output) != "vmlinux.o" or request.sets("time-trace"):
        return []
    return [f"--time-trace={path}", f"--time-trace-granularity={_TRACE_GRANULARITY}"]


def _run_plain(link: Link) -> int:
    """Without the cache: nothing is kept between attempts, so only fewer backends help against a lack of memory."""
    while True:
        ended = _attempt(link, [link.linker, *link.arguments], None)
        again = _may_go_on(link, ended) and link.jobs > 1
        _journal_end(link, ended, again)
        if not again:
            _explain_memory(link, ended)
            if (
                ended.returncode != 0
                and ended.cause != REFUSED
                and stopped_by() is None
                and not ended.out_of_memory
            ):
                from klto.link.blame import blame_unseen  # Late: only a failing link needs it.

                blame_unseen(link, ended)
            return ended.returncode
        _fewer(link, ended)


def _run_cached(link: Link) -> int | None:
    """The link with the cache; None when it failed for the cache's sake and is to be done without."""
    try:
        whole = bool(os.environ.get(ENV_WHOLE))
        with CachedLink(
            link.root, link.linker, link.arguments, link.request, link.inputs, whole=whole, jobs=link.jobs
        ) as cached:
            if cached.done:
                refused = _is_refused(link)
                _journal_whole(link, refused)
                return int(refused)
            if cached.view is None:
                return None
            ended, failed = _attempts(link, cached)
            signal_number = stopped_by()
            if signal_number is not None and (cached.unsettled or ended.cause == INPUTS):
                return -signal_number
            if ended.returncode == 0 and not ended.said and signal_number is None:
                cached.keep_whole()
    except CACHE_TROUBLE as problem:
        signal_number = stopped_by()
        if signal_number is not None:
            return -signal_number
        note(f"{link.request.output} is linked again without the cache: {problem}")
        return None
    if ended.returncode == 0 or ended.cause == REFUSED or stopped_by() is not None:
        return ended.returncode
    if ended.out_of_memory:
        _explain_memory(link, ended)
    elif _is_full(link.root):
        note(f"no space for the link cache in {link.root}: {link.request.output} is linked again without it")
        return None
    elif failed is not None:
        from klto.link.blame import blame  # Late: only a failing link needs it.

        blame(link, ended, failed)
    return ended.returncode


def _attempts(link: Link, cached: CachedLink) -> tuple[Ended, list[Module] | None]:
    """Run the linker until it is done or cannot go on: (how it ended, the modules that are suspect when it can be a
    backend's failure)."""
    view = cached.view
    assert view is not None
    while True:
        before = sum(1 for _ in view.generated())
        # To follow them costs time; when a link has gone wrong once each backend must be known.
        follow = link.attempts > link.restarts or not cached.first or link.request.sets(*_PARALLEL_OPTIONS)
        name, inferred = f"remarks-{link.attempts}", 0 if follow else link.jobs
        tasks = tasks_in(view, link.inputs, link.request, name, inferred=inferred)
        options = tasks.options if tasks else []
        ended = _attempt(link, [link.linker, *cached.arguments, *options], cached, tasks)
        if _must_begin_again(link, ended, cached, tasks):
            continue
        suspects = _judge(link, view, ended, tasks)
        unclear = ended.cause == TIMEOUT and ended.returncode != 0 and stopped_by() is None
        if unclear and tasks is not None and not tasks.followed:
            _journal_end(link, ended, True, view, tasks)
            note(
                f"{link.request.output}: no module was finished for {link.module_timeout:g} s; goes on"
                " and follows each"
            )
            continue
        further = sum(1 for _ in view.generated()) > before
        again = _may_go_on(link, ended) and (link.jobs > 1 or further)
        _journal_end(link, ended, again, view, tasks)
        if not again:
            return ended, suspects
        if link.jobs > 1:
            _fewer(link, ended)
        else:
            note(f"{link.request.output}: {_reached(ended)}; goes on with the modules that are left")


def _must_begin_again(link: Link, ended: Ended, cached: CachedLink, tasks: Tasks | None) -> bool:
    """Whether the linker must be called once more because of what was found out about its inputs while it ran.

    :raises Uncacheable: when it must, and without the cache; and others of ``CACHE_TROUBLE``.
    """
    own = ended.returncode != 0 and ended.cause != INPUTS and not ended.out_of_memory
    if own or stopped_by() is not None:
        # It has failed on its own merits, or nobody waits for it.
        cached.settle_if_known()
        return False
    again = True
    try:
        again = not cached.settle() or ended.cause == INPUTS
        again = again and stopped_by() is None
    finally:
        if again:
            link.restarts += 1
            _journal_end(link, ended, True, cached.view, tasks)
    return again


def _judge(link: Link, view: View, ended: Ended, tasks: Tasks | None) -> list[Module] | None:
    """Remove what a failed run must not leave in the view; suspects when a backend can be to blame, else None."""
    view.judged = True
    if ended.returncode == 0 or (ended.cause == REFUSED and ended.first_error is None):
        return None
    from klto.link.blame import distrust, suspects_of  # Late: only a failing link needs it.

    backends = distrust(view, ended, tasks, link.inputs.modules)
    suspects = suspects_of(ended, tasks, link.inputs.modules)
    view.drop_wrong()
    return suspects if backends else None


def _may_go_on(link: Link, ended: Ended) -> bool:
    """Whether another run can help: it was ended for want of memory and had no error to report.

    Full LTO is one backend, however many jobs it is given.
    """
    return ended.out_of_memory and ended.first_error is None and stopped_by() is None and not link.full


def _fewer(link: Link, ended: Ended) -> None:
    link.jobs = max(1, link.jobs // 2)
    backends = "one backend" if link.jobs == 1 else f"{link.jobs} backends"
    note(f"{link.request.output}: {_reached(ended)}; goes on with {backends} at once")


def _reached(ended: Ended) -> str:
    why = "its memory budget" if ended.cause == MEMORY else "SIGKILL, most likely for want of memory,"
    return f"the linker was ended by {why} at {human(ended.peak_bytes)}"


def _explain_memory(link: Link, ended: Ended) -> None:
    if ended.out_of_memory:
        note(
            f"{link.request.output}: {_reached(ended)} with one backend. {link.budget.advice(ended.peak_bytes)}"
        )
        if link.full:
            note("full LTO holds the whole kernel in memory at once: --lto thin needs far less")


def _attempt(link: Link, argv: list[str], cached: CachedLink | None, tasks: Tasks | None = None) -> Ended:
    """Run the linker once, with events around it."""
    link.attempts += 1
    view = cached.view if cached is not None else None
    watch = Watch(tasks, link.module_timeout) if tasks and link.module_timeout > 0 else None
    linker = Linker(
        [*argv, *link.parallel()],
        os.path.join(view.folder, STDERR) if view is not None else None,
        link.budget.limit,
        renamed=cached.renamed if cached else None,
        ends={
            **({TIMEOUT: watch.stalled} if watch else {}),
            **({REFUSED: link.before.failed} if link.before else {}),
            **({INPUTS: cached.unsuitable} if cached else {}),
        },
        when_writing=Ahead(view, tasks).look if view is not None else None,
    )
    if isinstance(tasks, InferredTasks):
        tasks.linker = linker
    inputs = link.inputs
    _journal_start(
        link,
        linker.pid,
        memory_estimate=estimate(inputs, link.full, link.jobs),
        view=view.objects if view is not None else None,
    )
    ended = linker.wait()
    if _is_refused(link):
        ended.cause, ended.returncode = REFUSED, ended.returncode or 1
    # With most of it from the cache a link says nothing about the next cold one.
    if (
        ended.returncode == 0
        and link.attempts - link.restarts == 1
        and (tasks is None or 2 * len(tasks.finished()) > inputs.bitcode)
    ):
        remember(inputs, link.full, link.jobs, ended.peak_bytes)
    return ended


def _journal_start(link: Link, pid: int, **more: object) -> None:
    inputs = link.inputs
    journal.append(
        "link-started",
        output=link.request.output,
        directory=os.getcwd(),
        pid=pid,
        attempt=link.attempts,
        jobs=link.jobs,
        full=link.full,
        bitcode_inputs=inputs.bitcode,
        native_inputs=inputs.native,
        bitcode_bytes=inputs.bitcode_bytes,
        memory_available=link.budget.available,
        memory_budget=link.budget.limit,
        **more,
    )


def _journal_end(
    link: Link, ended: Ended, again: bool, view: View | None = None, tasks: Tasks | None = None
) -> None:
    journal.append(
        "link-finished",
        output=link.request.output,
        returncode=ended.returncode,
        wall_seconds=ended.wall_seconds,
        cpu_seconds=ended.cpu_seconds,
        peak_bytes=ended.peak_bytes,
        stopped_by=ended.stopped_by,
        cause=ended.cause,
        again=again,
        generated=len(tasks.started()) if tasks else sum(1 for _ in view.generated()) if view else None,
        modules=_modules(link, tasks) if ended.returncode == 0 else [],
    )


def _is_refused(link: Link) -> bool:
    """Wait for what ran beside the linker: whether it failed."""
    return link.before is not None and link.before.wait() != 0


def _journal_whole(link: Link, refused: bool) -> None:
    """The output of an equal link was taken: no linker ran, and nothing was generated."""
    link.attempts, link.jobs = 1, 1
    _journal_start(link, os.getpid())
    used = resource.getrusage(resource.RUSAGE_SELF)
    journal.append(
        "link-finished",
        output=link.request.output,
        returncode=int(refused),
        cause=REFUSED if refused else "",
        wall_seconds=time.monotonic() - link.begun,
        cpu_seconds=used.ru_utime + used.ru_stime,
        peak_bytes=used.ru_maxrss * 1024,  # KiB on Linux, getrusage(2)
        generated=0,
        whole=True,
        modules=[
            {"name": m.name, "seconds": None, "bytes_in": m.size, "bytes_out": None, "cached": True}
            for m in link.inputs.modules
        ],
    )


def _modules(link: Link, tasks: Tasks | None) -> list[dict[str, object]]:
    """What became of each module, for the record."""
    done = tasks.sort_out()[0] if tasks else {}
    started = tasks.started() if tasks else {}
    found: list[dict[str, object]] = []
    for number, module in enumerate(link.inputs.modules, start=1):
        times = done[number][0] if number in done else None
        found.append(
            {
                "name": module.name,
                "seconds": round(times.seconds, 3) if times else None,
                "bytes_in": module.size,
                "bytes_out": times.bytes_out if times else None,
                "cached": tasks is not None and number not in started,
                "start": round(started[number], 3) if number in started else None,
            }
        )
    return found


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


def ends_like(returncode: int) -> None:
    """End this process the way the linker ended, so that make says the same ("Killed")."""
    if -returncode not in (signal.SIGKILL, signal.SIGSTOP):
        signal.signal(-returncode, signal.SIG_DFL)
    os.kill(os.getpid(), -returncode)
