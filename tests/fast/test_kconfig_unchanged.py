"""A ``.config`` that already is what was asked for is left alone, without a run of make."""

from __future__ import annotations

from pathlib import Path

import pytest

from klto.errors import UsageError
from klto.kernel.kconfig import ConfigResult, configure, parse_requests
from klto.kernel.toolchain import Toolchain, find_toolchain
from klto.kernel.tree import KernelTree
from tests.fake_kernel import make_fake_kernel, thin_config


@pytest.fixture
def tree(tmp_path: Path) -> KernelTree:
    """A fake tree; its kconfig is no kconfig, so running it fails."""
    root = make_fake_kernel(tmp_path / "linux")
    (root / "Makefile").write_text(
        "VERSION = 6\nPATCHLEVEL = 12\n%config:\n\t@echo kconfig was run >&2; false\n"
    )
    return KernelTree.open(root, "x86_64")


@pytest.fixture
def toolchain(llvm_bin: Path) -> Toolchain:
    return find_toolchain(request=str(llvm_bin))


@pytest.fixture
def build_dir(tmp_path: Path, llvm_bin: Path) -> Path:
    folder = tmp_path / "build"
    folder.mkdir()
    (folder / ".config").write_text(thin_config(llvm_bin) + "CONFIG_SMP=y\n")
    return folder


REQUESTS = ("CONFIG_LTO_CLANG_THIN=y", "CONFIG_SMP=y", "CONFIG_PRINTK=n")


def test_nothing_to_do(tree: KernelTree, toolchain: Toolchain, build_dir: Path) -> None:
    result = configure(tree, toolchain, build_dir, None, parse_requests(REQUESTS))
    assert result == ConfigResult(build_dir / ".config", changed=False, ran=False, lto="thin")
    assert [file.name for file in build_dir.iterdir()] == [".config"]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("CONFIG_SMP=y\n", ""),
        ("CONFIG_SMP=y\n", "CONFIG_SMP=m\n"),
        ("CONFIG_SMP=y\n", "CONFIG_SMP=y\nCONFIG_PRINTK=y\n"),
        ("CC_VERSION_TEXT=", "CC_VERSION_TEXTS="),
        ("clang version", "clang Version"),
        ("CONFIG_LLD_VERSION=19", "CONFIG_LLD_VERSION=18"),
        ("CONFIG_SMP=y\n", "CONFIG_SMP=y\nCONFIG_X=yes\n"),
    ],
)
def test_kconfig_is_asked(
    tree: KernelTree, toolchain: Toolchain, build_dir: Path, before: str, after: str
) -> None:
    config = build_dir / ".config"
    config.write_text(config.read_text().replace(before, after))
    text = config.read_text()
    with pytest.raises(UsageError, match="configuration failed") as caught:
        configure(tree, toolchain, build_dir, None, parse_requests(REQUESTS))
    assert any("kconfig was run" in line for line in caught.value.details)
    assert config.read_text() == text


def test_garbage_is_refused_first(tree: KernelTree, toolchain: Toolchain, build_dir: Path) -> None:
    (build_dir / ".config").write_text("CONFIG_SMP=y\n>>>>>>> theirs\n")
    with pytest.raises(UsageError, match=r"\.config:2: not a configuration line"):
        configure(tree, toolchain, build_dir, None, parse_requests(REQUESTS))


def test_32_bit_configuration(tree: KernelTree, toolchain: Toolchain, build_dir: Path) -> None:
    config = build_dir / ".config"
    config.write_text(config.read_text().replace("CONFIG_64BIT=y\n", ""))
    with pytest.raises(UsageError, match="32-bit x86, klto builds x86_64"):
        configure(tree, toolchain, build_dir, None, parse_requests(REQUESTS))
