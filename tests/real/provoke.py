"""Crashes of a real kernel, made by LKDTM, for the decoder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from klto.boot import catalog, proof_cfi
from klto.boot.catalog import Proof
from klto.boot.run import BootRequest, BootResult, boot_kernel
from klto.boot.subject import Subject


def provoke(request: BootRequest, crash: str, log: Path, monkeypatch: pytest.MonkeyPatch) -> BootResult:
    """Boot and have LKDTM do ``crash``; the console is in ``log`` with ``-cfi`` before its suffix."""

    def prepare(subject: Subject) -> tuple[proof_cfi.Step, ...]:
        (step,) = proof_cfi.prepare(subject)
        return (replace(step, plan=(*step.plan, f"provoke {crash}")),)

    proof = Proof("cfi", "", (), prepare)
    monkeypatch.setattr(catalog, "_ALL", (proof,))
    return boot_kernel(replace(request, proofs=("cfi",), log=log))
