"""``klto build --no-lto`` and ``--keep-names``: what Kbuild's saved commands do not show, klto keeps right."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from klto.build.overrides import NoLto, compiler_shim, parse_no_lto
from klto.errors import UsageError
from klto.link.run import KEEP_NAMES_OPTIONS
from klto.objects.kind import kind_of
from klto.record import Record, read_record
from tests.conftest import Klto
from tests.fake_kernel import make_fake_kernel, thin_config
from tests.fast.test_build_fake import _make

pytestmark = pytest.mark.slow


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return make_fake_kernel(tmp_path / "linux")


@pytest.fixture
def build_dir(tmp_path: Path, llvm_bin: Path) -> Path:
    folder = tmp_path / "build"
    folder.mkdir()
    (folder / ".config").write_text(thin_config(llvm_bin))
    return folder


def _record(build_dir: Path) -> Record:
    return read_record(build_dir / ".klto/record.json")


def test_on_off_and_plain_make(klto: Klto, tree: Path, build_dir: Path, llvm_bin: Path) -> None:
    left_out, other = _objects_of(tree)[:2]
    command = ["build", "-C", tree, "-b", build_dir, "-j2"]
    assert klto(*command).status == 0
    assert kind_of(build_dir / left_out) == "bitcode"
    saved = (build_dir / left_out).with_name(f".{Path(left_out).name}.cmd").read_bytes()

    on = klto(*command, "--no-lto", left_out.replace(".o", ".c"))
    assert on.status == 0, on.err
    assert "1 object is without LTO" in on.err
    assert kind_of(build_dir / left_out) == "elf"
    assert kind_of(build_dir / other) == "bitcode"
    record = _record(build_dir)
    assert record.overrides == {left_out: "no-lto"}
    assert record.objects_compiled == 1
    assert (build_dir / left_out).with_name(f".{Path(left_out).name}.cmd").read_bytes() == saved

    same = klto(*command, "--no-lto", left_out.replace(".o", ".c"))
    assert same.status == 0
    assert _record(build_dir).objects_compiled == 0
    assert _record(build_dir).overrides == {left_out: "no-lto"}

    assert _make(tree, build_dir, llvm_bin) == []
    assert kind_of(build_dir / left_out) == "elf"

    off = klto(*command)
    assert off.status == 0, off.err
    assert "1 outputs are made anew" in off.err
    assert kind_of(build_dir / left_out) == "bitcode"
    assert _record(build_dir).objects_compiled == 1
    assert _record(build_dir).overrides == {}


def _objects_of(tree: Path) -> list[str]:
    return sorted(f"init/{p.stem}.o" for p in (tree / "init").glob("*.c"))


def test_what_plain_make_has_made_since_is_known_to_have_lto(
    klto: Klto, tree: Path, build_dir: Path, llvm_bin: Path
) -> None:
    left_out = _objects_of(tree)[0]
    command = ["build", "-C", tree, "-b", build_dir, "-j2"]
    assert klto(*command, "--no-lto", left_out).status == 0
    source = tree / left_out.replace(".o", ".c")
    source.write_text(source.read_text() + "int klto_added_here = 1;\n")
    _make(tree, build_dir, llvm_bin)
    assert kind_of(build_dir / left_out) == "bitcode"
    assert klto(*command).status == 0
    record = _record(build_dir)
    assert (record.objects_compiled, record.overrides) == (0, {})
    assert klto(*command, "--no-lto", left_out).status == 0
    assert kind_of(build_dir / left_out) == "elf"


def test_whole_directory(klto: Klto, tree: Path, build_dir: Path) -> None:
    command = ["build", "-C", tree, "-b", build_dir, "-j2"]
    done = klto(*command, "--no-lto", "init")
    # Nothing is left for the link to optimise: found before it begins.
    assert done.status == 3
    assert "lto-lost" in done.err
    assert all(kind_of(build_dir / name) == "elf" for name in _objects_of(tree))


@pytest.mark.parametrize("spelling", ["-19", "/usr/lib/llvm-19/bin/"])
def test_other_spellings_of_the_toolchain(
    klto: Klto, tree: Path, build_dir: Path, llvm_bin: Path, spelling: str
) -> None:
    left_out = _objects_of(tree)[0]
    _make(tree, build_dir, llvm_bin, f"LLVM={spelling}")
    done = klto("build", "-C", tree, "-b", build_dir, "-j2", "--no-lto", left_out)
    assert done.status == 0, done.err
    assert kind_of(build_dir / left_out) == "elf"
    assert _make(tree, build_dir, llvm_bin, f"LLVM={spelling}") == []


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("nothing/here.c", "no directory or source file"),
        ("Makefile", "no directory or source file"),
        ("/etc", "not in the tree"),
        ("../..", "not in the tree"),
        (".", "the whole tree"),
        ("init/", None),
    ],
)
def test_paths(tree: Path, path: str, said: str | None) -> None:
    if said is None:
        assert parse_no_lto(tree, tree, (path,)).directories == ("init/",)
        return
    with pytest.raises(UsageError, match=said):
        parse_no_lto(tree, tree, (path,))


def test_object_of_a_like_named_file_is_not_meant(tree: Path) -> None:
    name = _objects_of(tree)[0]
    chosen = parse_no_lto(tree, tree, (name,))
    assert chosen.covers(name)
    assert not chosen.covers(f"x{name}")
    assert not chosen.covers(name.replace(".o", "2.o"))
    assert parse_no_lto(tree, tree, ("init",)).covers(name)


@pytest.mark.parametrize(
    ("output", "stripped"),
    [
        ("virt/kvm/kvm_main.o", True),
        ("arch/x86/kvm/../../../virt/kvm/kvm_main.o", True),
        ("virt/kvm/../../arch/x86/kvm/x86.o", False),
        ("kernel/sys.o", True),
        ("kernel/sys2.o", False),
        ("virt/lib/irqbypass.o", False),
    ],
)
def test_compiler_shim(tmp_path: Path, output: str, stripped: bool) -> None:
    """With a fake compiler that says what it was called with."""
    fake = tmp_path / "cc"
    fake.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    fake.chmod(0o755)
    shim = tmp_path / "clang"
    made = tmp_path / "made"
    chosen = NoLto(("virt/kvm/",), ("kernel/sys.o",))
    shim.write_text(compiler_shim(fake, made, chosen))
    shim.chmod(0o755)
    words = [
        "-O2",
        "-DX=a b",
        "-flto=thin",
        "-fsplit-lto-unit",
        "-fvisibility=hidden",
        "-fpic",
        "-fvisibility=hidden",
        "-c",
        "-o",
        output,
        "x.c",
    ]
    done = subprocess.run([shim, *words], capture_output=True, text=True, check=True)
    # The second is the purgatory's own: without it its code would need a GOT.
    left = ["-O2", "-DX=a b", "-fpic", "-fvisibility=hidden", "-c", "-o", output, "x.c"]
    assert done.stdout.splitlines() == (left if stripped else words)
    assert made.exists() == stripped
    if stripped:
        assert ".." not in made.read_text()


def test_path_without_effect_is_said(klto: Klto, tree: Path, build_dir: Path) -> None:
    (tree / "init/unused.c").write_text("int unused;\n")
    done = klto("build", "-C", tree, "-b", build_dir, "-j2", "--no-lto", "init/unused.c")
    assert done.status == 0, done.err
    assert "--no-lto init/unused.c: no object of this kernel" in done.err


def test_linker_that_cannot_keep_names_is_said(klto: Klto, tree: Path, build_dir: Path) -> None:
    """No release of LLVM here knows the option; the one that does is asked for by name."""
    done = klto("build", "-C", tree, "-b", build_dir, "-j2", "--keep-names")
    assert done.status == 0, done.err
    assert "cannot keep names" in done.err
    found = _record(build_dir).verification
    assert found is not None
    assert found.promoted_names is not None
    assert KEEP_NAMES_OPTIONS[0] == "-mllvm"
