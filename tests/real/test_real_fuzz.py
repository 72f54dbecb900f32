"""200,000 damaged objects against the readers: what clang 14, 19 and 22 make, and pieces of real kernels."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Protocol

import pytest
from objects_helpers import tool

from tests.fuzz.corpus import LLVMS, seeds
from tests.fuzz.objects import fuzz, keep

pytestmark = pytest.mark.real

INPUTS = 200_000


class Kernel(Protocol):
    build_dir: Path


def test_readers_survive_damaged_objects(x86_64_6_12: Kernel, arm64_6_12: Kernel) -> None:
    """Kept in the temporary folder, failing inputs outlive the test."""
    for version in LLVMS:
        tool("clang", version)
    corpus = seeds(kernels=(x86_64_6_12.build_dir, arm64_6_12.build_dir))
    assert len(corpus) > 60
    failures = fuzz(corpus, range(INPUTS), len(os.sched_getaffinity(0)))
    assert [keep(failure, Path(tempfile.gettempdir())) for failure in failures] == []
