"""A link on a cluster that is interrupted takes leave of the scheduler, and says nothing of its inside."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

#: What waits is told by the first argument: the event loop, or a backend that runs here.
PROGRAM = """\
import asyncio, logging, sys, time
from klto.cluster.connection import raising_interrupts, run_async

async def main():
    try:
        if sys.argv[1] == "loop":
            print("begun", flush=True)
            await asyncio.sleep(60)
        else:
            with raising_interrupts():
                print("begun", flush=True)
                time.sleep(60)
    finally:
        await asyncio.sleep(0.3)
        logging.getLogger("distributed.client").error("Traceback of what was cancelled")
        print("left", flush=True)

try:
    run_async(main())
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.mark.parametrize("waiting", ["loop", "backend"])
@pytest.mark.parametrize(
    "numbers",
    [[signal.SIGINT], [signal.SIGINT, signal.SIGINT], [signal.SIGINT, signal.SIGTERM], [signal.SIGTERM]],
)
def test_interrupt(waiting: str, numbers: list[signal.Signals]) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, waiting], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "begun\n"
    for number in numbers:
        os.kill(child.pid, number)
    out, err = child.communicate(timeout=60)
    assert (child.returncode, out, err) == (130, "left\n", "")
