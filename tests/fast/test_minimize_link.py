"""``klto minimize objects`` and ``flags``, on the fake kernel: real bitcode, real links, no recompilation."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from klto.kernel.toolchain import find_toolchain
from klto.kernel.tree import KernelTree
from klto.record import read_record
from klto.search.bitcode_link import Linker, read_link
from klto.search.link_spaces import ObjectsOutcome
from klto.search.minimise_link import OfKernels
from klto.search.oracles import Builder
from klto.search.runner import Runner
from klto.search.verdicts import Verdict
from tests.conftest import Klto, klto_environment
from tests.fake_kernel import make_fake_kernel, thin_config

pytestmark = pytest.mark.slow

#: Fails when part2 has no call to part3: only then, when both are in LTO, it was inlined.
INLINED = "! llvm-readelf -rW $KLTO_VMLINUX_O | grep -q 'PLT32 .* part3 '"
ORACLE = f"if {INLINED}; then exit 1; fi"


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory, llvm_bin: Path) -> tuple[Path, Path]:
    """A fake kernel, built, and only read by the tests: its tree and build dir."""
    folder = tmp_path_factory.mktemp("kernel")
    tree, build_dir = make_fake_kernel(folder / "linux"), folder / "build"
    build_dir.mkdir()
    (build_dir / ".config").write_text(thin_config(llvm_bin))
    subprocess.run(
        [sys.executable, "-m", "klto", "build", "-C", tree, "-b", build_dir, "-q"],
        env=klto_environment(llvm_bin, folder / "cache"),
        check=True,
    )
    return tree, build_dir


def _times(build_dir: Path) -> dict[str, int]:
    return {str(p): p.stat().st_mtime_ns for p in build_dir.rglob("*") if p.is_file()}


def test_two_objects_that_fail_together(kernel: tuple[Path, Path], klto: Klto, tmp_path: Path) -> None:
    _, build_dir = kernel
    before = _times(build_dir)
    arguments = ("minimize", "objects", "-b", build_dir, "--state", tmp_path / "state", "--json")
    done = klto(*arguments, "--run", "sh", "-c", ORACLE)
    assert done.status == 0, done.err
    told = json.loads(done.out)
    assert told["schema"] == "klto/minimize/1"
    assert told["found"] == ["init/part2.o", "init/part3.o"]
    assert told["cures"] == ["init/part2.o", "init/part3.o"]
    assert told["confirmed"] is False
    assert told["links"] == told["calls"] <= 20
    assert told["backends"] == told["of"] == 6
    assert _times(build_dir) == before, "the build dir is only read"
    again = json.loads(klto(*arguments, "--run", "sh", "-c", ORACLE).out)
    assert (again["found"], again["calls"], again["links"], again["backends"]) == (told["found"], 0, 0, 0)
    assert json.loads((tmp_path / "state/best.json").read_text())["items"] == told["found"]
    other = klto(*arguments, "--run", "sh", "-c", f"{ORACLE} # of another kind")
    assert other.status == 2
    assert "has verdicts on another question" in other.err


def test_what_must_be_left_out(kernel: tuple[Path, Path], klto: Klto) -> None:
    tree, build_dir = kernel
    arguments = ("minimize", "objects", "-C", tree, "-b", build_dir, "--find", "leave-out")
    done = klto(*arguments, "--run", "sh", "-c", ORACLE)
    assert done.status == 0, done.err
    assert done.out.startswith("well with 1 of 6 modules left out of LTO")
    assert "init/part2.o" in done.out or "init/part3.o" in done.out
    assert "unconfirmed" in done.out
    done = klto(*arguments, "--confirm", "--run", "sh", "-c", ORACLE)
    assert "a real build with --no-lto init/part2.o: passes" in done.out


def test_a_whole_kernel_with_objects_left_out_compiles_nothing(
    kernel: tuple[Path, Path], llvm_bin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{llvm_bin}:{os.environ['PATH']}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    tree, build_dir = kernel
    runner, toolchain = Runner(), find_toolchain(request=str(llvm_bin))
    linker = Linker(read_link(build_dir), toolchain, tmp_path, runner, 1)
    options = ("-C", str(tree), "-t", "llvm")
    builder = Builder(KernelTree.open(tree, "x86_64"), options, runner, tmp_path / "copy")
    kernels = OfKernels(linker, builder, lambda: (Verdict.PASSES, "was built"))
    calls = {}
    for left_out in ((), ("init/part3.o",), ("init/part2.o", "init/part3.o"), ()):
        assert kernels.objects(ObjectsOutcome("", "", left_out)) == (Verdict.PASSES, "was built")
        record = read_record(tmp_path / "copy/.klto/record.json")
        assert record.objects_compiled == 0
        relocations = subprocess.run(
            [llvm_bin / "llvm-readelf", "-rW", tmp_path / "copy/vmlinux.o"], capture_output=True, text=True
        )
        calls[left_out] = "PLT32" in relocations.stdout and " part3 " in relocations.stdout
    assert calls == {(): False, ("init/part3.o",): True, ("init/part2.o", "init/part3.o"): True}


def test_which_linker_option_matters(kernel: tuple[Path, Path], klto: Klto) -> None:
    _, build_dir = kernel
    flags = ("--flag=-mllvm -import-instr-limit=0", "--flag=--no-gc-sections")
    done = klto("minimize", "flags", "-b", build_dir, "--json", *flags, "--run", "sh", "-c", ORACLE)
    assert done.status == 0, done.err
    assert json.loads(done.out)["found"] == ["-mllvm -import-instr-limit=0"]


def test_no_option_matters(kernel: tuple[Path, Path], klto: Klto) -> None:
    _, build_dir = kernel
    done = klto("minimize", "flags", "-b", build_dir, "--flag=--no-gc-sections", "--run", "sh", "-c", ORACLE)
    assert done.status == 2
    assert "none of the 1 options matters" in done.err


def test_a_kernel_that_is_well(kernel: tuple[Path, Path], klto: Klto) -> None:
    _, build_dir = kernel
    done = klto("minimize", "objects", "-b", build_dir, "--run", "true")
    assert done.status == 2
    assert "does not fail as it should: passes" in done.err


def test_a_kernel_that_fails_without_lto_too(kernel: tuple[Path, Path], klto: Klto) -> None:
    _, build_dir = kernel
    done = klto("minimize", "objects", "-b", build_dir, "--run", "false")
    assert done.status == 2
    assert "with every module left out of LTO: fails" in done.err


def test_among_some(kernel: tuple[Path, Path], klto: Klto) -> None:
    _, build_dir = kernel
    arguments = ("minimize", "objects", "-b", build_dir, "--json", "--among", "*/part[23].o")
    told = json.loads(klto(*arguments, "--run", "sh", "-c", ORACLE).out)
    assert (told["of"], told["found"], told["backends"]) == (2, ["init/part2.o", "init/part3.o"], 2)
    done = klto("minimize", "objects", "-b", build_dir, "--among", "mm/*", "--run", "true")
    assert done.status == 2
    assert "no bitcode module is named mm/*" in done.err


def test_no_kernel(klto: Klto, tmp_path: Path) -> None:
    done = klto("minimize", "objects", "-b", tmp_path, "--run", "true")
    assert done.status == 2
    assert "no kernel with its bitcode" in done.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "name one oracle"),
        (("--boot-fails", "--check", "rule"), "name one oracle"),
        (("--run",), "--run needs a command"),
        (("--at-once", "0", "--run", "true"), "--at-once 0"),
    ],
)
def test_what_is_asked_must_make_sense(klto: Klto, arguments: tuple[str, ...], said: str) -> None:
    done = klto("minimize", "objects", *arguments)
    assert done.status == 2
    assert said in done.err


def test_an_oracle_that_cannot_be_run(kernel: tuple[Path, Path], klto: Klto) -> None:
    _, build_dir = kernel
    done = klto("minimize", "objects", "-b", build_dir, "--run", "sh", "-c", "no-such-program")
    assert done.status == 2
    assert "exit status 127" in done.err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_stopped_it_goes_on(
    kernel: tuple[Path, Path], klto: Klto, llvm_bin: Path, tmp_path: Path, number: signal.Signals
) -> None:
    """The fifth oracle call stands still until klto is stopped; the calls before it are not repeated."""
    _, build_dir = kernel
    calls, hold = tmp_path / "calls", tmp_path / "hold"
    hold.touch()
    script = tmp_path / "oracle.sh"
    script.write_text(
        f"#!/bin/sh\necho call >> {calls}\n"
        f'if [ -e {hold} ] && [ "$(wc -l < {calls})" = 5 ]; then echo $$ > {hold}; sleep 60; fi\n{ORACLE}\n'
    )
    script.chmod(0o755)
    argv = ["minimize", "objects", "-b", str(build_dir), "--json", "--run", str(script)]
    running = subprocess.Popen(
        [sys.executable, "-m", "klto", *argv],
        env=klto_environment(llvm_bin, tmp_path / "cache"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 60
    while not hold.read_text().strip():
        assert running.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    oracle = int(hold.read_text())
    running.send_signal(number)
    assert running.wait(20) == (130 if number == signal.SIGINT else -signal.SIGKILL)
    while _runs(oracle):  # The oracle's process group ends, even after SIGKILL.
        assert time.monotonic() < deadline
        time.sleep(0.02)
    hold.unlink()
    told = json.loads(klto(*argv).out)
    assert told["found"] == ["init/part2.o", "init/part3.o"]
    # The first run was answered four times, and was stopped in the fifth call.
    assert len(calls.read_text().splitlines()) == 5 + told["calls"]
    assert told["remembered"] >= 4


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
