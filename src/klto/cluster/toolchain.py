"""Which compiler a worker has, so that only an equal one takes jobs."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from klto import process
from klto.errors import UsageError
from klto.files import user_cache_dir
from klto.kernel.toolchain import candidates
from klto.kernel.toolchain_probe import AnswerCache

if TYPE_CHECKING:
    from collections.abc import Iterable

#: Shared libraries that LLVM's code is in; others (libc, libz) do not decide about generated code.
_LLVM_LIBRARIES = ("libLLVM", "libclang")


class Compiler(msgspec.Struct, frozen=True, kw_only=True):
    """A clang. ``version`` is what it says of itself with its vendor's build, ``build`` a digest of its code and
    LLVM's, ``targets`` the targets it was built with."""

    path: str
    version: str
    build: str
    targets: tuple[str, ...]

    @property
    def identity(self) -> str:
        """Equal for compilers that make the same code, wherever they lie."""
        text = "\0".join((self.version, self.build, *self.targets))
        return hashlib.sha256(text.encode()).hexdigest()

    def __str__(self) -> str:
        return f"{self.version}, build {self.build[:12]}, {len(self.targets)} targets"


#: Compilers that this process has asked, by path, each with the stamps of its files.
_asked: dict[str, tuple[dict[str, tuple[int, ...]], Compiler]] = {}


def compiler_at(path: str) -> Compiler:
    """Ask a clang; what it answered is remembered for as long as the program and LLVM's library are the same files:
    a worker outlives upgrades.

    :raises UsageError: when it does not answer.
    """
    real = os.path.realpath(path)
    known = _asked.get(real)
    if known is not None and known[0] == _stamps(known[0]):
        return known[1]
    files = [real, *_llvm_libraries(real)]
    stamps = _stamps(files)
    answers = AnswerCache(user_cache_dir() / "toolchain.json")
    version, build, targets = answers.get("cluster identity", list(map(Path, files)), lambda: _ask(real))
    compiler = Compiler(path=real, version=version, build=build, targets=tuple(targets))
    _asked[real] = stamps, compiler
    return compiler


def _stamps(files: Iterable[str]) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {}
    for file in files:
        try:
            status = os.stat(file)
        except OSError:
            continue  # Then it differs from what it was.
        found[file] = (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    return found


def _ask(path: str) -> list[Any]:
    try:
        version = process.run([path, "--version"], timeout=60).stdout.splitlines()[0]
        listed = process.run([path, "--print-targets"], timeout=60).stdout.splitlines()
    except (process.CommandFailed, process.CommandTimeout, IndexError) as error:
        raise UsageError(f"{path} does not say what it is: {error}") from error
    digest = hashlib.sha256()
    for file in (path, *_llvm_libraries(path)):
        with open(file, "rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return [version, digest.hexdigest(), [line.split()[0] for line in listed if " - " in line]]


def _llvm_libraries(path: str) -> list[str]:
    listed = process.run(["ldd", path], check=False, timeout=60).stdout
    found = [words[2] for line in listed.splitlines() if len(words := line.split()) > 2 and words[1] == "=>"]
    return sorted(os.path.realpath(p) for p in found if os.path.basename(p).startswith(_LLVM_LIBRARIES))


def compilers_here() -> list[Compiler]:
    """Every clang in sight that answers."""
    paths = [dict(c.found)["clang"] for c in candidates() if "clang" in dict(c.found)]
    found: dict[str, Compiler] = {}
    for path in paths:
        real = os.path.realpath(path)
        try:
            found.setdefault(real, compiler_at(real))
        except UsageError:
            continue  # It is of no use to anybody; "klto doctor" is the place to say so.
    return list(found.values())


def find_compiler(identity: str) -> Compiler | None:
    """The clang here with this identity."""
    for stamps, compiler in list(_asked.values()):
        if compiler.identity == identity and stamps == _stamps(stamps):
            return compiler
    return next((c for c in compilers_here() if c.identity == identity), None)


def compiler_of_linker(linker: str) -> Compiler:
    """The clang of the LLVM that a linker is of: next to it, behind links.

    :raises UsageError: when there is none or it is of another version.
    """
    real = Path(os.path.realpath(linker))
    beside = shutil.which("clang", path=str(real.parent))
    if beside is None:
        raise UsageError(
            f"no clang next to {real}: backends need the compiler of the linker's own LLVM",
            f"apt-get install clang-{real.parent.parent.name.removeprefix('llvm-')}",
        )
    compiler = compiler_at(os.path.realpath(beside))
    said = process.run([linker, "--version"], timeout=60).stdout.split()
    number = next((word for word in said if word[:1].isdigit()), "?")
    if number not in compiler.version:
        raise UsageError(f"{linker} is LLD {number}, the clang next to it is {compiler.version}")
    return compiler
