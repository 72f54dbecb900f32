"""Kernels built and booted with the LLVMs that ``make test`` does not build with. Five minutes each on two cores."""

from __future__ import annotations

import pytest

from klto.record import read_record
from tests.soak.conftest import kernel_by


@pytest.mark.parametrize("llvm", [14, 22])
@pytest.mark.parametrize("version", ["6.12", "6.1"])
def test_build_and_boot(llvm: int, version: str) -> None:
    record = read_record(kernel_by(llvm, version).build_dir / ".klto/record.json")
    assert record.toolchain is not None
    assert f"version {llvm}." in record.toolchain.clang_version
    proofs = {proof.name: proof.status for boot in record.boots for proof in boot.proofs}
    assert {name for name, status in proofs.items() if status == "passed"} >= {"init", "initcalls", "modules"}
    assert set(proofs.values()) <= {"passed", "not-applicable"}, proofs
