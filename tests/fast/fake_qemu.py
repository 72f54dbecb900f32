"""A fake QEMU for the boot tests: speaks QMP and misbehaves as its first argument says.

It takes klto's real command line, so it finds its wires and the boot's nonce where QEMU and init would.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import sys
import time
from typing import BinaryIO

MODE, ARGV = sys.argv[1], sys.argv[2:]


def monitor() -> socket.socket | None:
    for argument in ARGV:
        found = re.fullmatch(r"socket,id=qmp,fd=(\d+)", argument)
        if found:
            return socket.socket(fileno=int(found[1]))
    return None


def printed(name: str) -> BinaryIO | None:
    """Opened as QEMU opens it, by its path."""
    for argument in ARGV:
        found = re.fullmatch(rf"file,id={name},path=(/proc/self/fd/\d+)", argument)
        if found:
            return open(found[1], "wb", buffering=0)
    return None


def nonce() -> str:
    with open(ARGV[ARGV.index("-initrd") + 1], "rb") as file:
        found = re.search(rb"nonce ([0-9a-f]+)\nproof init\n", file.read())
    assert found is not None
    return found[1].decode()


QMP = monitor()
CONSOLE, UART, VIRTIO = (printed(name) for name in ("console", "uart", "virtio"))


def verdict(word: str, tag: str, *, done: bool = True, release: str = "6.99.0-tiny") -> bytes:
    records = ["hello second-uart", "begin init", f"fact init release {release}", "fact init machine x86_64"]
    records += [f"end init {word}"] if word else []
    records += ["done second-uart"] if done else []
    return "".join(f"klto:{tag} {n} {text} :{tag}\n" for n, text in enumerate(records)).encode()


def answer(message: dict[str, object]) -> None:
    assert QMP is not None
    QMP.sendall(json.dumps(message).encode() + b"\r\n")


def handshake() -> None:
    """Until the guest's CPUs are to run."""
    assert QMP is not None
    answer({"QMP": {"version": {"qemu": {"major": 7, "minor": 2, "micro": 0}}, "capabilities": []}})
    reader = QMP.makefile("rb")
    for line in reader:
        message = json.loads(line)
        answer({"return": {}, "id": message["id"]})
        if message["execute"] == "cont":
            return


def shutdown(reason: str = "guest-reset") -> None:
    answer({"event": "SHUTDOWN", "data": {"guest": True, "reason": reason}})
    sys.exit(0)


def serve_monitor() -> None:
    """A QEMU whose guest does nothing: it answers, and ends when told to."""
    assert QMP is not None
    for line in QMP.makefile("rb"):
        answer({"return": "CPU#0\r\nRIP=ffffffff81000042 RFL=00000002\r\n", "id": json.loads(line)["id"]})


def stay() -> None:
    while True:
        time.sleep(60)


def main() -> None:
    if MODE == "refuses":
        sys.exit("qemu: cannot set up guest memory 'ram': Cannot allocate memory")
    if MODE == "hangs-at-start":
        stay()
    if MODE == "works-without-kvm" and "kvm" in ARGV:
        stay()
    assert CONSOLE is not None
    assert UART is not None
    assert VIRTIO is not None
    handshake()
    CONSOLE.write(b"Linux version 6.99.0-tiny\r\n" if "silent" not in MODE else b"")
    match MODE:
        case "passes" | "passes-silently" | "works-without-kvm":
            UART.write(verdict("passed", nonce()))
        case "passes-over-virtio":
            VIRTIO.write(verdict("passed", nonce()))
        case "passes-over-console":
            CONSOLE.write(verdict("passed", nonce()).replace(b"klto:", b"[    1.000000] klto:"))
        case "says-failed":
            UART.write(verdict("failed uname failed", nonce()))
        case "other-kernel":
            UART.write(verdict("passed", nonce(), release="5.4.0"))
        case "forges":
            for tag in ("", "0" * 32, "nonce"):
                CONSOLE.write(verdict("passed", tag))
                UART.write(verdict("passed", tag))
            CONSOLE.write(b"end init passed\nklto: init passed\n")
        case "half-a-verdict":
            UART.write(verdict("passed", nonce(), done=False)[:-2])
        case "warns":
            CONSOLE.write(b"[    0.5] WARNING: CPU: 0 PID: 1 at kernel/x.c:7 f+0x1/0x2\r\n")
            UART.write(verdict("passed", nonce()))
        case "panics-and-stays":
            CONSOLE.write(b"Kernel panic - not syncing: test\r\n")
            stay()
        case "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        case "crashes":
            sys.exit(3)
        case "floods":
            while True:
                CONSOLE.write(b"printk: again and again and again\n" * 2000)
        case "floods-the-channel":
            while True:
                UART.write(b"x" * 65536)
        case "hangs" | "silent-hang":
            serve_monitor()
            stay()
        case "stops-answering":
            stay()
        case "is-stubborn":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            stay()
        case "stops-the-guest":
            answer({"event": "STOP"})
            stay()
        case "stays-after-verdict":
            UART.write(verdict("passed", nonce()))
            serve_monitor()
        case "powers-off":
            shutdown("guest-shutdown")
    shutdown()


main()
