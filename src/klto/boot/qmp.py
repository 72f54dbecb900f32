"""The QEMU machine protocol: enough of it to know what QEMU did and why it ended.

The console cannot tell a guest that is silent from a QEMU that never ran it, nor a restart from a crash of
QEMU. QMP can. Pure: bytes in, bytes out; the caller owns the socket.
Source: QEMU's docs/interop/qmp-spec.rst and qapi/run-state.json (7.2).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

#: The longest message that is read; QEMU's answers here are a few KiB.
_MAX_MESSAGE = 1 << 20


class Qmp:
    """One QMP session, fed with what QEMU sends.

    ``send`` gets the bytes to send. After the greeting the session negotiates and starts the virtual CPUs,
    which wait because of ``-S``: so no event of the guest can be missed.
    """

    def __init__(self, send: Callable[[bytes], None]) -> None:
        self._send = send
        self._pending = b""
        #: QEMU's version, as in ``7.2.22``; empty before the greeting.
        self.version = ""
        #: Whether the guest's CPUs have been started.
        self.running = False
        #: Whether QEMU has stopped the CPUs of its own accord, as it does when KVM reports an internal error.
        self.stopped = False
        #: ShutdownCause of qapi/run-state.json, as in ``guest-reset``; empty while the guest runs.
        self.shutdown_reason = ""
        #: Where a CPU was when :meth:`ask_where` was answered, as in ``RIP=ffffffff81000000``.
        self.where = ""

    def ask_where(self) -> None:
        """Ask for the first CPU's registers; the answer sets :attr:`where`."""
        self._command("human-monitor-command", {"command-line": "info registers"}, "where")

    def feed(self, data: bytes) -> None:
        """Take bytes from QEMU. What is no JSON object is ignored."""
        *lines, self._pending = (self._pending + data).split(b"\n")
        self._pending = self._pending[-_MAX_MESSAGE:]
        for line in lines:
            try:
                message = json.loads(line)
            except ValueError:
                continue
            if isinstance(message, dict):
                self._take(message)

    def _take(self, message: dict[str, Any]) -> None:
        if "QMP" in message:
            self._greeted(message["QMP"])
        elif message.get("id") == "cont" and "return" in message:
            self.running = True
        elif message.get("id") == "where":
            self._registers(str(message.get("return", "")))
        elif message.get("event") == "STOP":
            self.stopped = self.running
        elif message.get("event") == "SHUTDOWN":
            data = message.get("data")
            self.shutdown_reason = str(data.get("reason", "unknown")) if isinstance(data, dict) else "unknown"

    def _greeted(self, greeting: Any) -> None:
        try:
            numbers = greeting["version"]["qemu"]
            self.version = f"{numbers['major']}.{numbers['minor']}.{numbers['micro']}"
        except (KeyError, TypeError):
            self.version = "unknown"
        self._command("qmp_capabilities", {}, "capabilities")
        self._command("cont", {}, "cont")

    def _registers(self, text: str) -> None:
        # target/i386/cpu-dump.c: "RIP=..." (64-bit mode) or "EIP=..."; target/arm/cpu.c: " PC=...".
        found = re.search(r"\b([RE]IP|PC)=([0-9a-fA-F]+)", text)
        self.where = f"{found[1]}={found[2]}" if found else "unknown"

    def _command(self, name: str, arguments: dict[str, str], ident: str) -> None:
        message = {"execute": name, "arguments": arguments, "id": ident}
        self._send(json.dumps(message).encode() + b"\n")
