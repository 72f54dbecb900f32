"""What is a kernel tree that klto can build, and which paths Kbuild can work in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from klto.errors import UsageError
from klto.kernel import tree as tree_module
from klto.kernel.tree import KernelTree, check_path, default_build_dir, is_kernel_tree

FakeTree = Callable[..., Path]


@pytest.fixture
def fake_tree(tmp_path: Path) -> FakeTree:
    """A fake kernel tree: only the files that klto looks at."""

    def make(name: str = "linux", **files: str) -> Path:
        root = tmp_path / name
        contents = {
            "Makefile": "# SPDX\nVERSION = 6\nPATCHLEVEL = 12\nSUBLEVEL = 3\nEXTRAVERSION = -rc1\nLLVM_SUFFIX := x\n",
            "Kconfig": "",
            "arch/Kconfig": "config LTO_CLANG_THIN\n\tbool\n",
            "arch/x86/Kconfig": "config X86\n\tselect ARCH_SUPPORTS_LTO_CLANG\n",
            "arch/arm64/Kconfig": "config ARM64\n\tselect ARCH_SUPPORTS_LTO_CLANG\tif CPU_LITTLE_ENDIAN\n",
            "scripts/kconfig/Makefile": "",
            "scripts/Makefile.build": "",
            **{path.replace("__", "/"): text for path, text in files.items()},
        }
        for path, text in contents.items():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text(text)
        return root

    return make


@pytest.fixture
def on_x86_64(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree_module, "host_arch", lambda: "x86_64")


def test_version_is_that_of_the_makefile(fake_tree: FakeTree) -> None:
    tree = KernelTree.open(fake_tree(), "arm64")
    assert (tree.version, tree.numbers) == ("6.12.3-rc1", (6, 12, 3))
    assert (tree.arch, tree.srcarch, tree.target) == ("arm64", "arm64", "aarch64-linux-gnu")
    assert tree.has_llvm_suffix


def test_version_without_sublevel_and_extraversion(fake_tree: FakeTree) -> None:
    root = fake_tree(Makefile="VERSION = 6\nPATCHLEVEL = 12\nSUBLEVEL =\nEXTRAVERSION =\n")
    tree = KernelTree.open(root, "x86_64")
    assert (tree.version, tree.numbers) == ("6.12", (6, 12, 0))
    assert not tree.has_llvm_suffix


def test_id_belongs_to_the_place(fake_tree: FakeTree, tmp_path: Path) -> None:
    one, other = fake_tree("a"), fake_tree("b")
    (tmp_path / "link").symlink_to(one)
    ids = [KernelTree.open(path, "x86_64").id for path in (one, other, tmp_path / "link")]
    assert ids[0] == ids[2] != ids[1]
    assert ids[0].startswith("a-")


@pytest.mark.usefixtures("on_x86_64")
def test_own_architecture_is_not_spelled_out(fake_tree: FakeTree, tmp_path: Path) -> None:
    root = fake_tree()
    own, other = KernelTree.open(root), KernelTree.open(root, "arm64")
    assert own.arch == "x86_64"
    assert own.make_arch_args() == []
    assert own.make_command(root) == ["make", "-C", str(root)]
    assert other.make_command(tmp_path / "o") == ["make", "-C", str(root), f"O={tmp_path}/o", "ARCH=arm64"]


@pytest.mark.usefixtures("on_x86_64")
def test_default_build_dir(fake_tree: FakeTree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root = fake_tree()
    tree = KernelTree.open(root)
    assert default_build_dir(tree, "thin") == tmp_path / "cache/klto/build" / tree.id / "x86_64-thin"
    (root / ".config").touch()
    assert default_build_dir(tree, "thin") == root


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda root: (root / "Kconfig").unlink(), "has no Kconfig"),
        (lambda root: (root / "Makefile").write_text("all:\n"), "names no kernel version"),
        (lambda root: (root / "Makefile").write_bytes(b"\xff\xfe\x00VERSION"), "names no kernel version"),
    ],
)
def test_no_kernel_tree(fake_tree: FakeTree, change: Callable[[Path], object], said: str) -> None:
    root = fake_tree()
    change(root)
    with pytest.raises(UsageError, match=said) as caught:
        KernelTree.open(root, "x86_64")
    assert caught.value.message.startswith(f"not a kernel tree: {root}")
    assert "-C" in (caught.value.hint or "")


def test_no_directory_and_no_tree(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such directory"):
        KernelTree.open(tmp_path / "nothing", "x86_64")
    with pytest.raises(UsageError, match="not a kernel tree"):
        KernelTree.open(tmp_path, "x86_64")
    assert not is_kernel_tree(tmp_path)


def test_kernel_without_clang_lto(fake_tree: FakeTree) -> None:
    root = fake_tree(arch__Kconfig="config LTO_CLANG_THINNER\n\tbool\n")
    with pytest.raises(UsageError, match=r"Linux 6\.12\.3-rc1 .* no Clang LTO") as caught:
        KernelTree.open(root, "x86_64")
    assert "5.12" in (caught.value.hint or "")


def test_architecture_without_clang_lto(fake_tree: FakeTree) -> None:
    root = fake_tree(arch__arm64__Kconfig="config ARM64\n\tselect ARCH_SUPPORTS_LTO_CLANG_THIN\n")
    KernelTree.open(root, "x86_64")
    with pytest.raises(UsageError, match="no Clang LTO for arm64"):
        KernelTree.open(root, "arm64")


@pytest.mark.parametrize(("arch", "hint"), [("aarch64", "use -a arm64"), ("m68k", "x86_64"), ("", "x86_64")])
def test_unknown_architecture(fake_tree: FakeTree, arch: str, hint: str) -> None:
    with pytest.raises(UsageError, match="cannot build for the architecture") as caught:
        KernelTree.open(fake_tree(), arch)
    assert hint in (caught.value.hint or "")


def test_machine_that_klto_does_not_know(fake_tree: FakeTree, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree_module, "host_arch", lambda: None)
    with pytest.raises(UsageError, match="cannot build for this machine"):
        KernelTree.open(fake_tree())


@pytest.mark.parametrize("character", " :#$%&'\"\\`();|<>*?[{}\n\t\r\x01\x7f")
def test_paths_that_kbuild_cannot_work_in(character: str, tmp_path: Path) -> None:
    for what in ("kernel tree", "build dir"):
        with pytest.raises(UsageError, match="Kbuild cannot work in a path with") as caught:
            check_path(tmp_path / f"a{character}b", what)
        assert "\n" not in caught.value.message


@pytest.mark.parametrize("character", ",=")
def test_paths_that_only_a_build_dir_cannot_have(character: str, tmp_path: Path) -> None:
    check_path(tmp_path / f"a{character}b", "kernel tree")
    with pytest.raises(UsageError, match="Kbuild cannot work"):
        check_path(tmp_path / f"a{character}b", "build dir")


@pytest.mark.parametrize("name", ["é", "日本", "a~@+!^]b", "-x", "a.b_c-d"])
def test_paths_that_work(name: str, tmp_path: Path) -> None:
    check_path(tmp_path / name, "kernel tree")
    check_path(tmp_path / name, "build dir")


def test_the_resolved_path_counts(fake_tree: FakeTree, tmp_path: Path) -> None:
    good = fake_tree("good")
    (tmp_path / "with space").symlink_to(good)
    assert KernelTree.open(tmp_path / "with space", "x86_64").path == tmp_path / "with space"
    (tmp_path / "link").symlink_to(fake_tree("bad dir"))
    with pytest.raises(UsageError, match="a space"):
        KernelTree.open(tmp_path / "link", "x86_64")


@pytest.mark.parametrize("dirt", [".config", "include/config/", "arch/x86/include/generated/"])
@pytest.mark.usefixtures("on_x86_64")
def test_dirty_tree_refuses_other_build_dirs(fake_tree: FakeTree, tmp_path: Path, dirt: str) -> None:
    root = fake_tree()
    tree = KernelTree.open(root)
    tree.check_build_dir(tmp_path / "o")
    if dirt.endswith("/"):
        (root / dirt).mkdir(parents=True)
    else:
        (root / dirt).touch()
    with pytest.raises(UsageError, match=dirt.rstrip("/")) as caught:
        tree.check_build_dir(tmp_path / "o")
    assert f"make -C {root} mrproper" in (caught.value.hint or "")
    tree.check_build_dir(root)


def test_dirt_of_another_architecture_does_not_count(fake_tree: FakeTree, tmp_path: Path) -> None:
    root = fake_tree()
    (root / "arch/x86/include/generated").mkdir(parents=True)
    KernelTree.open(root, "arm64").check_build_dir(tmp_path / "o")
