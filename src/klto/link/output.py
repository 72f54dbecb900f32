"""What the linker says on its standard error: passed on as it comes, within bounds, and remembered.

The linker writes into a file and not into a pipe: LLVM stores a module in the link cache although it has reported
errors in its assembly (llvm/lib/LTO/LTO.cpp commits the object whatever the diagnostic handler was told; seen with
LLVM 14, 19 and 22), so what a killed link has left may be used only when its errors can still be read.
"""

from __future__ import annotations

import os
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

#: Bytes passed on before the rest is only counted, and bytes of the end that are shown then.
_PASSED, _LAST = 1 << 20, 1 << 14

#: Bytes read at once.
_CHUNK = 1 << 16

#: What stands where words were left out.
CUT = b"bytes of the linker's output are left out here"

#: Bytes in the file after which it is emptied once it has been read.
_MOST_ON_DISK = 32 << 20

#: How lld begins an error (lld/Common/ErrorHandler.cpp), after the program's name.
ERROR = b"error:"


class Output:
    """The linker's standard error. ``descriptor`` is for the linker.

    :param renamed: what stood in for an input, to the input's own name: the user is told of what he has.
    """

    def __init__(
        self,
        path: str | None,
        write: Callable[[bytes], object] | None = None,
        renamed: Mapping[str, str] | None = None,
    ) -> None:
        self._renamed = {os.fsencode(copy): os.fsencode(own) for copy, own in (renamed or {}).items()}
        if path is None:
            self.descriptor = os.memfd_create("klto-linker-stderr", os.MFD_CLOEXEC)
            # The linker must append, or what it says after the file was emptied would have a gap before it.
            self.descriptor = _appending(self.descriptor)
        else:
            self.descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._path = path
        self._write = write or _to_stderr
        self._at = os.fstat(self.descriptor).st_size  # Of the same link's runs before.
        self._torn = b""
        self._kept = b""
        self._last = b""
        self._left_out = 0
        self.first_error: float | None = None

    def pump(self, *, ended: bool = False) -> None:
        """Pass on the lines that have come since the last call; a last one without its end when it has ended."""
        while data := os.pread(self.descriptor, _CHUNK, self._at):
            whole = data.rfind(b"\n") + 1
            if whole == 0 and len(data) < _CHUNK and not ended:
                break
            data = data[:whole] if whole else data
            self._at += len(data)
            for copy, own in self._renamed.items():
                data = data.replace(copy, own)
            if self.first_error is None and ERROR in self._torn + data:
                self.first_error = time.time()
            self._torn = data[-len(ERROR) :]
            room = max(0, _PASSED - len(self._kept))
            if room:
                self._kept += data[:room]
                self._write(data[:room])
            if len(data) > room:
                self._left_out += len(data) - room
                self._last = (self._last + data[room:])[-_LAST:]
        if self._at > _MOST_ON_DISK and self._at == os.fstat(self.descriptor).st_size:
            if self._path is not None and self.first_error is not None:
                mark_tainted(os.path.dirname(self._path))
            os.ftruncate(self.descriptor, 0)
            self._at = 0

    def close(self) -> bytes:
        """Pass on the rest; the first and last of what was said."""
        self.pump(ended=True)
        os.close(self.descriptor)
        if not self._left_out:
            return self._kept
        shown = min(self._left_out, len(self._last))
        note = f"\nklto: {self._left_out - shown} ".encode() + CUT + b"\n"
        self._write(note + self._last)
        return self._kept + note + self._last


def _appending(descriptor: int) -> int:
    again = os.open(f"/proc/self/fd/{descriptor}", os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
    os.close(descriptor)
    return again


def _to_stderr(data: bytes) -> None:
    try:
        sys.stderr.buffer.write(data)
        sys.stderr.buffer.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # Nobody reads any more; the link goes on.


#: In a view's folder: what the linker said, and the mark that it said an error when that has been emptied.
STDERR, TAINTED = "stderr", "tainted"


def mark_tainted(folder: str) -> None:
    """Note in a view that its link has reported errors."""
    os.close(os.open(os.path.join(folder, TAINTED), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))


def is_tainted(folder: str) -> bool:
    """Whether the link of a view has reported an error: what it generated cannot be told right from wrong."""
    if os.path.lexists(os.path.join(folder, TAINTED)):
        return True
    try:
        with open(os.path.join(folder, STDERR), "rb") as stream:
            torn = b""
            while data := stream.read(1 << 16):
                if ERROR in torn + data:
                    return True
                torn = data[-len(ERROR) :]
    except FileNotFoundError:
        return False
    return False
