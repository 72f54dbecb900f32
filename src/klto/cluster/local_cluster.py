"""``local:N``: a scheduler and N worker processes of this machine, for the length of a link or a build."""

from __future__ import annotations

import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from klto import process
from klto.cluster.address import Address, parse_address
from klto.errors import UsageError
from klto.machine import memory_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Seconds that the scheduler may take to start: imports on a slow disk.
_START = 60.0


@contextmanager
def started_address(address: Address) -> Iterator[Address]:
    """An address that can be connected to: ``address`` itself, or that of a cluster started for ``local:N``."""
    if not address.workers:
        yield address
        return
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="klto-cluster-")))
        place = folder / "address"
        klto = [sys.executable, "-m", "klto", "cluster"]
        log = stack.enter_context((folder / "log").open("w+b"))
        scheduler = stack.enter_context(
            process.started(
                [*klto, "scheduler", "tcp://127.0.0.1:0", "--address-file", str(place)],
                stdout=log,
                stderr=log,
            )
        )
        deadline = time.monotonic() + _START
        while not place.exists():
            if not scheduler.alive() or time.monotonic() > deadline:
                log.seek(0)
                said = log.read().decode("utf-8", "replace").strip().splitlines()
                raise UsageError("the scheduler did not start", None, tuple(said[-5:]))
            time.sleep(0.02)
        found = parse_address(place.read_text().strip())
        memory = str(max(1, memory_bytes()[1] // address.workers))
        for _ in range(address.workers):
            stack.enter_context(
                process.started(
                    [
                        *klto,
                        "worker",
                        found.text,
                        "-j",
                        "1",
                        "--memory",
                        memory,
                        "--store",
                        str(folder / "store"),
                    ],
                    stdout=log,
                    stderr=log,
                )
            )
        yield found
