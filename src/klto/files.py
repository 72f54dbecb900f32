"""Writing files so that they appear whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from klto.errors import UsageError


def write_whole(path: Path, data: bytes | str, *, mode: int = 0o644, durable: bool = False) -> None:
    """Write aside in the same directory, then rename onto ``path``.

    :param durable: fsync before the rename, for what must survive a power loss.
    :raises UsageError: when the directory cannot be written or the disk is full; ``path`` is then as it was.
    """
    raw = data.encode() if isinstance(data, str) else data
    aside = None
    try:
        descriptor, aside = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(raw)
            stream.flush()
            os.fchmod(stream.fileno(), mode)
            if durable:
                os.fsync(stream.fileno())
        os.replace(aside, path)
    except OSError as error:
        if aside is not None:
            Path(aside).unlink(missing_ok=True)
        raise UsageError(f"cannot write {path}: {error.strerror}") from error


def make_directory(path: Path) -> Path:
    """Create ``path`` and its parents; ``path`` itself.

    :raises UsageError: when that is not possible.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot create directory {path}: {error.strerror}") from error
    return path


def user_cache_dir() -> Path:
    """klto's folder in the user's cache (XDG Base Directory Specification 0.8); it may not exist yet."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if base.startswith("/") else Path.home() / ".cache") / "klto"


def user_data_dir() -> Path:
    """klto's folder for what must last (XDG Base Directory Specification 0.8); it may not exist yet."""
    base = os.environ.get("XDG_DATA_HOME", "")
    return (Path(base) if base.startswith("/") else Path.home() / ".local" / "share") / "klto"
