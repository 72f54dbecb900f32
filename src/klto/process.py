"""The one door to other programs.

Every child gets an argument list (never a shell string), a closed standard input, the C locale and a process
group of its own. It is ended by TERM, a wait, KILL, a wait. Peak memory and times of every child are kept.
"""

from __future__ import annotations

import ctypes
import os
import select
import shlex
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO

from klto.errors import KltoError, UsageError

#: Seconds between TERM and KILL. A build interrupted by Ctrl-C must leave no process after 5 s.
GRACE_SECONDS = 3.0

#: ``PR_SET_PDEATHSIG`` and ``PR_SET_CHILD_SUBREAPER``, include/uapi/linux/prctl.h.
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36

Arg = str | os.PathLike[str]


@dataclass(frozen=True)
class Usage:
    """What a finished child and the descendants it waited for have used."""

    wall_seconds: float
    cpu_seconds: float
    #: Largest resident set of the child or any single descendant, in bytes (ru_maxrss of wait4). Never less
    #: than klto's own was when it started the child: exec keeps the maximum of before (fs/exec.c, exec_mmap).
    peak_bytes: int


@dataclass(frozen=True)
class Finished:
    """A child that has ended. ``returncode`` is negative for a signal, as in :mod:`subprocess`."""

    argv: tuple[str, ...]
    returncode: int
    stdout: str
    stderr: str
    usage: Usage


class CommandFailed(KltoError):
    """A command ended with another status than 0; carries the :class:`Finished` it was made from."""

    exit_status = 2

    def __init__(self, finished: Finished) -> None:
        text = (finished.stderr or finished.stdout).strip().splitlines()
        super().__init__(
            f"{describe_status(finished.returncode)}: {quote(finished.argv)}", details=tuple(text[-10:])
        )
        self.finished = finished


class CommandTimeout(KltoError):
    """A command went past its deadline and was stopped."""

    exit_status = 2

    def __init__(self, argv: Sequence[str], seconds: float) -> None:
        super().__init__(f"no answer within {seconds:g} s, stopped: {quote(argv)}")
        self.argv = tuple(argv)


def quote(argv: Sequence[Arg]) -> str:
    """The command as a line that a shell would run."""
    return shlex.join(os.fspath(a) for a in argv)


