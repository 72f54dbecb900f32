"""Real kernels' vmlinux.o linked with worker processes: bit for bit what the linker makes in process."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from klto.events import LinkFinished, read_journal
from tests.real.conftest import Kernel

pytestmark = pytest.mark.real


def _command(kernel: Kernel) -> list[str]:
    """The linker's arguments that Kbuild saved for vmlinux.o, without the output."""
    saved = (kernel.build_dir / ".vmlinux.o.cmd").read_text().splitlines()[0]
    words = shlex.split(saved.partition(":=")[2].partition(";")[0])[1:]
    at = words.index("-o")
    return [*words[:at], *words[at + 2 :]]


@pytest.mark.parametrize(("name", "workers"), [("x86_64_6_12", 2), ("arm64_6_12", 4)])
def test_vmlinux_o_is_the_same(
    request: pytest.FixtureRequest, llvm_bin: Path, tmp_path: Path, name: str, workers: int
) -> None:
    kernel: Kernel = request.getfixturevalue(name)
    linker, arguments = str(llvm_bin / "ld.lld"), _command(kernel)
    expected = tmp_path / "expected.o"
    subprocess.run([linker, *arguments, "-o", expected], cwd=kernel.build_dir, check=True)
    journal = tmp_path / "events.jsonl"
    environment = os.environ | {
        "KLTO_LD": linker, "KLTO_CACHE": str(tmp_path / "cache"), "KLTO_JOURNAL": str(journal),
    }  # fmt: skip
    for _ in range(2):
        output = tmp_path / "output.o"
        subprocess.run(
            [sys.executable, "-m", "klto", "ld", f"--cluster=local:{workers}", *arguments, "-o", output],
            cwd=kernel.build_dir, env=environment, check=True, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert output.read_bytes() == expected.read_bytes()
        output.unlink()
    first, second = (event.cluster for event in read_journal(journal) if isinstance(event, LinkFinished))
    assert first is not None
    assert second is not None
    assert (first.remote, first.local, first.faults) == (first.modules, 0, [])
    assert (second.cached, second.bytes_sent) == (second.modules, 0)
