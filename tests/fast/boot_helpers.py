"""For the boot tests: kernels of a few bytes, a request for them, and the tools that a test needs."""

from __future__ import annotations

import gzip
import os
import shutil
import struct
import sys
from pathlib import Path
from typing import NoReturn

import pytest

from klto.boot.guest import Compiler
from klto.boot.images import read_image
from klto.boot.qemu import Accelerator
from klto.boot.run import BootRequest

FAKE_QEMU = Path(__file__).with_name("fake_qemu.py")

#: The clangs that may be installed, newest first; "" is PATH's.
CLANGS = [suffix for suffix in ("", *(f"-{n}" for n in range(40, 13, -1))) if shutil.which(f"clang{suffix}")]


def missing(what: str) -> NoReturn:
    """A tool is not there: a failure in CI, a skip elsewhere."""
    if os.environ.get("CI"):
        pytest.fail(f"{what} is missing")
    pytest.skip(f"{what} is missing")


def need(program: str) -> str:
    """The path of a program."""
    return shutil.which(program) or missing(program)


def compiler(suffix: str | None = None) -> Compiler:
    """An installed clang with its ld.lld."""
    if suffix is None:
        suffix = next((s for s in CLANGS if shutil.which(f"ld.lld{s}")), None)
    if suffix is None:
        missing("clang with ld.lld")
    return Compiler(Path(need(f"clang{suffix}")), Path(need(f"ld.lld{suffix}")))


#: What a tiny kernel does after it has printed its text: machine code for real mode.
THEN = {
    "reset": bytes((0xB0, 0xFE, 0xE6, 0x64, 0xEB, 0xFE)),  # mov al, 0xfe; out 0x64, al; jmp .
    "hang": bytes((0xEB, 0xFE)),  # jmp .
    "again": bytes((0xEB, 0xF0)),  # jmp to the start of the printing
}


def tiny_x86_kernel(text: bytes = b"", then: str = "reset", release: bytes = b"6.99.0-tiny") -> bytes:
    """A bzImage of 1.5 KiB whose real-mode code prints ``text`` on the first UART, and then does as told."""
    image = bytearray(1024 + 512)
    image[0x1F1] = 1  # setup_sects
    struct.pack_into("<I", image, 0x1F4, 512 // 16)  # syssize
    image[0x1FE:0x206] = b"\x55\xaa\xeb\x7eHdrS"  # boot_flag; jmp 0x280; header
    struct.pack_into("<HIHH", image, 0x206, 0x20F, 0, 0, 0x2D0 - 0x200)  # version; kernel_version
    image[0x211] = 1  # loadflags: LOADED_HIGH
    struct.pack_into("<I", image, 0x214, 0x100000)  # code32_start
    struct.pack_into("<I", image, 0x22C, 0x7FFFFFFF)  # initrd_addr_max
    image[0x236] = 1  # xloadflags: XLF_KERNEL_64
    struct.pack_into("<I", image, 0x238, 2047)  # cmdline_size
    # mov si, 0x300; mov dx, 0x3f8; lodsb; test al, al; jz +3; out dx, al; jmp to lodsb
    code = bytes((0xBE, 0, 3, 0xBA, 0xF8, 3, 0xAC, 0x84, 0xC0, 0x74, 3, 0xEE, 0xEB, 0xF8)) + THEN[then]
    image[0x280 : 0x280 + len(code)] = code
    version = release + b" (tiny) #1\0"
    image[0x2D0 : 0x2D0 + len(version)] = version
    assert len(text) < 0x100
    image[0x300 : 0x300 + len(text)] = text
    return bytes(image)


def tiny_arm64_image() -> bytes:
    """The header of an arm64 Image, and nothing to run."""
    image = bytearray(4096)
    struct.pack_into("<QQQ", image, 8, 0, 4096, 0b1010)
    image[56:60] = b"ARM\x64"
    return bytes(image)


def tiny_arm64_gz() -> bytes:
    """The same, as Image.gz."""
    return gzip.compress(tiny_arm64_image(), mtime=0)


def fake_qemu(folder: Path, mode: str) -> str:
    """A program that behaves like a QEMU in one of fake_qemu.py's modes, and leaves its pid in a file."""
    program = folder / f"qemu {mode}"
    program.write_text(
        f'#!/bin/sh\necho $$ >"{folder}/qemu.pid"\nexec "{sys.executable}" "{FAKE_QEMU}" {mode} "$@"\n'
    )
    program.chmod(0o755)
    return str(program)


def request(folder: Path, kernel: bytes | None = None, *, cache: Path | None = None) -> BootRequest:
    """A boot of a tiny kernel under TCG with everything below ``folder``."""
    image = folder / "bzImage"
    image.write_bytes(tiny_x86_kernel() if kernel is None else kernel)
    return BootRequest(
        image=read_image(image),
        compiler=compiler(),
        log=folder / "console.log",
        cache=cache or folder / "cache",
        accelerator=Accelerator.TCG,
        timeout=60.0,
    )
