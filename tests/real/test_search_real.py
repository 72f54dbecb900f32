"""Searches with the kconfig of real trees, on a real kernel's bitcode, and one seed of a hunt."""

from __future__ import annotations

import json
import os
import re
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from klto.files import user_cache_dir
from klto.kernel.kbuild_objects import objects_of
from klto.kernel.kconfig import parse_requests, read_config
from klto.kernel.kconfig_make import Kconfig
from klto.kernel.kconfig_settle import settling
from klto.kernel.toolchain import Toolchain, find_toolchain
from klto.kernel.tree import KernelTree
from klto.objects.archive import leaves, read_archive
from klto.search.hunt_config import base_of, random_config
from klto.search.options import OptionsSpace, changes_between, values_of
from tests.conftest import missing
from tests.real.conftest import Kernel, run_klto

pytestmark = pytest.mark.real

#: What keeps LTO away, and what makes compiling slow.
BASE = [
    "# CONFIG_KASAN is not set",
    "# CONFIG_GCOV_KERNEL is not set",
    "# CONFIG_FTRACE is not set",
    "CONFIG_BUG=y",
]


@pytest.fixture
def llvm_19() -> Toolchain:
    if shutil.which("clang-19") is None or shutil.which("ld.lld-19") is None:
        missing("LLVM 19 (clang-19, lld-19)")
    return find_toolchain(request="llvm-19")


def _base(tmp_path: Path) -> Path:
    file = tmp_path / "base.config"
    file.write_text("".join(f"{line}\n" for line in BASE))
    return file


def _kconfig(tree: Path, toolchain: Toolchain, build_dir: Path) -> Kconfig:
    build_dir.mkdir()
    kconfig = Kconfig(KernelTree.open(tree, "x86_64"), toolchain, build_dir)
    kconfig.prepare()
    return kconfig


