"""klto's init, compiled for the guest, and the initramfs around it. Kept in the user's cache by content."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from klto import process
from klto.boot.images import Arch
from klto.boot.initramfs import DEVICES, Entry, archive, directory, regular
from klto.errors import UsageError
from klto.files import make_directory, write_whole

#: Seconds that a compiler or linker may take over one small file; far more than a busy machine needs.
_TOOL_SECONDS = 120.0

_TARGETS = {Arch.X86_64: "x86_64-linux-gnu", Arch.ARM64: "aarch64-linux-gnu"}

#: General registers only: a kernel may be built without floating point for its processes.
_CFLAGS = (
    "-std=c11",
    "-O2",
    "-ffreestanding",
    "-fno-builtin",
    "-nostdlibinc",
    "-fno-pie",
    "-fno-stack-protector",
    "-fno-asynchronous-unwind-tables",
    "-mgeneral-regs-only",
)
_LDFLAGS = ("-static", "-nostdlib", "-e", "_start", "-z", "noexecstack", "--build-id=none")

#: All of the initramfs that is not a file: device nodes, and directories to mount on.
_SKELETON = (*DEVICES, *(directory(name) for name in ("klto", "proc", "debug")))


@dataclass(frozen=True)
class Compiler:
    """The clang and ld.lld that make the init."""

    clang: Path
    lld: Path


def target_of(arch: Arch) -> str:
    """clang's ``--target`` for a guest's programs."""
    return _TARGETS[arch]


def init_sources() -> dict[str, bytes]:
    """The C sources of klto's init by file name: ``init.c`` and what it includes."""
    folder = resources.files("klto.boot").joinpath("init")
    files = (file for file in folder.iterdir() if file.name.endswith((".c", ".h")))
    return {file.name: file.read_bytes() for file in sorted(files, key=lambda file: file.name)}


def compile_init(arch: Arch, compiler: Compiler, into: Path) -> Path:
    """Compile the init into a static ELF executable in the directory ``into``; its path.

    :raises UsageError: when the compiler or the linker fails, with their own lines.
    """
    source, obj, program = into / "init.c", into / "init.o", into / "init"
    for name, content in init_sources().items():
        (into / name).write_bytes(content)
    target = f"--target={target_of(arch)}"
    _tool([compiler.clang, target, *_CFLAGS, "-c", source, "-o", obj], "compile")
    _tool([compiler.lld, *_LDFLAGS, obj, "-o", program], "link")
    return program


def _tool(argv: Sequence[process.Arg], verb: str) -> None:
    try:
        process.run(argv, timeout=_TOOL_SECONDS)
    except process.CommandFailed as error:
        raise UsageError(
            f"cannot {verb} klto's init with {os.fspath(argv[0])}",
            hint="name a complete LLVM with -t",
            details=(*error.details, error.message),
        ) from error


def base_initramfs(arch: Arch, compiler: Compiler, cache: Path) -> bytes:
    """The part of the initramfs that every boot shares: device nodes and /init.

    It is made again when the source, the options or a tool has changed, or when the cached file is damaged.

    :param cache: klto's directory in the user's cache; used when it can be.
    :raises UsageError: when the init cannot be made.
    """
    key = _key(arch, compiler)
    cached = _load(cache / "initramfs", key)
    if cached is not None:
        return cached
    try:
        with tempfile.TemporaryDirectory(prefix="klto-init-") as scratch:
            program = compile_init(arch, compiler, Path(scratch)).read_bytes()
    except OSError as error:
        raise UsageError(
            f"cannot make klto's init in the temporary directory: {error.strerror or error}",
            hint="name another one in TMPDIR",
        ) from error
    made = archive((*_SKELETON, regular("init", program, executable=True)))
    _store(cache / "initramfs", key, made)
    return made


def boot_archive(nonce: str, plan: Sequence[str], files: Sequence[Entry] = ()) -> bytes:
    """The part of the initramfs that one boot has for itself: the plan's lines (see init.c) and ``files``."""
    text = "".join(f"{line}\n" for line in (f"nonce {nonce}", *plan))
    return archive((regular("klto/plan", text.encode("utf-8", "surrogateescape")), *files))


def _key(arch: Arch, compiler: Compiler) -> str:
    """Changes with whatever the initramfs is made of. A tool is known by its file, not by running it."""
    digest = hashlib.sha256()
    parts: list[object] = [arch, _CFLAGS, _LDFLAGS, _SKELETON, init_sources()]
    for tool in (compiler.clang, compiler.lld):
        try:
            real = tool.resolve(strict=True)
            status = real.stat()
        except OSError as error:
            raise UsageError(f"cannot run {tool}: {error.strerror}") from error
        # The name too: ld.lld is a link to lld, which acts by its name.
        parts += [tool.name, str(real), status.st_size, status.st_mtime_ns]
    digest.update(repr(parts).encode())
    return digest.hexdigest()[:32]


def _load(directory_: Path, key: str) -> bytes | None:
    """A cached archive whose content still has the digest in its name."""
    for path in directory_.glob(f"{key}-*.cpio"):
        try:
            data = path.read_bytes()
        except OSError:
            continue
        if path.stem == f"{key}-{_digest(data)}":
            return data
    return None


def _store(directory_: Path, key: str, data: bytes) -> None:
    """Best effort: a full or read-only cache costs the next boot a compilation, no more."""
    try:
        make_directory(directory_)
        write_whole(directory_ / f"{key}-{_digest(data)}.cpio", data)
    except UsageError:
        return


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:32]
