"""One backend as a value: what travels to a worker and what comes back."""

from __future__ import annotations

import hashlib
import re

import msgspec

from klto.cluster.options import CodegenOptions

_DIGEST = re.compile(r"[0-9a-f]{64}")


def digest_of(data: bytes | memoryview) -> str:
    """How content is addressed: SHA-256 in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def inside(path: str) -> bool:
    """Whether a path stays inside the folder that it is relative to, by its words alone."""
    parts = path.split("/")
    return bool(path) and "\0" not in path and not any(part in ("", ".", "..") for part in parts)


class Blob(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file in the job's folder and the SHA-256 of its content."""

    path: str
    sha256: str

    def __post_init__(self) -> None:
        if not inside(self.path):
            raise ValueError(f"a path outside of the job's folder: {self.path!r}")
        if not _DIGEST.fullmatch(self.sha256):
            raise ValueError(f"no SHA-256: {self.sha256!r}")


class Job(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Generate the code of one module.

    :ivar name: for messages.
    :ivar toolchain: the compiler's identity (:mod:`klto.cluster.toolchain`); a job never says what to run.
    :ivar module: path of the bitcode among ``files``. ``index``: of the shard.
    :ivar files: everything that the backend reads: bitcode, shard, imports, what assembly includes.
    """

    name: str
    toolchain: str
    options: CodegenOptions
    module: str
    index: str
    files: tuple[Blob, ...]

    def __post_init__(self) -> None:
        paths = [blob.path for blob in self.files]
        if self.module not in paths or self.index not in paths or len(set(paths)) < len(paths):
            raise ValueError(f"{self.name}: its files are not what its module and index say")
        if self.module.startswith("-") or self.index.startswith("-"):
            raise ValueError(f"{self.name}: a path that could be taken for an option")

    def key(self) -> str:
        """Names the object that comes out: a digest of everything that goes in, the job's name left out."""
        anonymous = msgspec.structs.replace(
            self, name="", files=tuple(sorted(self.files, key=lambda b: b.path))
        )
        return digest_of(b"klto backend 1\0" + msgspec.json.encode(anonymous))


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a job.

    :ivar status: ``done``; ``failed``: the compiler ended with an error of its own; ``lost``: killed, or no memory,
        disk or time, so that it says nothing about the module; ``refused``: another toolchain; ``lacking``: files
        are missing there; ``cancelled``.
    :ivar object: the native object; ``sha256`` was taken where it was made, before it travelled.
    :ivar text: what the compiler said, or why it was lost.
    :ivar lacking: SHA-256 of what is missing.
    """

    status: str
    object: bytes = b""
    sha256: str = ""
    text: str = ""
    lacking: tuple[str, ...] = ()
    wall_seconds: float = 0.0
    cpu_seconds: float = 0.0
    peak_bytes: int = 0
