"""Boots of the test kernels, and crashes of them, made by LKDTM."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from klto.boot import catalog, proof_cfi
from klto.boot.catalog import Proof
from klto.boot.guest import Compiler
from klto.boot.images import Arch, find_built_image, read_image
from klto.boot.run import BootRequest, BootResult, boot_kernel
from klto.boot.subject import Subject
from klto.files import user_cache_dir
from klto.kernel.kconfig_requests import read_config
from klto.kernel.toolchain import find_toolchain
from tests.real.conftest import Kernel


def request(kernel: Kernel, folder: Path, *proofs: str) -> BootRequest:
    """A boot of a build dir's kernel with its logs below ``folder``."""
    arch = Arch(kernel.arch)
    found = find_toolchain(None, kernel.build_dir, None)
    return BootRequest(
        image=read_image(find_built_image(kernel.build_dir, arch), arch),
        compiler=Compiler(found.clang, found.ld_lld),
        log=folder / "console.log",
        cache=user_cache_dir(),
        proofs=proofs,
        config=read_config(kernel.build_dir / ".config"),
        build_dir=kernel.build_dir,
        timeout=120.0,
    )


def provoke(request: BootRequest, crash: str, log: Path, monkeypatch: pytest.MonkeyPatch) -> BootResult:
    """Boot and have LKDTM do ``crash``; the console is in ``log`` with ``-cfi`` before its suffix."""

    def prepare(subject: Subject) -> tuple[proof_cfi.Step, ...]:
        (step,) = proof_cfi.prepare(subject)
        return (replace(step, plan=(*step.plan, f"provoke {crash}")),)

    proof = Proof("cfi", "", (), prepare)
    monkeypatch.setattr(catalog, "_ALL", (proof,))
    return boot_kernel(replace(request, proofs=("cfi",), log=log))
