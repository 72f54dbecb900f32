"""A link with its backends on a cluster: another process, since the shim's own has no site packages."""

from __future__ import annotations

import json
import os
import sys
import tempfile

from klto.link import journal
from klto.link.linker import Linker

TYPE_CHECKING = False
if TYPE_CHECKING:
    from klto.link.run import Link

#: How klto.cluster.__main__ says that a link can only be done here (EX_UNAVAILABLE of sysexits.h).
NOT_DISTRIBUTED = 69


def run_on_cluster(link: Link) -> int | None:
    """The linker's status; None when this link can only be done by the linker itself."""
    program = os.path.join(
        os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "cluster", "__main__.py"
    )
    with tempfile.NamedTemporaryFile(prefix="klto-use-") as use:
        command = [sys.executable, "-P", program, use.name, str(link.jobs), link.linker, *link.arguments]
        linker = Linker(command, None, None, None)
        journal.append(
            "link-started",
            output=link.request.output,
            directory=os.getcwd(),
            pid=linker.pid,
            jobs=link.jobs,
            full=link.full,
            bitcode_inputs=link.inputs.bitcode,
            native_inputs=link.inputs.native,
            bitcode_bytes=link.inputs.bitcode_bytes,
            memory_available=link.budget.available,
            memory_budget=link.budget.limit,
        )
        ended = linker.wait()
        distributed = ended.returncode != NOT_DISTRIBUTED
        journal.append(
            "link-finished",
            output=link.request.output,
            returncode=ended.returncode,
            wall_seconds=ended.wall_seconds,
            cpu_seconds=ended.cpu_seconds,
            peak_bytes=ended.peak_bytes,
            stopped_by=ended.stopped_by,
            again=not distributed,
            cluster=_read(use.name),
        )
    if distributed:
        return ended.returncode
    link.attempts = 1  # What follows is another attempt at the same link.
    return None


def _read(name: str) -> object:
    """What the link used and met; None when it was killed before it wrote anything."""
    try:
        with open(name, encoding="utf-8") as stream:
            return json.load(stream)
    except (OSError, ValueError):
        return None
