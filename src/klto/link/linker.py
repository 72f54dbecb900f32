"""Start the linker once and watch it: its memory, its words, whether its modules get anywhere."""

from __future__ import annotations

import os
import select
import signal
import time

from klto.link.output import Output

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import FrameType

#: Seconds between looks at the linker; between looks at its memory when that is limited; and when it has used so
#: much of what it may. A look takes some ten microseconds.
_LOOK, _LOOK_AT_MEMORY, _LOOK_CLOSELY, _CLOSE = 0.05, 0.01, 0.002, 0.75

#: The least and the largest share of a budget that is kept for growth between two looks. The kernel's own count
#: lags behind by some pages for each thread (SPLIT_RSS_COUNTING, mm/memory.c of 6.1; percpu counters of 6.12).
_MARGIN = (0.02, 0.05)

#: Why klto ends a linker: its memory; no module gets anywhere; a check of its inputs that ran beside it has failed;
#: it should have been given other inputs.
MEMORY, TIMEOUT, REFUSED, INPUTS = "memory", "timeout", "refused", "inputs"

#: Seconds between TERM and KILL.
_PATIENCE = 2.0

_PAGE = os.sysconf("SC_PAGE_SIZE")


class Ended:
    """How one run of the linker ended.

    :ivar returncode: negative for a signal.
    :ivar peak_bytes: its largest resident set.
    :ivar stopped_by: the signal that klto was sent and passed on, if any.
    :ivar cause: why klto itself ended it: ``memory``, ``timeout``, ``refused``, ``inputs``, or empty.
    :ivar said: what it said on its standard error.
    :ivar first_error: when its first error was seen (seconds since the epoch), None when there was none.
    """

    __slots__ = (
        "cause",
        "cpu_seconds",
        "first_error",
        "peak_bytes",
        "returncode",
        "said",
        "stopped_by",
        "wall_seconds",
    )

    def __init__(self) -> None:
        self.returncode = -1
        self.wall_seconds = self.cpu_seconds = 0.0
        self.peak_bytes = 0
        self.stopped_by: int | None = None
        self.cause = ""
        self.said = b""
        self.first_error: float | None = None

    @property
    def out_of_memory(self) -> bool:
        """Ended for want of memory: by klto's own watch, by the kernel (SIGKILL), or by its own words."""
        return self.stopped_by is None and (
            self.cause == MEMORY
            or (self.returncode == -signal.SIGKILL and not self.cause)
            or (
                self.returncode != 0
                and (b"LLVM ERROR: out of memory" in self.said or b"bad_alloc" in self.said)
            )
        )


#: The signal that klto was told to end by, if any; it counts for every linker from then on.
_stopped: list[int] = []


def stopped_by() -> int | None:
    """The signal that came while a linker ran or between two, None when there was none."""
    return _stopped[0] if _stopped else None


