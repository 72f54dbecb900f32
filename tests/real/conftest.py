"""Real kernels, built once by klto itself and kept in the user's cache, so that a second run of the tests is
incremental."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from klto.files import user_cache_dir
from tests.conftest import Ran, missing

ROOT = Path(__file__).parent.parent.parent


@dataclass(frozen=True)
class Kernel:
    """A built kernel. ``options``: what ``klto build`` and ``klto boot`` need to name it again."""

    tree: Path
    build_dir: Path
    arch: str
    options: tuple[str, ...]

    def klto(self, *arguments: str | Path) -> Ran:
        """Run klto in this checkout, with the user's cache."""
        return run_klto(*arguments)


def run_klto(*arguments: str | Path) -> Ran:
    """klto as a user runs it; its errors are shown when a test fails."""
    done = subprocess.run(
        [sys.executable, "-m", "klto", *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    print("klto", *arguments, done.stdout, done.stderr, sep="\n")
    assert "Traceback" not in done.stderr
    return Ran(done.returncode, done.stdout, done.stderr)


def unpacked(version: str) -> Path:
    """The source tree of Debian's linux-source package, unpacked in the user's cache."""
    if not Path(f"/usr/src/linux-source-{version}.tar.xz").exists():
        missing(f"linux-source-{version}")
    done = subprocess.run(
        [ROOT / "scripts/unpack-linux.sh", version], capture_output=True, text=True, check=True
    )
    return Path(done.stdout.strip())


@pytest.fixture(scope="session")
def linux_6_12() -> Path:
    """The source tree of Linux 6.12."""
    return unpacked("6.12")


@pytest.fixture(scope="session")
def linux_6_1() -> Path:
    """The source tree of Linux 6.1."""
    return unpacked("6.1")


def _built(tree: Path, arch: str, config: str, name: str, *more: str) -> Kernel:
    if shutil.which("clang-19") is None or shutil.which("ld.lld-19") is None:
        missing("LLVM 19 (clang-19, lld-19)")
    build_dir = user_cache_dir() / "test" / name
    options = ("-C", str(tree), "-b", str(build_dir), "-a", arch)
    done = run_klto(
        "build", *options, "-t", "llvm-19", "-k", "allnoconfig", "-K", ROOT / "configs" / config, *more
    )
    assert done.status == 0, done.err
    return Kernel(tree, build_dir, arch, options)


@pytest.fixture(scope="session")
def x86_64_6_12(linux_6_12: Path) -> Kernel:
    """x86_64, 6.12, ThinLTO and kCFI."""
    return _built(linux_6_12, "x86_64", "x86_64-6.12.config", "x86_64-6.12")


@pytest.fixture(scope="session")
def arm64_6_12(linux_6_12: Path) -> Kernel:
    """arm64, 6.12, ThinLTO, kCFI and KVM."""
    return _built(linux_6_12, "arm64", "arm64-6.12.config", "arm64-6.12")


@pytest.fixture(scope="session")
def x86_64_6_1(linux_6_1: Path) -> Kernel:
    """x86_64, 6.1, ThinLTO and trimmed exports."""
    return _built(linux_6_1, "x86_64", "x86_64-6.1.config", "x86_64-6.1")


@pytest.fixture(scope="session")
def x86_64_6_12_full(linux_6_12: Path) -> Kernel:
    """x86_64, 6.12, full LTO."""
    return _built(linux_6_12, "x86_64", "x86_64-6.12.config", "x86_64-6.12-full", "--lto", "full")


@pytest.fixture(scope="session")
def x86_64_6_12_debug(linux_6_12: Path) -> Kernel:
    """x86_64, 6.12, ThinLTO, kCFI (FineIBT), with DWARF 5, KASLR and LKDTM as a module."""
    more = ("-K", str(ROOT / "configs/x86_64-debug.config"))
    return _built(linux_6_12, "x86_64", "x86_64-6.12.config", "x86_64-6.12-debug", *more)


@pytest.fixture
def copy_of() -> Iterator[Callable[[Kernel], Kernel]]:
    """A copy of a build dir, to be damaged. Kbuild's own programs have absolute paths and are made anew."""
    folder = user_cache_dir() / "test" / f"copy-{os.getpid()}"

    def copy(kernel: Kernel) -> Kernel:
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run(["cp", "-a", kernel.build_dir, folder], check=True)
        options = ("-C", str(kernel.tree), "-b", str(folder), "-a", kernel.arch)
        return Kernel(kernel.tree, folder, kernel.arch, options)

    yield copy
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def copied(x86_64_6_12: Kernel, copy_of: Callable[[Kernel], Kernel]) -> Kernel:
    """A finished copy of the build."""
    copied = copy_of(x86_64_6_12)
    # The copy's absolute paths are those of a new place: one build makes Kbuild's own programs again.
    assert copied.klto("build", *copied.options).status == 0
    return copied
