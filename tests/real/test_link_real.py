"""The link cache on a real kernel."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from klto.record import Link, read_record
from tests.real.conftest import Kernel

pytestmark = pytest.mark.real


@pytest.fixture
def copied(x86_64_6_12: Kernel, copy_of: Callable[[Kernel], Kernel]) -> Iterator[Kernel]:
    kernel = copy_of(x86_64_6_12)
    assert kernel.klto("build", *kernel.options).status == 0
    yield kernel
    shutil.rmtree(kernel.build_dir)


def _vmlinux_link(kernel: Kernel) -> Link:
    record = read_record(kernel.build_dir / ".klto/record.json")
    return next(link for link in record.links if link.output == "vmlinux.o")


def _relinked(kernel: Kernel, *options: str) -> bytes:
    (kernel.build_dir / "vmlinux.o").unlink()
    assert kernel.klto("build", *kernel.options, *options).status == 0
    return (kernel.build_dir / "vmlinux.o").read_bytes()


def _ikconfig(kernel: Kernel) -> list[str]:
    """The configuration that is inside vmlinux, as the kernel's own script finds it."""
    script: Path = kernel.tree / "scripts/extract-ikconfig"
    done = subprocess.run([script, kernel.build_dir / "vmlinux"], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_relink_takes_everything_from_the_cache_and_gives_the_same_bytes(copied: Kernel) -> None:
    _relinked(copied)
    cached = _relinked(copied)
    assert _vmlinux_link(copied).generated == 0
    assert _relinked(copied, "--no-cache") == cached
    assert _vmlinux_link(copied).generated is None


def test_ikconfig_is_never_stale(copied: Kernel, tmp_path: Path) -> None:
    """Why the kernel dropped LLVM's cache: kernel/configs.c includes config_data.gz by .incbin.

    With a cache of its own: the user's may well know the changed kernel from the last time this ran."""
    cache = ("--cache-dir", str(tmp_path))
    _relinked(copied, *cache)
    before = _ikconfig(copied)
    assert "CONFIG_LOG_BUF_SHIFT=17" in before
    assert copied.klto("build", *copied.options, "-K", "CONFIG_LOG_BUF_SHIFT=15", *cache).status == 0
    link = _vmlinux_link(copied)
    assert link.generated is not None
    assert 0 < link.generated < link.bitcode_inputs / 4
    after = _ikconfig(copied)
    assert "CONFIG_LOG_BUF_SHIFT=15" in after
    linked = (copied.build_dir / "vmlinux.o").read_bytes()
    assert _relinked(copied, "--no-cache") == linked
