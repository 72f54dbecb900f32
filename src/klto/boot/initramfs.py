"""The initramfs: a newc cpio archive, written byte by byte.

Device nodes are only bytes here, so no root rights are needed, and the guest needs no devtmpfs.
Format: Documentation/driver-api/early-userspace/buffer-format.rst (Linux 6.12). The kernel accepts several
archives one after another, so that one cached archive serves every boot, with a small one of the boot's own
behind it.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    """One file of an archive. ``mode`` includes the file type (``st_mode``); ``device`` is (major, minor)."""

    name: str
    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


def directory(name: str) -> Entry:
    """A directory that anyone may enter."""
    return Entry(name, stat.S_IFDIR | 0o755)


def regular(name: str, data: bytes, *, executable: bool = False) -> Entry:
    """A regular file."""
    return Entry(name, stat.S_IFREG | (0o755 if executable else 0o644), data)


def character_device(name: str, major: int, minor: int) -> Entry:
    """A character device node."""
    return Entry(name, stat.S_IFCHR | 0o600, device=(major, minor))


#: Numbers from Documentation/admin-guide/devices.txt (6.12); hvc0 from "229 char IBM iSeries/pSeries virtual
#: console", ttyAMA0 from "204 char Low-density serial ports".
DEVICES: tuple[Entry, ...] = (
    directory("dev"),
    character_device("dev/console", 5, 1),
    character_device("dev/null", 1, 3),
    character_device("dev/kmsg", 1, 11),
    character_device("dev/ttyS0", 4, 64),
    character_device("dev/ttyS1", 4, 65),
    character_device("dev/ttyAMA0", 204, 64),
    character_device("dev/hvc0", 229, 0),
    character_device("dev/kvm", 10, 232),
)


def archive(entries: Iterable[Entry]) -> bytes:
    """A complete newc archive. Its length is a multiple of 4, so that archives can be joined by ``+``.

    Times and inode numbers are fixed: the same entries always give the same bytes.

    :raises ValueError: a name that is empty, absolute or holds a NUL.
    """
    members = [_member(entry, inode) for inode, entry in enumerate(entries, start=1)]
    return b"".join([*members, _member(Entry("TRAILER!!!", 0), 0)])


def _member(entry: Entry, inode: int) -> bytes:
    if not entry.name or entry.name.startswith("/") or "\0" in entry.name:
        raise ValueError(f"not a name for an archive member: {entry.name!r}")
    name = entry.name.encode() + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    fields = (
        inode,
        entry.mode,
        0,  # c_uid
        0,  # c_gid
        links,
        0,  # c_mtime
        len(entry.data),
        0,  # c_maj
        0,  # c_min
        entry.device[0],
        entry.device[1],
        len(name),
        0,  # c_chksum: zero in 070701 archives
    )
    header = b"070701" + b"".join(b"%08x" % value for value in fields)
    return _aligned(header + name) + _aligned(entry.data)


def _aligned(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
