"""Estimates of a link's memory against what it uses, on real kernels that the model was not fitted to."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from klto.events import LinkFinished, LinkStarted, read_journal
from klto.kernel.jobserver import Jobserver
from klto.link import entry, memory
from klto.link.inputs import Inputs, Module, read_inputs
from klto.link.request import parse_request
from tests.real.conftest import Kernel

pytestmark = pytest.mark.real

#: (kernel, every n-th object, backends): bytes of bitcode from 1.3 to 21 MB of code, and one with debug information.
LINKS = [
    ("x86_64_6_12", 1, 2),
    ("arm64_6_12", 16, 2),
    ("arm64_6_12", 4, 2),
    ("arm64_6_12", 1, 2),
    ("x86_64_6_1", 6, 2),
    ("x86_64_6_1", 2, 1),
    ("x86_64_6_12_debug", 8, 2),
]


def _cold_link(inputs: list[Module], jobs: int, folder: Path, build_dir: Path) -> int:
    """Bytes of ld.lld's largest resident set, as klto's link process measures it.

    A child of this process would inherit its own largest resident set (fs/exec.c, exec_mmap).
    """
    response = folder / "inputs.rsp"
    response.write_text("".join(f"{module.path}\n" for module in inputs))
    with Jobserver(str(folder / "fifo"), jobs) as server:
        command = [
            *(sys.executable, "-I", "-S", entry.__file__, "/usr/lib/llvm-19/bin/ld.lld", "-r"),
            *("-mllvm", "-import-instr-limit=5", "-o", str(folder / "out.o"), f"@{response}"),
        ]
        environment = {
            **os.environ,
            **server.environment(),
            "KLTO_CACHE": str(folder / "cache"),
            "KLTO_JOURNAL": str(folder / "journal"),
        }
        # Files that assembly includes are named from the build dir.
        subprocess.run(command, cwd=build_dir, env=environment, check=True)
    began, ended = read_journal(folder / "journal")
    assert isinstance(began, LinkStarted)
    assert isinstance(ended, LinkFinished)
    assert (began.jobs, ended.generated) == (jobs, len(inputs))
    return ended.peak_bytes


@pytest.fixture(scope="module")
def links(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> list[tuple[int, int, int]]:
    """(bytes of bitcode, bytes estimated, bytes measured) of each link."""
    found = []
    for name, step, jobs in LINKS:
        kernel: Kernel = request.getfixturevalue(name)
        before = Path.cwd()
        os.chdir(kernel.build_dir)
        try:
            everything = read_inputs(parse_request(["-r", "--whole-archive", "vmlinux.a"]))
            modules = everything.modules[::step]
            for module in modules:
                assert module.path is not None
                module.path = os.path.abspath(module.path)
        finally:
            os.chdir(before)
        inputs = Inputs(modules, len(modules), 0, 0)
        expected = memory.estimate(inputs, False, jobs, corrected=False)
        measured = _cold_link(modules, jobs, tmp_path_factory.mktemp("link"), kernel.build_dir)
        found.append((inputs.bitcode_bytes, expected, measured))
        print(
            f"{name:<20} 1/{step:<3} {inputs.bitcode_bytes / 1e6:6.1f} MB of bitcode, {jobs} at once:",
            end=" ",
        )
        print(f"estimated {expected / 1e6:6.1f} MB, measured {measured / 1e6:6.1f} MB")
    return found


def test_estimates_are_within_a_quarter(links: list[tuple[int, int, int]]) -> None:
    assert max(size for size, _, _ in links) >= 8 * min(size for size, _, _ in links)
    for _, expected, measured in links:
        assert expected == pytest.approx(measured, rel=0.25)


def test_no_constant_guess_would_do(links: list[tuple[int, int, int]]) -> None:
    """The links differ enough that the test above says something."""
    measured = [used for _, _, used in links]
    best = (max(measured) + min(measured)) / 2
    assert any(abs(best - used) > 0.25 * used for used in measured)
