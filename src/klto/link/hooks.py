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


def run_hook(command: list[str], arguments: list[str]) -> int:
    """Run one; its exit status, 128 and the signal's number when one ended it, as a shell has it. None: 0.

    It stays in make's process group, so that whatever ends the build ends it too.
    """
    if not command:
        return 0
    pid = os.posix_spawn(command[0], [*command, *arguments], os.environ)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return status if status >= 0 else 128 - status
