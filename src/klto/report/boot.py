"""The results of ``klto boot`` for programs: ``klto/boot/1``, and the boots of the run record."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from klto.boot.proofs import ProofResult
from klto.boot.run import BootResult
from klto.record import Boot, Proof


def boot_json(result: BootResult) -> dict[str, Any]:
    """The result as ``klto/boot/1``."""
    return {
        "schema": "klto/boot/1",
        "image": str(result.image),
        "arch": result.arch,
        "release": result.release,
        "accelerator": result.accelerator,
        "qemu": list(result.qemu),
        "qemu_version": result.qemu_version,
        "seconds": round(result.seconds, 3),
        "console_log": str(result.console_log),
        "ending": result.ending,
        "status": result.status,
        "proofs": _proofs_json(result.proofs),
        "boots": [
            {
                "name": run.place,
                "status": run.status,
                "accelerator": run.accelerator,
                "qemu": list(run.qemu),
                "seconds": round(run.seconds, 3),
                "console_log": str(run.console_log),
                "ending": run.ending,
                "proofs": [proof.name for proof in run.proofs],
            }
            for run in result.runs
        ],
    }


def _proofs_json(proofs: Sequence[ProofResult]) -> list[dict[str, Any]]:
    return [
        {
            "name": proof.name,
            "status": proof.status,
            "seconds": round(proof.seconds, 3),
            "evidence": list(proof.evidence),
        }
        for proof in proofs
    ]


def recorded(result: BootResult, build_dir: Path) -> list[Boot]:
    """The boots as the run record has them; proofs that never ran stand in the first."""
    ran = {proof.name for run in result.runs for proof in run.proofs}
    others = [proof for proof in result.proofs if proof.name not in ran]
    image = result.image
    relative = image.relative_to(build_dir) if image.is_relative_to(build_dir) else image
    now = time.time()
    return [
        Boot(
            image=str(relative),
            accelerator=run.accelerator,
            seconds=run.seconds,
            console=str(run.console_log),
            proofs=[_proof(proof) for proof in (*run.proofs, *(others if number == 0 else ()))],
            place=run.place,
            ending=run.ending,
            recorded=now,
        )
        for number, run in enumerate(result.runs)
    ]


def _proof(proof: ProofResult) -> Proof:
    return Proof(name=proof.name, status=proof.status, seconds=proof.seconds, evidence=list(proof.evidence))