def describe_status(returncode: int) -> str:
    """``exit status 2`` or ``killed by SIGKILL``; 128+N, as a shell reports a signal, is named too."""
    if returncode < 0:
        return f"killed by {_signal_name(-returncode)}"
    if returncode > 128 and _signal_name(returncode - 128).startswith("SIG"):
        return f"exit status {returncode} ({_signal_name(returncode - 128)})"
    return f"exit status {returncode}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def child_environment(extra: Mapping[str, str] | None = None, *, drop: Sequence[str] = ()) -> dict[str, str]:
    """This process's environment with a fixed locale, without ``drop``, with ``extra`` on top."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("LC_") and k not in ("LANG", "LANGUAGE")}
    for name in drop:
        env.pop(name, None)
    env["LC_ALL"] = "C"
    env.update(extra or {})
    return env


class Child:
    """A running program in its own process group. Use :func:`started`, which cannot leave one behind."""

    def __init__(self, argv: tuple[str, ...], popen: subprocess.Popen[bytes]) -> None:
        self.argv = argv
        self.pid = popen.pid
        self.stdout: IO[bytes] | None = popen.stdout
        self._popen = popen
        self._begun = time.monotonic()
        self._usage: Usage | None = None
        self.returncode: int | None = None

    def wait(self, timeout: float | None = None) -> Usage:
        """Wait for the child itself; its usage.

        :raises CommandTimeout: after ``timeout`` seconds; the child still runs then.
        """
        if self._usage is None:
            pidfd = os.pidfd_open(self.pid)
            try:
                poll = select.poll()
                poll.register(pidfd, select.POLLIN)
                if not poll.poll(None if timeout is None else max(0, timeout) * 1000):
                    raise CommandTimeout(self.argv, timeout or 0.0)
            finally:
                os.close(pidfd)
            _, status, used = os.wait4(self.pid, 0)
            self.returncode = self._popen.returncode = os.waitstatus_to_exitcode(status)
            wall = time.monotonic() - self._begun
            # ru_maxrss is in KiB on Linux (getrusage(2)).
            self._usage = Usage(wall, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024)
        return self._usage

    @property
    def usage(self) -> Usage | None:
        """What the child used, None while it runs."""
        return self._usage

    def alive(self) -> bool:
        """Whether the child itself still runs."""
        if self._usage is not None:
            return False
        try:
            self.wait(timeout=0)
        except CommandTimeout:
            return True
        return False

    def terminate(self) -> None:
        """Send TERM to the process group and do not wait: another thread does."""
        _signal_group(self.pid, signal.SIGTERM)

    def stop(self, grace: float = GRACE_SECONDS) -> None:
        """End the whole process group: TERM, wait, KILL, wait.

        An interrupt during the wait (a second Ctrl-C) shortens it, and is raised when the group has ended.
        """
        try:
            _signal_group(self.pid, signal.SIGTERM)
            deadline = time.monotonic() + grace
            while time.monotonic() < deadline and (self.alive() or _group_exists(self.pid)):
                time.sleep(0.02)
        finally:
            if self.alive() or _group_exists(self.pid):
                _signal_group(self.pid, signal.SIGKILL)
            self.wait()
        deadline = time.monotonic() + 1
        while time.monotonic() < deadline and _group_exists(self.pid):
            time.sleep(0.02)


def _signal_group(pgid: int, number: int) -> None:
    try:
        os.killpg(pgid, number)
    except ProcessLookupError:
        return
    except PermissionError:
        # A set-user-ID descendant; the others got the signal.
        return


def _group_exists(pgid: int) -> bool:
    """Whether a process of the group still runs; orphans that fell to us are reaped on the way."""
    while True:
        try:
            pid, _ = os.waitpid(-pgid, os.WNOHANG)
        except ChildProcessError:
            break
        if pid == 0:
            break
    try:
        os.killpg(pgid, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def become_subreaper() -> None:
    """Let orphaned descendants fall to this process, so that :meth:`Child.stop` can wait for them."""
    _libc().prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def die_with_parent(number: int) -> None:
    """Have the kernel send this process a signal when its parent dies, even by SIGKILL."""
    _libc().prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)


def _die_with_parent() -> Callable[[], None]:
    """A pre-exec step: the kernel sends TERM to the child when klto dies, even by SIGKILL."""
    prctl = _libc().prctl
    return lambda: prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


@contextmanager
def started(
    argv: Sequence[Arg],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    stdout: int | IO[bytes] = subprocess.DEVNULL,
    stderr: int | IO[bytes] = subprocess.STDOUT,
    stdin: int | IO[bytes] = subprocess.DEVNULL,
    pass_fds: Sequence[int] = (),
    guarded: bool = False,
) -> Iterator[Child]:
    """A child that runs for the length of the ``with`` block and has certainly ended after it.

    :param guarded: its whole process group ends even when klto is killed by SIGKILL. Without it only the child
        itself does, which is enough for a program that starts no others.
    :raises UsageError: when the program cannot be started.
    """
    args = tuple(os.fspath(a) for a in argv)
    later = SignalsLater()
    try:
        popen = subprocess.Popen(
            args,
            cwd=cwd,
            env=dict(env) if env is not None else child_environment(),
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            pass_fds=tuple(pass_fds),
            process_group=0,
            preexec_fn=_die_with_parent(),
        )
    except OSError as error:
        later.now()
        why = "no such program" if isinstance(error, FileNotFoundError) else error.strerror
        raise UsageError(f"cannot start {args[0]}: {why}") from error
    except BaseException:
        later.now()
        raise
    child = Child(args, popen)
    guard = None
    try:
        later.now()
        guard = _guard(child.pid) if guarded else None
        yield child
    finally:
        with _signals_held():
            if child.alive() or _group_exists(child.pid):
                child.stop()
            if guard is not None:
                guard.communicate(b"ended\n")
        if popen.stdout is not None:
            popen.stdout.close()


#: Ends the process group $1 when its standard input ends without a line: when klto is gone.
_GUARD = 'read -r line && exit; kill -s TERM -- "-$1"; sleep "$2"; kill -s KILL -- "-$1"'


def _guard(pgid: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        ["sh", "-c", _GUARD, "klto-guard", str(pgid), str(GRACE_SECONDS)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        process_group=0,
    )


#: What ends klto.
ENDING_SIGNALS = frozenset((signal.SIGINT, signal.SIGTERM, signal.SIGHUP))


class SignalsLater:
    """Handlers of signals run when :meth:`now` is called and not before.

    While a child is started their exception would be lost in what Python runs around a fork (os.register_at_fork), or
    leave a child behind that nobody knows of. Not by a signal mask: another thread would take the signal.
    """

    def __init__(self) -> None:
        self._came: list[int] = []
        self._handlers: dict[int, Callable[[int, FrameType | None], object]] = {}
        if threading.current_thread() is threading.main_thread():
            for number in ENDING_SIGNALS:
                handler = signal.getsignal(number)
                if callable(handler):
                    self._handlers[number] = handler
                    signal.signal(number, lambda number, frame: self._came.append(number))

    def now(self) -> None:
        """Put the handlers back, and run those whose signals have come."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        came, self._came = self._came, []
        for number in came:
            self._handlers[number](number, None)


@contextmanager
def _signals_held() -> Iterator[None]:
    """Ctrl-C and TERM wait until the block has ended: a second Ctrl-C must not leave children behind."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def run(
    argv: Sequence[Arg],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    check: bool = True,
    timeout: float | None = None,
) -> Finished:
    """Run a program to its end and keep what it printed.

    :param timeout: seconds; the process group is stopped after them.
    :raises CommandFailed: when ``check`` and the status is not 0.
    :raises CommandTimeout: past ``timeout``.
    :raises UsageError: when the program cannot be started.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        with started(argv, cwd=cwd, env=env, stdout=out, stderr=err) as child:
            usage = child.wait(timeout)
        out.seek(0)
        err.seek(0)
        finished = Finished(
            child.argv,
            child.returncode if child.returncode is not None else -1,
            out.read().decode("utf-8", "replace"),
            err.read().decode("utf-8", "replace"),
            usage,
        )
    if check and finished.returncode != 0:
        raise CommandFailed(finished)
    return finished
