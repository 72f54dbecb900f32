"""Kernel images: which architecture an image is for, and whether it can be a kernel at all.

Only headers are read. What QEMU would answer with a silent guest (an empty file, half a file, another
architecture's kernel) is refused here with one line.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from klto.errors import UsageError


class Arch(StrEnum):
    """Architectures that klto boots, in Kbuild's names (SRCARCH x86 is x86_64 here)."""

    X86_64 = "x86_64"
    ARM64 = "arm64"


@dataclass(frozen=True)
class KernelImage:
    """An image that looks bootable.

    ``release`` is the version that the image's header carries (``uname -r``), or None: arm64's has none.
    """

    path: Path
    arch: Arch
    release: str | None


#: Where Kbuild leaves the image, best first: arch/x86/Makefile and arch/arm64/boot/Makefile (6.12).
BUILT_IMAGES: dict[Arch, tuple[str, ...]] = {
    Arch.X86_64: ("arch/x86/boot/bzImage",),
    Arch.ARM64: ("arch/arm64/boot/Image", "arch/arm64/boot/Image.gz"),
}

#: Bytes that hold every header below: the x86 setup header ends before 0x280, its version string lies
#: within the setup sectors (at most 64 of 512 bytes, Documentation/arch/x86/boot.rst, "setup_sects").
_HEAD_BYTES = 64 * 512 + 512

_GZIP = b"\x1f\x8b"


def find_built_image(build_dir: Path, arch: Arch) -> Path:
    """The image in a build dir.

    :raises UsageError: when there is none.
    """
    for name in BUILT_IMAGES[arch]:
        if (build_dir / name).is_file():
            return build_dir / name
    raise UsageError(
        f"no kernel image in {build_dir}: {BUILT_IMAGES[arch][0]} is missing",
        hint="build it first: klto build",
    )


def read_image(path: Path, arch: Arch | None = None) -> KernelImage:
    """Identify an image from its header.

    :param arch: what the caller expects; None takes what the image is for.
    :raises UsageError: unreadable, empty, truncated, no kernel, or another architecture's kernel.
    """
    try:
        if path.is_dir():
            raise UsageError(f"{path} is a directory, not a kernel image", hint="for a build dir use -b")
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
    except OSError as error:
        raise UsageError(f"cannot read kernel image {path}: {error.strerror}") from error
    if not head:
        raise UsageError(f"kernel image {path} is empty", hint="build it again")
    if head.startswith(_GZIP):
        head, size = _gunzip(path)
    image = _identify(path, head, size)
    if arch is not None and image.arch is not arch:
        raise UsageError(
            f"{path} is an {image.arch} kernel, not {arch}", hint=f"boot it with -a {image.arch}"
        )
    return image


def _gunzip(path: Path) -> tuple[bytes, int]:
    """The first bytes and the whole size of what a gzip file holds; all of it is read, to find damage."""
    inflate = zlib.decompressobj(wbits=31)  # 16 + 15: a gzip wrapper, zlib.h inflateInit2
    head, size = b"", 0
    try:
        with path.open("rb") as file:
            while chunk := inflate.unconsumed_tail or file.read(1 << 16):
                data = inflate.decompress(chunk, 1 << 20)
                size += len(data)
                head += data[: _HEAD_BYTES - len(head)]
    except zlib.error as error:
        raise UsageError(f"kernel image {path} is damaged: {error}", hint="build it again") from error
    if not inflate.eof:
        raise UsageError(
            f"kernel image {path} is truncated: the gzip stream has no end", hint="build it again"
        )
    return head, size


def _identify(path: Path, head: bytes, size: int) -> KernelImage:
    if head[0x202:0x206] == b"HdrS" and head[0x1FE:0x200] == b"\x55\xaa":
        return _read_x86(path, head, size)
    if head[56:60] == b"ARM\x64":
        return _read_arm64(path, head)
    if head.startswith(b"\x7fELF"):
        raise UsageError(
            f"{path} is an ELF file, not a boot image",
            hint="boot arch/x86/boot/bzImage or arch/arm64/boot/Image instead",
        )
    if head[4:8] == b"zimg":  # drivers/firmware/efi/libstub/zboot-header.S
        raise UsageError(
            f"{path} is an EFI zboot image, which only EFI firmware can start",
            hint="boot arch/arm64/boot/Image or Image.gz instead",
        )
    raise UsageError(
        f"{path} is not a kernel image: neither an x86 bzImage nor an arm64 Image",
        hint="boot arch/x86/boot/bzImage or arch/arm64/boot/Image",
    )


def _read_x86(path: Path, head: bytes, size: int) -> KernelImage:
    """Documentation/arch/x86/boot.rst, "The Real-Mode Kernel Header"."""
    protocol = struct.unpack_from("<H", head, 0x206)[0]
    if protocol < 0x20C:  # xloadflags came with protocol 2.12 (Linux 3.8)
        raise UsageError(f"{path} has boot protocol {protocol >> 8}.{protocol & 255:02}, older than 2.12")
    xloadflags = struct.unpack_from("<H", head, 0x236)[0]
    if not xloadflags & 1:  # XLF_KERNEL_64
        raise UsageError(f"{path} is a 32-bit x86 kernel", hint="klto boots x86_64 and arm64 kernels")
    setup_sects = head[0x1F1] or 4
    (syssize,) = struct.unpack_from("<I", head, 0x1F4)
    needed = (setup_sects + 1) * 512 + syssize * 16
    if size < needed:
        raise UsageError(f"kernel image {path} is truncated: {size} of {needed} bytes", hint="build it again")
    (version_at,) = struct.unpack_from("<H", head, 0x20E)
    release = None
    if version_at:
        text = head[version_at + 0x200 :].split(b"\0", 1)[0][:200].decode("ascii", "replace")
        release = text.split(" ", 1)[0] or None
    return KernelImage(path, Arch.X86_64, release)


def _read_arm64(path: Path, head: bytes) -> KernelImage:
    """Documentation/arch/arm64/booting.rst, section 4."""
    (flags,) = struct.unpack_from("<Q", head, 24)
    if flags & 1:
        raise UsageError(f"{path} is a big-endian arm64 kernel", hint="klto's init is little-endian")
    return KernelImage(path, Arch.ARM64, None)
