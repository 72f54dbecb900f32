"""Real kernels' vmlinux.o linked with worker processes: bit for bit what the linker makes in process."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from klto.events import LinkFinished, read_journal
from klto.objects.elf import Elf
from tests.real.conftest import Kernel

pytestmark = pytest.mark.real

#: Symbol type of functions (System V ABI, gABI 4.19).
_STT_FUNC = 2


def _command(kernel: Kernel) -> list[str]:
    """The linker's arguments that Kbuild saved for vmlinux.o, without the output."""
    saved = (kernel.build_dir / ".vmlinux.o.cmd").read_text().splitlines()[0]
    words = shlex.split(saved.partition(":=")[2].partition(";")[0])[1:]
    at = words.index("-o")
    return [*words[:at], *words[at + 2 :]]


@pytest.mark.parametrize(
    ("name", "workers"), [("x86_64_6_12", 2), ("x86_64_6_12", 4), ("arm64_6_12", 2), ("arm64_6_12", 4)]
)
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


@pytest.mark.parametrize("name", ["x86_64_6_12", "arm64_6_12"])
def test_kernel_built_on_workers_boots(
    request: pytest.FixtureRequest, copy_of: Callable[[Kernel], Kernel], name: str
) -> None:
    """vmlinux and modules of a build with workers, and every proof that this machine can run."""
    original: Kernel = request.getfixturevalue(name)
    kernel = copy_of(original)
    for path in (
        kernel.build_dir / "vmlinux.o",
        kernel.build_dir / "vmlinux",
        *kernel.build_dir.glob("**/*.ko"),
    ):
        path.unlink()
    done = kernel.klto("build", *kernel.options, "--no-cache", "--cluster=local:2", "--json")
    assert done.status == 0, done.err
    record = json.loads(done.out)
    (link,) = [link for link in record["links"] if link["output"] == "vmlinux.o"]
    used = link["cluster"]
    assert (used["remote"], used["local"], used["faults"]) == (used["modules"], 0, [])
    assert code_of(kernel.build_dir / "vmlinux.o") == code_of(original.build_dir / "vmlinux.o")
    booted = kernel.klto("boot", *kernel.options, "--json")
    assert booted.status == 0, booted.err
    proofs = {proof["name"]: proof["status"] for proof in json.loads(booted.out)["proofs"]}
    assert proofs["init"] == proofs["initcalls"] == "passed"
    assert "failed" not in proofs.values()


def code_of(path: Path) -> list[tuple[str, str, bytes]]:
    """(section, name, code) of each function in an object."""
    elf = Elf(path.read_bytes(), str(path))
    table = elf.symtab
    assert table is not None
    found = []
    for name, index, symbol in zip(table.names, table.section.tolist(), table.table, strict=True):
        if int(symbol["st_info"]) & 15 == _STT_FUNC and index:
            section = elf.sections[index]
            at = int(section["sh_offset"]) + int(symbol["st_value"])
            found.append((elf.section_names[index], name, bytes(elf.data[at : at + int(symbol["st_size"])])))
    assert len(found) > 1000
    return found
