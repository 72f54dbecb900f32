"""A kernel whose CFI only reports: a build-time choice, so a kernel of its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.real.conftest import _built, unpacked

pytestmark = pytest.mark.real


def test_permissive_cfi_is_caught_and_said_to_be_permissive(tmp_path: Path) -> None:
    more = ("-K", "CONFIG_CFI_PERMISSIVE=y")
    kernel = _built(unpacked("6.12"), "x86_64", "x86_64-6.12.config", "x86_64-6.12-permissive", *more)
    done = kernel.klto("boot", "-b", kernel.build_dir, "cfi", "--json", "--log", tmp_path / "log")
    (proof,) = json.loads(done.out)["proofs"]
    assert (done.status, proof["status"]) == (0, "passed")
    assert "permissive: the call was reported and made all the same" in proof["evidence"]
