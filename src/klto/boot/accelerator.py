"""Whether KVM works here. The device node proves nothing: on some nested hosts QEMU hangs or aborts with it.

So a few bytes of guest code are run under KVM, with the CPU model that a boot would use and a deadline.
They go through QEMU's firmware and its loader, and end QEMU with a status that nothing else gives.
"""

from __future__ import annotations

import hashlib
import os
import platform
import struct
import tempfile
import time
from pathlib import Path

from klto import process
from klto.boot.images import Arch
from klto.boot.qemu import QUIET_OPTIONS, Accelerator, cpu_model, machine_options
from klto.errors import KltoError

#: Seconds. A working KVM needs some 0.2; one that is slower than this is slower than TCG too.
PROBE_SECONDS = 2.0

#: Seconds that a "no" is believed: it may have come from a busy machine.
NO_LASTS_SECONDS = 3600

_KVM = Path("/dev/kvm")

#: uname -m to the guests that KVM can run on that host.
_NATIVE = {"x86_64": Arch.X86_64, "aarch64": Arch.ARM64}

#: isa-debug-exit ends QEMU with (value << 1) | 1 (hw/misc/debugexit.c).
_X86_VALUE = 0x21
_X86_STATUS = _X86_VALUE << 1 | 1


def choose_accelerator(arch: Arch, qemu: Path, cache: Path) -> Accelerator:
    """KVM where it has proved to work, else TCG. The answer is kept in ``cache`` until the host restarts."""
    if _NATIVE.get(platform.machine()) is not arch or not os.access(_KVM, os.R_OK | os.W_OK):
        return Accelerator.TCG
    works = _read_note(_note(arch, qemu, cache))
    if works is None:
        works = kvm_works(arch, qemu)
        remember(arch, qemu, cache, works=works)
    return Accelerator.KVM if works else Accelerator.TCG


def kvm_works(arch: Arch, qemu: Path, seconds: float = PROBE_SECONDS) -> bool:
    """Run the probe under KVM; whether it ended as it should within ``seconds``."""
    return run_probe(arch, qemu, Accelerator.KVM, seconds)


def run_probe(arch: Arch, qemu: Path, accelerator: Accelerator, seconds: float) -> bool:
    """Run the probe's guest code; whether it reached its end within ``seconds``."""
    with tempfile.NamedTemporaryFile(prefix="klto-probe-") as file:
        file.write(_x86_guest() if arch is Arch.X86_64 else _arm64_guest())
        file.flush()
        argv = (
            str(qemu),
            *("-accel", accelerator),
            *machine_options(arch, accelerator),
            *("-cpu", cpu_model(arch, accelerator)),
            *("-m", "64M"),
            *QUIET_OPTIONS,
            *("-no-reboot", "-kernel", file.name),
        )
        if arch is Arch.X86_64:
            argv = (*argv, "-device", "isa-debug-exit,iobase=0xf4,iosize=1")
        try:
            finished = process.run(argv, check=False, timeout=seconds)
        except KltoError:  # it hung, or could not be started
            return False
    return finished.returncode == (_X86_STATUS if arch is Arch.X86_64 else 0)


def _x86_guest() -> bytes:
    """A Multiboot kernel (specification 0.6.96, section 3.1) that writes to the debug-exit port."""
    magic, flags, base = 0x1BADB002, 1 << 16, 0x100000
    header = struct.pack("<8I", magic, flags, -(magic + flags) & 0xFFFFFFFF, base, base, 0, 0, base + 32)
    # mov al, value; out 0xf4, al; cli; hlt; jmp to the hlt
    return header + bytes((0xB0, _X86_VALUE, 0xE6, 0xF4, 0xFA, 0xF4, 0xEB, 0xFD))


def _arm64_guest() -> bytes:
    """Flat code that calls PSCI's SYSTEM_OFF, 0x84000008 (Arm DEN0022, section 5.1.9).

    By hvc, or by smc when it runs at EL2, as QEMU's virt machine wants it (hw/arm/virt.c, psci_conduit).
    """
    # movz w0, #0x8400, lsl #16; movk w0, #8; mrs x1, CurrentEL; cmp x1, #8; b.eq +8; hvc #0; smc #0; b .
    code = (0x52B08000, 0x72800100, 0xD5384241, 0xF100203F, 0x54000040, 0xD4000002, 0xD4000003, 0x14000000)
    return struct.pack(f"<{len(code)}I", *code)


def remember(arch: Arch, qemu: Path, cache: Path, *, works: bool) -> None:
    """Keep the answer. Best effort: without it the next boot probes again."""
    note = _note(arch, qemu, cache)
    try:
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text("works" if works else "fails")
    except OSError:
        return


def _note(arch: Arch, qemu: Path, cache: Path) -> Path:
    """The answer's file: another one after the host's next start, and for another QEMU."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    status = qemu.stat()
    text = f"{boot} {arch} {qemu} {status.st_size} {status.st_mtime_ns}"
    return cache / "kvm" / hashlib.sha256(text.encode()).hexdigest()[:32]


def _read_note(note: Path) -> bool | None:
    try:
        text = note.read_text()
        age = time.time() - note.stat().st_mtime
    except OSError:
        return None
    if text == "works":
        return True
    return False if text == "fails" and 0 <= age < NO_LASTS_SECONDS else None
