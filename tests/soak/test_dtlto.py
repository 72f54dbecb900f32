"""klto as the distributor of LLVM 22's own distributed ThinLTO: a program, a part of a kernel, a whole one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from klto.objects.kind import kind_of
from tests.conftest import missing
from tests.real.cluster_samples import ring_of_files
from tests.real.conftest import Kernel, run_klto
from tests.soak.conftest import kernel_by
from tests.soak.test_cluster_links import code_of

pytestmark = pytest.mark.real

_FILES = 200


@pytest.fixture(scope="module")
def llvm_22() -> Path:
    folder = Path("/usr/lib/llvm-22/bin")
    if not (folder / "ld.lld").exists() or not (folder / "clang").exists():
        missing("LLVM 22 (clang-22, lld-22)")
    return folder


def _link(folder: Path, llvm: Path, output: Path, inputs: list[str], *klto: str) -> str:
    """Link with -r through klto; what klto says."""
    done = subprocess.run(
        [llvm / "ld.lld", "-r", "-o", output, *inputs, f"--thinlto-distributor={Path(sys.executable).parent / 'klto'}",
         *(f"--thinlto-distributor-arg={word}" for word in ("dtlto-distributor", "-v", *klto)),
         f"--thinlto-remote-compiler={llvm / 'clang'}"],
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


def test_program_of_200_files(llvm_22: Path, tmp_path: Path) -> None:
    names = ring_of_files(tmp_path, _FILES)
    sources = [f"{name}.c" for name in names]
    subprocess.run([llvm_22 / "clang", "-O2", "-flto=thin", "-c", *sources], cwd=tmp_path, check=True)
    inputs = [f"{name}.o" for name in names]
    subprocess.run([llvm_22 / "ld.lld", "-r", "-o", "expected", *inputs], cwd=tmp_path, check=True)
    cache = f"--cache-dir={tmp_path / 'cache'}"
    assert f"{_FILES} modules: 0 from the cache" in _link(tmp_path, llvm_22, tmp_path / "out", inputs, cache)
    assert (tmp_path / "out").read_bytes() == (tmp_path / "expected").read_bytes()
    assert f"{_FILES} from the cache" in _link(tmp_path, llvm_22, tmp_path / "out", inputs, cache)
    assert (tmp_path / "out").read_bytes() == (tmp_path / "expected").read_bytes()


def test_part_of_the_kernel_on_workers(x86_64_6_12: Kernel, llvm_22: Path, tmp_path: Path) -> None:
    folder = tmp_path / "build"  # The linker writes next to its inputs.
    modules = []
    for path in sorted(x86_64_6_12.build_dir.glob("kernel/time/*.o")):
        if kind_of(path) == "bitcode" and len(path.suffixes) == 1:
            copy = folder / path.name
            copy.parent.mkdir(exist_ok=True)
            copy.write_bytes(path.read_bytes())
            modules.append(path.name)
    assert len(modules) > 10
    subprocess.run([llvm_22 / "ld.lld", "-r", "-o", "expected", *modules], cwd=folder, check=True)
    os.environ.pop("KLTO_CLUSTER_CERTS", None)
    said = _link(folder, llvm_22, tmp_path / "out", modules, "--no-cache", "--cluster=local:2")
    assert f"{len(modules)} on workers" in said
    assert (tmp_path / "out").read_bytes() == (folder / "expected").read_bytes()


#: Stands in PATH before the linker, as a kernel's developer would do it: vmlinux.o is linked through klto.
_DISTRIBUTING = """\
#!/bin/sh
case " $* " in
*" vmlinux.a "*)
    exec {linker} "$@" --thinlto-distributor={klto} --thinlto-distributor-arg=dtlto-distributor \\
        --thinlto-distributor-arg=-v --thinlto-distributor-arg=--cache-dir={cache} \\
        --thinlto-remote-compiler={clang} ;;
esac
exec {linker} "$@"
"""


def test_whole_kernel(copy_of: Callable[[Kernel], Kernel], llvm_22: Path, tmp_path: Path) -> None:
    """Plain make with that linker: every function's code is as LLVM makes it in process, and the kernel boots.

    The order of a module's variables is not: the linker names modules in archives otherwise then, sorts by those
    names what it imports, and a compiler that is no klto's, called for each module, gives the same bytes as klto.
    """
    original = kernel_by(22, "6.12")
    kernel = copy_of(original)
    for name in ("vmlinux.o", "vmlinux"):
        (kernel.build_dir / name).unlink()
    folder = tmp_path / "bin"
    folder.mkdir()
    shim = folder / "ld.lld-22"
    clang, klto = llvm_22 / "clang", Path(sys.executable).parent / "klto"
    shim.write_text(
        _DISTRIBUTING.format(linker=llvm_22 / "ld.lld", klto=klto, cache=tmp_path / "cache", clang=clang)
    )
    shim.chmod(0o755)
    environment = os.environ | {"PATH": f"{folder}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["make", "-C", kernel.tree, f"O={kernel.build_dir}", "LLVM=-22", "-j2", "bzImage"],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "modules: 0 from the cache" in done.stderr
    assert code_of(kernel.build_dir / "vmlinux.o") == code_of(original.build_dir / "vmlinux.o")
    booted = run_klto("boot", *kernel.options, "--json")
    proofs = {proof["name"]: proof["status"] for proof in json.loads(booted.out)["proofs"]}
    assert proofs["init"] == proofs["initcalls"] == "passed"
    assert "failed" not in proofs.values()
