"""One face for every format: what read_object says of the same source, compiled in different ways."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from objects_helpers import LLVMS, compiled, run, tool

from klto.objects import parse_object, read_object
from klto.objects.errors import MalformedObject

C = """
extern int outside; extern int maybe(void) __attribute__((weak)); int common; static int local = 1;
__attribute__((visibility("hidden"))) int hidden; __attribute__((visibility("protected"))) int fixed = 2;
__attribute__((weak)) int weak(void) { return outside + (maybe ? maybe() : 0) + local++; }
asm(".globl from_asm\\nfrom_asm: .long asm_outside");
"""
#: Name to (defined, binding, visibility, common).
WANTED = {
    "outside": (False, "global", "default", False),
    "maybe": (False, "weak", "default", False),
    "common": (True, "global", "default", True),
    "local": (True, "local", "default", False),
    "hidden": (True, "global", "hidden", False),
    "fixed": (True, "global", "protected", False),
    "weak": (True, "weak", "default", False),
    "from_asm": (True, "global", "default", False),
    "asm_outside": (False, "global", "default", False),
}


@pytest.mark.parametrize("version", LLVMS)
@pytest.mark.parametrize(
    ("target", "name"),
    [("x86_64-linux-gnu", "x86_64"), ("aarch64-linux-gnu", "aarch64"), ("i386-linux-gnu", "i386")],
)
@pytest.mark.parametrize("lto", [False, True], ids=["elf", "bitcode"])
def test_symbols_target_and_producer(version: int, target: str, name: str, lto: bool) -> None:
    flags = [f"--target={target}", "-O2", "-fcommon", "-fno-pic", *(["-flto=thin"] if lto else [])]
    obj = read_object(compiled(C.replace("hidden;", "hidden = 3;"), version, *flags))
    found = {s.name: (s.defined, s.binding, s.visibility, s.common) for s in obj.symbols()}
    # What compilers add for themselves.
    extra = (
        {"$x", "$d", "_GLOBAL_OFFSET_TABLE_"} | {f"$x.{n}" for n in range(9)} | {f"$d.{n}" for n in range(9)}
    )
    assert {key: value for key, value in found.items() if key not in extra} == WANTED
    asm = {s.name for s in obj.symbols() if s.from_asm}
    if lto:
        assert asm - extra == {"from_asm", "asm_outside"}
        assert obj.kind == "bitcode"
        assert (obj.target or "").startswith(name)
        assert (obj.producer or "").startswith(f"LLVM{version}")
        assert len(obj.sections) == 0
        assert obj.relocations is None
    else:
        assert asm == set()
        assert (obj.kind, obj.target) == ("elf", name)
        assert f"clang version {version}" in (obj.producer or "")
        assert len(obj.sections) > 5
        assert obj.relocations is not None
        assert len(obj.relocations) > 0


def test_archives_and_other_files(tmp_path: Path) -> None:
    members = [compiled("int a;", 19, "-flto=thin"), compiled("int b;", 19)]
    (tmp_path / "text").write_text("text")
    run(tool("llvm-ar", 19), "rcST", "x.a", *members, "text", cwd=tmp_path)
    obj = read_object(tmp_path / "x.a")
    assert (obj.kind, obj.target, obj.producer, obj.symbols()) == ("thin-archive", None, None, [])
    found = list(obj.members())
    assert [member.kind for member in found] == ["bitcode", "elf", "other"]
    assert [member.where for member in found[:2]] == [str(path) for path in members]
    assert [[s.name for s in member.symbols()] for member in found] == [["a"], ["b"], []]
    assert list(found[0].members()) == []


def test_an_unknown_machine_has_a_number() -> None:
    data = bytearray(compiled("int a;", 19).read_bytes())
    data[18:20] = (4242).to_bytes(2, "little")
    assert parse_object(bytes(data), "x").target == "machine 4242"


def test_what_cannot_be_read_is_said(tmp_path: Path) -> None:
    with pytest.raises(MalformedObject, match="gone: cannot be read: No such file or directory"):
        read_object(tmp_path / "gone")
    assert parse_object(b"", "empty").kind == "other"


def test_the_package_imports_nothing_heavy() -> None:
    source = str(Path(__file__).parents[2] / "src")
    code = (
        f"import sys; sys.path.insert(0, {source!r}); import klto.objects; print('numpy' in sys.modules);"
        "from klto.objects import read_object; print('numpy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert done.stdout.split() == ["False", "True"]
    with pytest.raises(AttributeError):
        __import__("klto.objects").objects.nothing  # noqa: B018