@pytest.mark.parametrize("tree", ["linux_6_12", "linux_6_1"])
def test_settled_as_olddefconfig_does(
    tree: str, llvm_19: Toolchain, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    kconfig = _kconfig(request.getfixturevalue(tree), llvm_19, tmp_path / "build")
    kconfig.make("defconfig")
    defconfig = kconfig.result.read_bytes()
    # Dependencies that go missing, a choice that changes, a value that must be lowered, a name nobody knows.
    edits = [
        b"CONFIG_LTO_CLANG_THIN=y\n# CONFIG_SMP is not set\nCONFIG_NR_CPUS=9\n",
        b"CONFIG_NO_SUCH=y\n# CONFIG_NET is not set\nCONFIG_KASAN=y\n# CONFIG_PCI is not set\n",
    ]
    with settling(kconfig) as settler:
        settled = [settler.settle(defconfig + edit) for edit in edits]
        assert settler.settle(defconfig + edits[0]) == settled[0], (
            "an earlier configuration leaves nothing behind"
        )
        prompts = settler.prompts()
    assert set(prompts["LTO_CLANG_THIN"]) == {"LTO_NONE", "LTO_CLANG_FULL"}
    assert "64BIT" in prompts
    assert "HAVE_OBJTOOL" not in prompts
    for edit, result in zip(edits, settled, strict=True):
        kconfig.result.write_bytes(defconfig + edit)
        kconfig.make("olddefconfig")
        assert kconfig.result.read_bytes() == result, edit


def test_three_options_among_three_hundred(linux_6_12: Path, llvm_19: Toolchain, tmp_path: Path) -> None:
    """The oracle is a command that looks at .config; kconfig is that of 6.12."""
    kconfig = _kconfig(linux_6_12, llvm_19, tmp_path / "build")
    base = base_of(
        kconfig.tree, parse_requests(["CONFIG_LTO_CLANG_THIN=y"]), parse_requests([str(_base(tmp_path))])
    )
    kconfig.make("allnoconfig")
    good = kconfig.result.read_bytes()
    with settling(kconfig) as settler:
        bad = random_config(kconfig, settler, 7, "30", base).config
        changes = changes_between(good, bad, settler.prompts(), parse_requests([]))
        space = OptionsSpace(good, changes, parse_requests([]), settler)
        everything = frozenset(range(len(changes)))
        # Three that nothing else brings in.
        bools = [n for n, c in enumerate(changes) if c.bad == "y" and not c.rivals]
        planted = []
        for near in (len(bools) // 6, len(bools) // 2, len(bools) * 5 // 6):
            planted += next(
                [changes[n].name]
                for n in bools[near:]
                if values_of(space.become(everything - {n}).config).get(changes[n].name) != "y"
            )
    file = tmp_path / "bad.config"
    file.write_bytes(bad)
    checks = " && ".join(f'grep -qx CONFIG_{name}=y "$KLTO_CONFIG"' for name in planted)
    arguments = ("minimize", "options", "-C", linux_6_12, "-t", "llvm-19", "--bad", file)
    state = ("--state", tmp_path / "state", "--json", "--run", "sh", "-c", f"! {{ {checks}; }}")
    done = run_klto(*arguments, *state)
    assert done.status == 0
    told = json.loads(done.out)
    assert told["of"] >= 300
    assert told["calls"] <= 60
    assert {o["name"] for o in told["options"] if not o["needed_by"]} == set(planted)
    got = values_of(Path(told["config"]).read_bytes())
    assert all(got[name] == "y" for name in planted)
    again = json.loads(run_klto(*arguments, *state).out)
    assert (again["calls"], again["options"]) == (0, told["options"])


def test_objects_of_a_built_kernel(x86_64_6_12: Kernel) -> None:
    build_dir = x86_64_6_12.build_dir
    said = objects_of(KernelTree.open(x86_64_6_12.tree, "x86_64"), read_config(build_dir / ".config"))
    linked = {
        os.path.relpath(member.path or "", build_dir)
        for member in leaves(read_archive(build_dir / "vmlinux.a"))
    }
    # version-timestamp.o is made at the end, of vmlinux itself.
    assert linked - said <= {"init/version-timestamp.o"}
    assert [name for name in said if not (build_dir / name).exists()] == []


def test_two_objects_of_a_real_kernel(x86_64_6_12: Kernel, tmp_path: Path) -> None:
    """ThinLTO renames a module's local symbol when another module imports code that uses it: two modules do that
    together, and neither alone. No file of the build dir is touched and nothing is compiled."""
    build_dir = x86_64_6_12.build_dir
    # A local function of mm/slub.c; __kmem_cache_shrink(), which calls it, is imported by mm/slab_common.c (6.12).
    oracle = '! llvm-nm-19 "$KLTO_VMLINUX_O" | grep -q " __kmem_cache_do_shrink\\.llvm\\."'
    before = {p: p.stat().st_mtime_ns for p in build_dir.rglob("*.o")}
    done = run_klto(
        "minimize", "objects", "-C", x86_64_6_12.tree, "-b", build_dir, "--state", tmp_path / "state", "--json",
        "--among", "mm/*", "--run", "sh", "-c", oracle,
    )  # fmt: skip
    assert done.status == 0
    told = json.loads(done.out)
    assert told["of"] > 50
    assert told["found"] == ["mm/slab_common.o", "mm/slub.o"]
    assert set(told["cures"]) == set(told["found"])
    assert told["backends"] == told["of"]
    assert {p: p.stat().st_mtime_ns for p in build_dir.rglob("*.o")} == before


@pytest.fixture
def planted_tree(linux_6_12: Path) -> Iterator[Path]:
    """6.12 with a fault behind two options in lib/ctype.c. All other files are links to the real ones."""
    tree = user_cache_dir() / "test" / f"planted-{os.getpid()}"
    shutil.rmtree(tree, ignore_errors=True)
    subprocess.run(["cp", "-al", linux_6_12, tree], check=True)
    file = tree / "lib/ctype.c"
    text = file.read_text()
    file.unlink()
    guard = "#if defined(CONFIG_TIMERFD) && defined(CONFIG_XZ_DEC_ARM)\n#error planted: both are on\n#endif\n"
    file.write_text(text + guard)
    yield tree
    shutil.rmtree(tree)


def test_a_seed_from_start_to_explained_and_minimised(
    planted_tree: Path, llvm_19: Toolchain, tmp_path: Path
) -> None:
    folder = tmp_path / "hunt"
    arguments = (
        "hunt", "-C", planted_tree, "-t", "llvm-19", "-K", _base(tmp_path), "--dir", folder,
        "--seed", "1", "--count", "1", "--probability", "5", "--target", "lib/ctype.o",
    )  # fmt: skip
    done = run_klto(*arguments)
    assert done.status == 0
    # How many differ is Kconfig's random choice, and what of it klto counts as an item.
    assert re.search(r"\b2 of \d\d+ options matter", done.err), done.err
    with sqlite3.connect(folder / "hunt.sqlite") as database:
        assert database.execute("select seed, outcome from runs").fetchall() == [(1, "failed")]
        ((state,),) = database.execute("select state from findings").fetchall()
    assert state == "minimised"
    found = folder / "finding-001"
    assert "planted: both are on" in (found / "log").read_text()
    assert "planted: both are on" in (found / "explanation.txt").read_text()
    fragment = (found / "minimal.fragment").read_text().splitlines()
    # TIMERFD is on in the good configuration too (it has no prompt without EXPERT), and XZ_DEC_ARM is on by default
    # where RD_XZ selects XZ_DEC.
    own = set(fragment) - set(BASE) - {"CONFIG_64BIT=y", "CONFIG_LTO_CLANG_THIN=y"}
    assert own == {"CONFIG_BLK_DEV_INITRD=y", "CONFIG_RD_XZ=y"}
    assert set(BASE) <= set(fragment)
    assert "lib/ctype.o" in (found / "again.sh").read_text()
    assert run_klto(*arguments).status == 0
    with sqlite3.connect(folder / "hunt.sqlite") as database:
        assert database.execute("select count(*) from runs").fetchone() == (1,), "there is nothing left to do"
