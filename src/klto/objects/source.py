"""Files as buffers: small ones read, large ones mapped."""

from __future__ import annotations

import mmap
import os
import stat

from klto.objects.errors import MalformedObject, cannot_read

Buffer = bytes | memoryview

#: Mapping and unmapping cost about as much as copying this many bytes.
_MAP_FROM_BYTES = 1 << 20


def read_whole(path: str | os.PathLike[str]) -> Buffer:
    """The content of a regular file, never copied when it is large.

    When another process truncates a mapped file, SIGBUS ends this one, as it would any linker.

    :raises MalformedObject: when it cannot be read or is no regular file (a pipe or device might not end).
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise MalformedObject(str(path), None, "is not a regular file")
            if status.st_size >= _MAP_FROM_BYTES:
                return memoryview(mmap.mmap(fd, status.st_size, prot=mmap.PROT_READ))
            return _read_all(fd, status.st_size)
        finally:
            os.close(fd)
    except OSError as error:
        raise cannot_read(path, error) from error


def _read_all(fd: int, size: int) -> bytes:
    data = os.read(fd, size + 1)
    if len(data) == size:
        return data
    parts = [data]
    while part := os.read(fd, _MAP_FROM_BYTES):
        parts.append(part)
    return b"".join(parts)
