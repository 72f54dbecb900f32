"""What a kernel that was really built must do under ``klto boot``. Called by the tests that build one."""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path

from klto.boot.guest import Compiler
from klto.boot.images import Arch, KernelImage, find_built_image, read_image
from klto.boot.initramfs import Entry, regular
from klto.boot.proofs import ProofStatus
from klto.boot.run import BootRequest, BootResult, boot_kernel

#: e_machine (elf.h) and an instruction that no CPU has: ud2, udf #0.
_TRAPS = {Arch.X86_64: (62, b"\x0f\x0b"), Arch.ARM64: (183, bytes(4))}


def boot_request(build_dir: Path, arch: Arch, compiler: Compiler, folder: Path) -> BootRequest:
    """A boot of a build dir's kernel with its log and cache below ``folder``."""
    image = read_image(find_built_image(build_dir, arch), arch)
    return BootRequest(image, compiler, log=folder / "console.log", cache=folder / "cache")


def check_boots(build_dir: Path, arch: Arch, compiler: Compiler, folder: Path) -> BootResult:
    """The kernel reaches init and reports nothing bad."""
    result = boot_kernel(boot_request(build_dir, arch, compiler, folder))
    assert result.status is ProofStatus.PASSED, (result.ending, result.console_tail, result.proofs)
    assert b"Run /init as init process" in result.console_log.read_bytes()
    return result


def check_failures(build_dir: Path, arch: Arch, compiler: Compiler, folder: Path) -> None:
    """The same kernel fails the proof when there is no init, when init is no program, and when init dies."""
    request = boot_request(build_dir, arch, compiler, folder)
    panics = {
        "Unable to mount root fs": replace(request, append="rdinit=/nothing"),
        "No working init found": replace(request, files=(regular("init", b"no program", executable=True),)),
        "Attempted to kill init!": replace(request, files=(dying_init(request.image),)),
    }
    for text, failing in panics.items():
        result = boot_kernel(failing)
        assert result.status is ProofStatus.FAILED
        assert result.ending == "the guest panicked"
        assert any(text in line for line in result.proofs[0].evidence), result.proofs


def check_console_fallback(build_dir: Path, compiler: Compiler, folder: Path) -> None:
    """An x86_64 kernel without a second UART (and without virtio) reports over its log."""
    request = boot_request(build_dir, Arch.X86_64, compiler, folder)
    result = boot_kernel(replace(request, append="8250.nr_uarts=1"))
    assert result.status is ProofStatus.PASSED
    assert "verdict: over kernel-log" in result.proofs[0].evidence


def dying_init(image: KernelImage) -> Entry:
    """A static executable of one instruction, which traps."""
    machine, trap = _TRAPS[image.arch]
    base, at = 0x400000, 64 + 56
    ident = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    header = struct.pack("<16sHHIQQQIHHHHHH", ident, 2, machine, 1, base + at, 64, 0, 0, 64, 56, 1, 64, 0, 0)
    size = at + len(trap)
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, base, base, size, size, 0x10000)
    return regular("init", header + segment + trap, executable=True)