class Linker:
    """One run of the linker. Not klto.process: it stays in make's process group, so that whatever ends the build
    ends it too.

    :param stderr: the file for what it says; None: nowhere but on.
    :param budget: bytes that its resident set must not pass; None: no limit.
    :param write: where what it says goes; None: to this process's standard error.
    :param quiet: its standard output goes the same way.
    :param renamed: what stands in for an input, to the input's own name.
    :param ends: for each cause to end it what is asked now and then.
    :param when_writing: called now and then from the time on when it is ``winding_up``. Not where memory is limited:
        nothing may delay the looks at that.
    """

    def __init__(
        self,
        argv: list[str],
        stderr: str | None = None,
        budget: int | None = None,
        write: Callable[[bytes], object] | None = None,
        quiet: bool = False,
        renamed: Mapping[str, str] | None = None,
        ends: Mapping[str, Callable[[], bool]] | None = None,
        when_writing: Callable[[], object] | None = None,
    ) -> None:
        actions: list[tuple[int, int, int]] = []
        self._output = Output(stderr, write, renamed)
        self._budget, self._ends = budget, ends or {}
        self._when_writing, self._most_threads = when_writing if budget is None else None, 1
        #: When it last had more threads than before (seconds since the epoch): those of the backends are its last ones.
        self.working_since = time.time()
        #: It has had fewer threads than before: its backends have ended, and it writes its output.
        self.winding_up = False
        self._begun = time.monotonic()
        actions.append((os.POSIX_SPAWN_DUP2, self._output.descriptor, 2))
        if quiet:
            actions.append((os.POSIX_SPAWN_DUP2, self._output.descriptor, 1))
        self.pid = os.posix_spawn(argv[0], argv, os.environ, file_actions=actions)
        self._ended = Ended()
        self._kill_at = 0.0
        self._forward_signals()

    def wait(self) -> Ended:
        """Wait for it, watching. It has ended when this returns or raises."""
        try:
            return self._wait()
        except BaseException:
            if self.pid:
                os.kill(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)
                self.pid = 0
            raise

    def _wait(self) -> Ended:
        ended, before, looked = self._ended, 0, 0.0
        pidfd = os.pidfd_open(self.pid)
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        pause = _LOOK if self._budget is None else _LOOK_AT_MEMORY
        while not poll.poll(pause * 1000):
            self._output.pump()
            if ended.cause == INPUTS and time.monotonic() > self._kill_at:
                os.kill(self.pid, signal.SIGKILL)
            if ended.cause or ended.stopped_by:
                continue
            if self._budget is not None:
                now = _resident(self.pid)
                # What it grew by since the last look it may grow by until the next, but for its start, when
                # whole libraries appear at once.
                least, most = (int(share * self._budget) for share in _MARGIN)
                growth = min(max(least, now - before), most)
                if now + growth > self._budget:
                    self._end(MEMORY)
                before = now
                pause = _LOOK_CLOSELY if now > _CLOSE * self._budget else _LOOK_AT_MEMORY
            if time.monotonic() - looked < _LOOK:
                continue
            looked = time.monotonic()
            self._count_threads()
            for cause, asked in self._ends.items():
                if not ended.cause and asked():
                    self._end(cause)
            if self._when_writing is not None and self.winding_up:
                self._when_writing()
        os.close(pidfd)
        _, status, used = os.wait4(self.pid, 0)
        self.pid = 0
        ended.returncode = os.waitstatus_to_exitcode(status)
        ended.wall_seconds = time.monotonic() - self._begun
        ended.cpu_seconds = used.ru_utime + used.ru_stime
        ended.peak_bytes = used.ru_maxrss * 1024  # KiB on Linux, getrusage(2)
        ended.said = self._output.close()
        ended.first_error = self._output.first_error
        return ended

    def _count_threads(self) -> None:
        try:
            threads = len(os.listdir(f"/proc/{self.pid}/task"))
        except OSError:
            return  # It has ended.
        # lld 14 begins threads of its own behind the backends', later ones before them.
        if threads < self._most_threads:
            self.winding_up = True
        elif threads > self._most_threads and not self.winding_up:
            self._most_threads, self.working_since = threads, time.time()

    def _end(self, cause: str) -> None:
        self._ended.cause = cause
        # With TERM it removes what it has half written (llvm/lib/Support/Unix/Signals.inc); there is time for that
        # only where nothing is wrong with it.
        os.kill(self.pid, signal.SIGTERM if cause == INPUTS else signal.SIGKILL)
        self._kill_at = time.monotonic() + _PATIENCE

    def _forward_signals(self) -> None:
        """Pass TERM, INT and HUP on to the linker."""

        def forward(number: int, frame: FrameType | None) -> None:
            _stopped.append(number)
            self._ended.stopped_by = number
            if self.pid:
                os.kill(self.pid, number)

        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
                signal.signal(number, forward)


def _resident(pid: int) -> int:
    """Bytes resident now (/proc/PID/statm, Documentation/filesystems/proc.rst)."""
    try:
        with open(f"/proc/{pid}/statm") as stream:
            return int(stream.read().split()[1]) * _PAGE
    except (OSError, IndexError):
        return 0
