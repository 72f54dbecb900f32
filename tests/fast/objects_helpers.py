"""Objects that the installed compilers make for the tests, and what LLVM's own tools say about them."""

from __future__ import annotations

import atexit
import functools
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

#: The LLVM versions whose output the readers are held against.
LLVMS = (14, 19, 22)


@functools.cache
def scratch() -> Path:
    """A folder that lives as long as the test run."""
    path = tempfile.mkdtemp(prefix="klto-objects-")
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return Path(path)


def missing(what: str) -> None:
    """A missing tool skips on a laptop and fails in CI."""
    if os.environ.get("CI"):
        pytest.fail(f"{what} is not installed")
    pytest.skip(f"{what} is not installed")


@functools.cache
def tool(name: str, version: int | None = None) -> str:
    """Path of a program, of one LLVM version or as PATH has it."""
    if version is None:
        found = shutil.which(name)
    else:
        found = shutil.which(f"{name}-{version}") or shutil.which(name, path=f"/usr/lib/llvm-{version}/bin")
    if found is None:
        missing(name if version is None else f"{name} of LLVM {version}")
    assert found is not None
    return found


def run(*args: str | Path, cwd: Path | None = None, ok: bool = True) -> str:
    """A program's stdout."""
    done = subprocess.run(
        [str(a) for a in args], cwd=cwd, capture_output=True, env={**os.environ, "LC_ALL": "C"}, check=False
    )
    assert done.returncode == 0 or not ok, done.stderr.decode("utf-8", "replace")
    return done.stdout.decode("utf-8", "surrogateescape")


@functools.cache
def compiled(source: str, version: int, *flags: str, suffix: str = ".c") -> Path:
    """An object that clang of ``version`` makes of a source text, whose assembly may include two files."""
    folder = Path(tempfile.mkdtemp(dir=scratch()))
    (folder / "included").write_text("# nothing\n")
    (folder / 'an "odd" name').write_text("content")
    (folder / f"source{suffix}").write_text(source)
    run(tool("clang", version), "-c", "-w", *flags, f"source{suffix}", "-o", "object.o", cwd=folder)
    return folder / "object.o"


def assembled(source: str, version: int, target: str, *flags: str) -> Path:
    """An ELF object of assembly text."""
    return compiled(source, version, f"--target={target}", *flags, suffix=".s")


def nm(path: Path, version: int, *flags: str) -> list[tuple[str, str]]:
    """llvm-nm's letters and names, in its order; of an object, not of an archive.

    It assembles bitcode's assembly itself, and must find the files that this includes.
    """
    lines = run(tool("llvm-nm", version), *flags, path, cwd=path.parent).splitlines()
    found = [re.fullmatch(r"(?:[0-9a-f]+|-+| +) (.) (.*)", line) for line in lines if line]
    return [(match[1], match[2]) for match in found if match]


def braces(text: str, kind: str) -> list[dict[str, str]]:
    """The ``kind {`` ... ``}`` groups of llvm-readobj's own style, their ``Key: value`` lines only."""
    groups: list[dict[str, str]] = []
    current: dict[str, str] | None = None
    for line in text.splitlines():
        word = line.strip()
        if word == f"{kind} {{":
            current = {}
            groups.append(current)
        elif word == "}":
            current = None
        elif current is not None:
            key, colon, value = word.partition(":")
            flags = re.fullmatch(r"(Flags|Other) \[ \((0x[0-9A-F]+)\)", word)
            if flags:
                current[flags[1]] = flags[2]
            elif colon and key not in current:
                current[key] = value.strip()
    return groups


def number(text: str) -> int:
    """``SHT_PROGBITS (0x1)`` and ``12`` alike."""
    inner = re.search(r"\((0x[0-9A-Fa-f]+|\d+)\)$", text)
    return int(inner[1] if inner else text, 0)
