"""Kernels built and booted with the LLVMs that ``make test`` does not build with. Five minutes each on two cores."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from klto.files import user_cache_dir
from klto.record import read_record
from tests.conftest import missing
from tests.real.conftest import ROOT, run_klto, unpacked


@pytest.mark.parametrize("llvm", [14, 22])
@pytest.mark.parametrize("version", ["6.12", "6.1"])
def test_build_and_boot(llvm: int, version: str) -> None:
    if shutil.which(f"clang-{llvm}") is None:
        missing(f"clang-{llvm}")
    folder: Path = user_cache_dir() / "soak" / f"x86_64-{version}-llvm-{llvm}"
    # kCFI needs clang 16 (arch/Kconfig of 6.12, ARCH_USES_CFI_TRAPS; -fsanitize=kcfi).
    without = ("-K", "CONFIG_CFI_CLANG=n") if llvm < 16 and version == "6.12" else ()
    config = ROOT / f"configs/x86_64-{version}.config"
    options = ("-C", unpacked(version), "-b", folder, "-t", f"llvm-{llvm}")
    done = run_klto("build", *options, "-k", "allnoconfig", "-K", config, *without, "--lto", "thin", "--boot")
    assert done.status == 0, done.err
    record = read_record(folder / ".klto/record.json")
    assert record.toolchain is not None
    assert f"version {llvm}." in record.toolchain.clang_version
    proofs = {proof.name: proof.status for boot in record.boots for proof in boot.proofs}
    assert {name for name, status in proofs.items() if status == "passed"} >= {"init", "initcalls", "modules"}
    assert set(proofs.values()) <= {"passed", "not-applicable"}, proofs
