"""GNU make's jobserver, owned by klto.

The protocol is GNU make's (manual, "POSIX Jobserver Interaction"): a pipe that holds one byte for every job
beyond the first; who starts a job reads one, who ends it writes it back. klto's pipe is a named one. make
inherits it as two descriptors (make before 4.4 knows no other way); the LTO link opens it by its path, because
make closes the descriptors for recipes without ``+``, and vmlinux.o's is one.

Standard library only: the linker shim's process imports this.
"""

from __future__ import annotations

import os
import select
import time

from klto.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType

#: The environment variables by which the link finds the pipe and the number of jobs.
ENV_PATH = "KLTO_JOBSERVER"
ENV_JOBS = "KLTO_JOBS"

_TOKEN = b"+"


class Jobserver:
    """A pipe with ``jobs - 1`` tokens at ``path``. A context manager; the path is gone after it."""

    def __init__(self, path: str, jobs: int) -> None:
        self.path = path
        self.jobs = jobs
        if os.path.lexists(path):
            os.unlink(path)  # Left by a run that was killed; its lock is ours now.
        os.mkfifo(path, 0o600)
        # Open for reading and writing: the pipe lives, and keeps its tokens, as long as this descriptor.
        self._fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        self._fill(jobs - 1)

    def _fill(self, tokens: int) -> None:
        try:
            written = os.write(self._fd, _TOKEN * tokens) if tokens else 0
        except BlockingIOError:
            written = 0
        if written < tokens:
            self.__exit__(None, None, None)
            raise UsageError(
                f"-j {self.jobs}: a pipe holds {written} jobs only", f"use at most -j {written + 1}"
            )
        os.set_blocking(self._fd, True)

    @property
    def descriptors(self) -> tuple[int, ...]:
        """The descriptor to hand to make (readable and writable)."""
        return (self._fd,)

    def environment(self) -> dict[str, str]:
        """MAKEFLAGS for make and the variables for the link."""
        return {
            "MAKEFLAGS": f" -j{self.jobs} --jobserver-auth={self._fd},{self._fd}",
            ENV_PATH: self.path,
            ENV_JOBS: str(self.jobs),
        }

    def __enter__(self) -> Jobserver:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._fd)
        if os.path.lexists(self.path):
            os.unlink(self.path)


class Tokens:
    """Jobs taken from a jobserver beyond the one that its holder already is. Give them back with :meth:`release`."""

    def __init__(self, path: str | None) -> None:
        self._fd: int | None = None
        self._held = b""
        if path:
            try:
                self._fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            except OSError:
                self._fd = None  # No jobserver any more: the holder stays with its one job.

    def __len__(self) -> int:
        return len(self._held)

    def acquire(self, wanted: int, patience: float) -> int:
        """Take up to ``wanted`` tokens, waiting ``patience`` seconds for those that are in use; how many are held."""
        if self._fd is None:
            return 0
        deadline = time.monotonic() + patience
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        while len(self._held) < wanted:
            left = deadline - time.monotonic()
            if not poll.poll(max(0.0, left) * 1000):
                break
            try:
                self._held += os.read(self._fd, 1)
            except BlockingIOError:
                continue  # Another reader was faster.
        return len(self._held)

    def release(self) -> None:
        """Give all tokens back."""
        if self._fd is not None:
            held, self._held = self._held, b""
            os.write(self._fd, held)
            os.close(self._fd)
            self._fd = None
