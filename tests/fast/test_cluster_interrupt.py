"""A link on a cluster that is interrupted takes leave of the scheduler, and says nothing of its inside."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from klto.cluster.certs import make_certificates
from tests.conftest import Klto

pytestmark = pytest.mark.slow

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


def test_interrupt_just_before_what_takes_long() -> None:
    """The cancellation waits in the event loop, which is not returned to."""
    program = PROGRAM.replace(
        'if sys.argv[1] == "loop":', "os.kill(os.getpid(), signal.SIGINT)\n        if False:"
    )
    done = subprocess.run(
        [sys.executable, "-c", f"import os, signal\n{program}", "backend"],
        capture_output=True, text=True, timeout=50, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (130, "")


def test_certificate_that_is_none(klto: Klto, tmp_path: Path) -> None:
    make_certificates(tmp_path / "certs", 1)
    (tmp_path / "certs/client.pem").write_text("x\n")
    certs = {"KLTO_CLUSTER_CERTS": str(tmp_path / "certs")}
    done = klto("cluster", "status", "tls://127.0.0.1:1", env=certs)
    assert done.status == 2
    assert "Traceback" not in done.err
    assert done.err.startswith("klto: tls://127.0.0.1:1 and this machine do not trust each other")


@pytest.mark.parametrize("said", [b"\0" * 400, b""])
def test_address_that_does_not_speak_tls(klto: Klto, tmp_path: Path, said: bytes) -> None:
    """A scheduler of plain TCP speaks first, sometimes before TLS begins."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()

        def answer() -> None:
            with suppress(OSError):  # Closed: the test is over.
                while True:
                    connection, _ = listening.accept()
                    connection.sendall(said or b"HTTP/1.1 400 Bad Request\r\n\r\n")

        threading.Thread(target=answer, daemon=True).start()
        make_certificates(tmp_path / "certs", 1)
        address = f"tls://127.0.0.1:{listening.getsockname()[1]}"
        done = klto("cluster", "status", address, env={"KLTO_CLUSTER_CERTS": str(tmp_path / "certs")})
        assert done.status == 2
        first, _, rest = done.err.partition("\n")
        assert first.startswith(f"klto: {address} and this machine do not trust each other")
        assert rest.count("\n") == 1


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
