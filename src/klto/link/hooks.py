"""Commands that whoever started the build wants run before or after certain links.

This room knows neither what they do nor why. The build names them in the environment, since between it and the
linker shim are make and shells; a command gets the linker's arguments or the output behind its own.
"""

from __future__ import annotations

import os

#: The environment variable: JSON, output to {"before": [...], "after": [...]}, each a command or not there.
ENV_HOOKS = "KLTO_LINK_HOOKS"


class Hooks:
    """The commands for one link's output. Values; do not assign."""

    __slots__ = ("after", "before")

    def __init__(self, before: list[str], after: list[str]) -> None:
        self.before = before
        self.after = after


def hooks_of(output: str) -> Hooks:
    """The commands for an output, named as the linker was asked for it, relative to where it runs."""
    text = os.environ.get(ENV_HOOKS)
    if not text:
        return Hooks([], [])
    import json  # Late: most links have none, and this process must start fast.

    own = json.loads(text).get(os.path.normpath(output), {})
    return Hooks(list(own.get("before", ())), list(own.get("after", ())))


class Running:
    """A command with a link's arguments, running beside what comes next. An empty one has succeeded already.

    It stays in make's process group, so that whatever ends the build ends it too.
    """

    __slots__ = ("_pid", "_status")

    def __init__(self, command: list[str], arguments: list[str]) -> None:
        self._pid, self._status = 0, 0
        if command:
            self._pid = os.posix_spawn(command[0], [*command, *arguments], os.environ)

    def wait(self) -> int:
        """Its exit status; 128 and the signal's number when one ended it, as a shell has it."""
        return self._reap(0)

    def failed(self) -> bool:
        """Whether it has ended, and badly."""
        return self._reap(os.WNOHANG) != 0

    def _reap(self, options: int) -> int:
        if self._pid:
            pid, status = os.waitpid(self._pid, options)
            if pid:
                code = os.waitstatus_to_exitcode(status)
                self._pid, self._status = 0, code if code >= 0 else 128 - code
        return self._status


def run_hook(command: list[str], arguments: list[str]) -> int:
    """Run one to its end; its exit status. None: 0."""
    return Running(command, arguments).wait()
