"""Several guests at once: each waits until the machine has the memory that it may come to use.

A guest touches its memory little by little, so what is available now says nothing about guests that have just
started. Each therefore leaves a note in the user's cache of what it may use, locked for as long as it lives.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from klto import machine
from klto.errors import UsageError
from klto.files import make_directory

#: What QEMU needs beside the guest's memory, mostly for translated code. Over the test kernels its largest
#: resident set (QEMU 7.2, TCG) was 170 MiB, with what the guest had touched.
QEMU_BYTES = 128 << 20

#: Seconds that a boot waits for others to end.
PATIENCE_SECONDS = 600.0

_LOOK_AGAIN_SECONDS = 0.2


@contextmanager
def reserved(cache: Path, guest_bytes: int, patience: float = PATIENCE_SECONDS) -> Iterator[None]:
    """Hold memory for one guest; wait for it while other guests have it. A guest alone always starts.

    :raises UsageError: when there is still not enough after ``patience`` seconds.
    """
    wanted = guest_bytes + QEMU_BYTES
    try:
        folder = make_directory(cache / "guests")
        gate = os.open(folder / "gate", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except (OSError, UsageError):
        yield  # A cache that cannot be written: nothing is known of others.
        return
    try:
        note = _enter(folder, gate, wanted, time.monotonic() + patience)
        try:
            yield
        finally:
            os.unlink(note[0])
            os.close(note[1])
    finally:
        os.close(gate)


def _enter(folder: Path, gate: int, wanted: int, until: float) -> tuple[Path, int]:
    """Our note and its descriptor, once there is room."""
    while True:
        fcntl.flock(gate, fcntl.LOCK_EX)
        try:
            others = _promised(folder)
            available = machine.memory_bytes()[1]
            if others == 0 or others + wanted <= available:
                return _leave_note(folder, wanted)
        finally:
            fcntl.flock(gate, fcntl.LOCK_UN)
        if time.monotonic() > until:
            raise UsageError(
                f"no memory for another guest: it may use {wanted >> 20} MiB, {available >> 20} MiB are available, "
                f"and other boots may still use {others >> 20} MiB",
                "wait until they have ended",
            )
        time.sleep(_LOOK_AGAIN_SECONDS)


def _leave_note(folder: Path, wanted: int) -> tuple[Path, int]:
    number = 0
    while True:
        path = folder / f"{os.getpid()}-{number}-{wanted}.guest"
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except FileExistsError:
            number += 1
            continue
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        return path, descriptor


def _promised(folder: Path) -> int:
    """Bytes that living guests may use. Notes of those that were killed are removed."""
    total = 0
    for path in folder.glob("*.guest"):
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink(missing_ok=True)
        except BlockingIOError:
            size = path.stem.rpartition("-")[2]
            total += int(size) if size.isdecimal() else 0
        finally:
            os.close(descriptor)
    return total
