"""Built kernels for the tests that need them, from KLTO_REAL_<NAME>=<build dir>:<tree>."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Kernel:
    """A kernel that has been built."""

    build_dir: Path
    tree: Path


def _kernel(name: str) -> Kernel:
    given = os.environ.get(f"KLTO_REAL_{name}")
    if not given:
        pytest.skip(f"KLTO_REAL_{name} names no built kernel")
    build_dir, _, tree = given.partition(":")
    return Kernel(Path(build_dir), Path(tree))


@pytest.fixture(scope="session")
def x86_64_6_12() -> Kernel:
    return _kernel("X86_64_6_12")


@pytest.fixture(scope="session")
def arm64_6_12() -> Kernel:
    return _kernel("ARM64_6_12")


@pytest.fixture(scope="session")
def x86_64_6_1() -> Kernel:
    return _kernel("X86_64_6_1")
