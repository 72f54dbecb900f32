"""What all tests share: tools that must be there, a way to run klto, and scratch file systems."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import hypothesis
import pytest

CI = bool(os.environ.get("CI"))

# Examples that run other programs take as long as the machine lets them.
hypothesis.settings.register_profile(
    "klto", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow], derandomize=CI
)
hypothesis.settings.load_profile("klto")

# Builds add themselves to the user's history: not those of the tests.
_DATA = tempfile.TemporaryDirectory(prefix="klto-data-")
os.environ["XDG_DATA_HOME"] = _DATA.name

# nohup and background jobs of a shell start us with signals ignored, and klto leaves an ignored signal alone.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)


def missing(what: str) -> None:
    """A tool is not there: that fails in CI, and skips, with the name, elsewhere."""
    if CI:
        pytest.fail(f"{what} is missing (scripts/setup.sh test installs it)")
    pytest.skip(f"{what} is missing")


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests may run below make: its variables must not reach the makes that they start."""
    for name in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def llvm_bin() -> Path:
    """The bin directory of LLVM 19."""
    folder = Path("/usr/lib/llvm-19/bin")
    if not (folder / "ld.lld").exists() or not (folder / "clang").exists():
        missing("LLVM 19 (clang-19, lld-19)")
    return folder


@dataclass(frozen=True)
class Ran:
    """A finished klto."""

    status: int
    out: str
    err: str


Klto = Callable[..., Ran]


@pytest.fixture
def klto(tmp_path: Path, llvm_bin: Path) -> Klto:
    """Run klto as a user would, with LLVM 19 first in PATH and a cache of its own."""

    def run(*arguments: str | Path, cwd: Path | None = None, env: dict[str, str] | None = None) -> Ran:
        done = subprocess.run(
            [sys.executable, "-m", "klto", *map(str, arguments)],
            cwd=cwd or tmp_path,
            env=klto_environment(llvm_bin, tmp_path / "cache") | (env or {}),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert "Traceback" not in done.stderr, done.stderr
        return Ran(done.returncode, done.stdout, done.stderr)

    return run


def klto_environment(llvm_bin: Path, cache: Path) -> dict[str, str]:
    """An environment in which ``LLVM=1`` means ``llvm_bin``."""
    return {**os.environ, "PATH": f"{llvm_bin}:{os.environ['PATH']}", "XDG_CACHE_HOME": str(cache)}


@pytest.fixture
def mount_tmpfs(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Mount small file systems: ``mount_tmpfs("size=1m")``. Needs root."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        missing("root, to mount a tmpfs")
    mounted: list[Path] = []

    def mount(options: str) -> Path:
        place = tmp_path / f"mount{len(mounted)}"
        place.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", place], check=True)
        mounted.append(place)
        return place

    yield mount
    for place in mounted:
        subprocess.run(["umount", "-l", place], check=True)
