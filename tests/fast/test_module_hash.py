"""Another hash for a module: what LLVM sees of it, and that nothing else has changed."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from klto.objects.bitcode import Bitcode
from klto.objects.errors import MalformedObject
from klto.objects.module_hash import salted

A = r"""
static int secret(int x) { return x * 3; }
int (*pointer)(int) = secret;
int a(int x) {
  asm volatile(".pushsection .rodata.x,\"a\"\n.incbin \"data.bin\"\n.popsection");
  return secret(x);
}
"""
B = "int a(int); int b(int x) { return a(x) + 1; }\n"


@pytest.fixture(params=[14, 19, 22])
def modules(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, int]:
    """a.o, whose function with .incbin b.o can import, of each LLVM."""
    for name, text in (("a", A), ("b", B)):
        (tmp_path / f"{name}.c").write_text(text)
        command = [f"clang-{request.param}", "-O2", "-flto=thin", "-fsplit-lto-unit", "-c", f"{name}.c"]
        subprocess.run(command, cwd=tmp_path, check=True)
    (tmp_path / "data.bin").write_text("first")
    return tmp_path, request.param


def _link(folder: Path, llvm: int, first: str, out: str, *more: str) -> bytes:
    command = [f"ld.lld-{llvm}", "-r", first, "b.o", "-o", out, *more]
    subprocess.run(command, cwd=folder, check=True)
    return (folder / out).read_bytes()


def test_another_hash_misses_the_cache_and_links_the_same(modules: tuple[Path, int]) -> None:
    folder, llvm = modules
    cache = "--thinlto-cache-dir=cache"
    stale = _link(folder, llvm, "a.o", "one.o", cache)
    (folder / "data.bin").write_text("other")
    # The red case, LLVM's own cache: neither the module nor the one that imports from it is made anew.
    assert _link(folder, llvm, "a.o", "two.o", cache) == stale
    (folder / "salted.o").write_bytes(salted((folder / "a.o").read_bytes(), "a.o", b"other"))
    fresh = _link(folder, llvm, "a.o", "plain.o")
    assert fresh.count(b"other") == 2
    assert _link(folder, llvm, "salted.o", "three.o", cache) == fresh


def test_salt_decides_and_length_and_names_stay(modules: tuple[Path, int]) -> None:
    folder, _ = modules
    data = (folder / "a.o").read_bytes()
    one, same, other = (salted(data, "a.o", salt) for salt in (b"1", b"1", b"2"))
    assert one == same
    assert len({data, one, other}) == 3
    assert len(one) == len(data)
    before, after = (Bitcode(d, "a.o").modules[0].properties.hash for d in (data, one))
    assert before is not None
    assert after is not None
    assert after[:8] == before[:8]
    assert all(before[at : at + 4] != after[at : at + 4] for at in (8, 12, 16))


def test_a_module_without_a_hash_is_refused(tmp_path: Path, llvm_bin: Path) -> None:
    (tmp_path / "a.c").write_text("int a;\n")
    subprocess.run([llvm_bin / "clang", "-c", "-emit-llvm", "a.c", "-o", "a.bc"], cwd=tmp_path, check=True)
    with pytest.raises(MalformedObject, match="hash"):
        salted((tmp_path / "a.bc").read_bytes(), "a.bc", b"1")
