"""The kernels of tests/real, for the longer tests."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from klto.files import user_cache_dir
from tests.conftest import missing
from tests.real.conftest import ROOT, Kernel, run_klto, unpacked
from tests.real.conftest import arm64_6_12 as arm64_6_12
from tests.real.conftest import copy_of as copy_of
from tests.real.conftest import linux_6_1 as linux_6_1
from tests.real.conftest import linux_6_12 as linux_6_12
from tests.real.conftest import x86_64_6_1 as x86_64_6_1
from tests.real.conftest import x86_64_6_12 as x86_64_6_12
from tests.real.conftest import x86_64_6_12_debug as x86_64_6_12_debug
from tests.real.conftest import x86_64_6_12_full as x86_64_6_12_full


@pytest.fixture(scope="session")
def x86_64_6_12_defconfig(linux_6_12: Path) -> Kernel:
    """x86_64, 6.12, ThinLTO, the architecture's own defconfig: four times the others."""
    build_dir = user_cache_dir() / "test" / "x86_64-6.12-defconfig"
    options = ("-C", str(linux_6_12), "-b", str(build_dir), "-a", "x86_64")
    made = ("-t", "llvm-19", "-k", "defconfig", "-K", "CONFIG_WERROR=n", "--lto", "thin")
    done = run_klto("build", *options, *made)
    assert done.status == 0, done.err
    return Kernel(linux_6_12, build_dir, "x86_64", options)


@pytest.fixture(scope="session")
def arm64_6_12_defconfig(linux_6_12: Path) -> Kernel:
    """arm64, 6.12, ThinLTO, the architecture's own defconfig, which has debug information. vmlinux alone."""
    build_dir = user_cache_dir() / "soak" / "arm64-6.12-defconfig"
    options = ("-C", str(linux_6_12), "-b", str(build_dir), "-a", "arm64")
    made = ("-t", "llvm-19", "-k", "defconfig", "-K", "CONFIG_WERROR=n", "--lto", "thin", "vmlinux")
    done = run_klto("build", *options, *made)
    assert done.status == 0, done.err
    return Kernel(linux_6_12, build_dir, "arm64", options)


def kernel_by(llvm: int, version: str) -> Kernel:
    """x86_64 with ThinLTO, built by another LLVM than the other tests', and booted."""
    if shutil.which(f"clang-{llvm}") is None:
        missing(f"clang-{llvm}")
    tree, build_dir = unpacked(version), user_cache_dir() / "soak" / f"x86_64-{version}-llvm-{llvm}"
    # kCFI needs clang 16 (arch/Kconfig of 6.12, ARCH_USES_CFI_TRAPS; -fsanitize=kcfi).
    without = ("-K", "CONFIG_CFI_CLANG=n") if llvm < 16 and version == "6.12" else ()
    config = ROOT / f"configs/x86_64-{version}.config"
    options = ("-C", str(tree), "-b", str(build_dir), "-a", "x86_64")
    made = ("-t", f"llvm-{llvm}", "-k", "allnoconfig", "-K", config, *without, "--lto", "thin", "--boot")
    done = run_klto("build", *options, *made)
    assert done.status == 0, done.err
    return Kernel(tree, build_dir, "x86_64", options)
