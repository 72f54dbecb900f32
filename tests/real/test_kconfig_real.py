"""Configurations made by the kconfig of real trees, 6.1 and 6.12, whose structures differ."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from klto.errors import UsageError
from klto.kernel.kconfig import (
    ConfigResult,
    configure,
    explain_lto,
    lto_of,
    lto_requests,
    parse_requests,
    read_config,
    verify,
)
from klto.kernel.toolchain import Toolchain, find_toolchain
from klto.kernel.tree import MAKE_ENVIRONMENT_DROP, KernelTree
from tests.conftest import Klto, missing

pytestmark = pytest.mark.real


def llvm(number: int) -> Toolchain:
    folder = Path(f"/usr/lib/llvm-{number}/bin")
    if not (folder / "ld.lld").exists() or not (folder / "clang").exists():
        missing(f"LLVM {number} (clang-{number}, lld-{number})")
    return find_toolchain(request=str(folder))


@dataclass(frozen=True)
class Place:
    """A tree and a build dir that tests of one module share: only kconfig's programs are built there."""

    tree: KernelTree
    build_dir: Path

    @property
    def config(self) -> Path:
        return self.build_dir / ".config"

    @property
    def release(self) -> str:
        return ".".join(map(str, self.tree.numbers[:2]))

    def make(
        self,
        *items: str,
        base: str | Path | None = "allnoconfig",
        lto: str = "thin",
        number: int = 19,
        args: tuple[str, ...] = (),
    ) -> ConfigResult:
        requests = parse_requests(items).merged(lto_requests(lto))
        return configure(self.tree, llvm(number), self.build_dir, base, requests, args)

    def refused(
        self, *items: str, lto: str = "thin", number: int = 19, args: tuple[str, ...] = ()
    ) -> list[str]:
        """The lines of a refusal, the first first, and the hint at its end."""
        with pytest.raises(UsageError) as caught:
            self.make(*items, lto=lto, number=number, args=args)
        print(caught.value.message, caught.value.hint, *caught.value.details, sep="\n")
        return [caught.value.message, *caught.value.details, caught.value.hint or ""]

    def snapshot(self) -> dict[str, tuple[int, int]]:
        """Every file with its time and inode; without klto's own, and the Makefile that every make rewrites."""
        return {
            str(file.relative_to(self.build_dir)): (file.stat().st_mtime_ns, file.stat().st_ino)
            for file in self.build_dir.rglob("*")
            if file.is_file() and ".klto" not in file.parts and file.name != "Makefile"
        }


@pytest.fixture(scope="module", params=["6_12", "6_1"])
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Place:
    tree = KernelTree.open(request.getfixturevalue(f"linux_{request.param}"), "x86_64")
    return Place(tree, tmp_path_factory.mktemp(f"kconfig-{request.param}"))


@pytest.fixture(scope="module")
def place_6_12(linux_6_12: Path, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """For what does not depend on kconfig's structures: one version is enough."""
    return Place(KernelTree.open(linux_6_12, "x86_64"), tmp_path_factory.mktemp("kconfig"))


def test_configured_once_and_not_touched_again(place: Place) -> None:
    first = place.make("CONFIG_SMP=y")
    assert (first.ran, first.lto) == (True, "thin")
    values = read_config(place.config)
    assert (values["64BIT"], values["SMP"], values["LTO_CLANG"]) == ("y", "y", "y")
    before = place.snapshot()
    assert place.make("CONFIG_SMP=y", base=None) == ConfigResult(place.config, False, False, "thin")
    assert place.make("CONFIG_SMP=y") == ConfigResult(place.config, False, True, "thin")
    assert place.snapshot() == before
    assert not (place.build_dir / ".klto/kconfig").exists()


def test_fresh_build_dir_is_as_plain_make_leaves_it(linux_6_12: Path, tmp_path: Path) -> None:
    """Then the build need not run kconfig once more; of a refused configuration nothing stays."""
    place = Place(KernelTree.open(linux_6_12, "x86_64"), tmp_path)
    place.refused("CONFIG_DEBUG_FS=y", "CONFIG_GCOV_KERNEL=y")
    assert not place.config.exists()
    assert not any(file.is_file() for file in (tmp_path / "include").rglob("*"))
    place.make("CONFIG_SMP=y")
    autoconf = tmp_path / "include/config/auto.conf"
    assert "CONFIG_LTO_CLANG_THIN=y" in autoconf.read_text()
    dependencies = autoconf.with_name("auto.conf.cmd").read_text()
    assert "include/config/auto.conf" in dependencies
    assert ".klto" not in dependencies
    assert (tmp_path / "include/generated/autoconf.h").exists()
    assert place.config.stat().st_mtime_ns <= autoconf.stat().st_mtime_ns


def test_plain_make_would_make_the_same_configuration(place_6_12: Place) -> None:
    place_6_12.make("CONFIG_SMP=y", 'CONFIG_LOCALVERSION="-x"', "CONFIG_PRINTK=y")
    before = place_6_12.config.read_bytes()
    toolchain = llvm(19)
    command = [
        *place_6_12.tree.make_command(place_6_12.build_dir),
        *toolchain.make_args(),
        "-s",
        "olddefconfig",
    ]
    clean = {k: v for k, v in os.environ.items() if k not in MAKE_ENVIRONMENT_DROP}
    subprocess.run(command, env={**clean, "PATH": toolchain.search_path()}, check=True)
    assert place_6_12.config.read_bytes() == before


def test_lto_is_changed_in_a_configuration_that_is_there(place: Place) -> None:
    place.make("CONFIG_SMP=y")
    for mode in ("none", "full", "thin"):
        before = place.config.read_bytes()
        result = place.make(base=None, lto=mode)
        assert (result.changed, result.lto, lto_of(place.config)) == (True, mode, mode)
        assert place.config.with_name(".config.old").read_bytes() == before
        assert read_config(place.config)["SMP"] == "y"


def test_values_of_every_type_survive(place_6_12: Place) -> None:
    result = place_6_12.make(
        *("CONFIG_PRINTK=y", "CONFIG_LOG_BUF_SHIFT=15", "CONFIG_EXPERT=y", "CONFIG_RELOCATABLE=y"),
        *(
            "CONFIG_PHYSICAL_START=2000000",
            'CONFIG_LOCALVERSION=-a"b\\c',
            "CONFIG_MODULES=y",
            "CONFIG_CRYPTO=m",
        ),
        *("CONFIG_FUTEX=n", "CONFIG_NO_SUCH_OPTION=n"),
    )
    assert result.changed
    values = read_config(place_6_12.config)
    assert values["PHYSICAL_START"] == "2000000"
    assert values["LOCALVERSION"] == '"-a\\"b\\\\c"'
    assert (values["LOG_BUF_SHIFT"], values["CRYPTO"]) == ("15", "m")
    assert "FUTEX" not in values


def test_fragment_over_a_file(place_6_12: Place, tmp_path: Path) -> None:
    base, fragment = tmp_path / "base", tmp_path / "fragment"
    base.write_text("CONFIG_SMP=y\nCONFIG_PRINTK=y\nCONFIG_LTO_CLANG_FULL=y\nCONFIG_LOG_BUF_SHIFT=14\n")
    fragment.write_text("# CONFIG_SMP is not set\nCONFIG_LOG_BUF_SHIFT=15\n")
    assert place_6_12.make(str(fragment), "CONFIG_LOG_BUF_SHIFT=16", base=base).lto == "thin"
    values = read_config(place_6_12.config)
    assert ("SMP" in values, values["LOG_BUF_SHIFT"], values["PRINTK"]) == (False, "16", "y")


@pytest.fixture(scope="module")
def refusal(place: Place) -> list[str]:
    """What is said when many things are asked for that cannot be, and that nothing was changed by it."""
    place.make("CONFIG_SMP=y")
    before = place.snapshot()
    lines = place.refused(
        *("CONFIG_DEBUG_FS=y", "CONFIG_GCOV_KERNEL=y", "CONFIG_SMPP=y", "CONFIG_PRINTK=y"),
        *(
            "CONFIG_LOG_BUF_SHIFT=99",
            "CONFIG_CRYPTO=m",
            "CONFIG_PHYSICAL_START=0x2000000",
            "CONFIG_LTO_CLANG=y",
        ),
        *(
            "CONFIG_LOCALVERSION=17",
            "CONFIG_KVM=y",
            "CONFIG_MMU=n",
            "CONFIG_NR_CPUS_DEFAULT=7",
            "CONFIG_SMP=5",
            "CONFIG_HZ_100=y",
            "CONFIG_HZ_300=y",
        ),
    )
    assert place.snapshot() == before
    return lines


REFUSED = {
    "CONFIG_LTO_CLANG_THIN=y (--lto thin)": (
        "n: it needs HAS_LTO_CLANG, which needs !GCOV_KERNEL, but GCOV_KERNEL=y (-K) (11 more above)"
    ),
    "CONFIG_SMPP=y (-K)": (
        "not there: it is no option of this tree and architecture (did you mean CONFIG_SMP?)"
    ),
    "CONFIG_LOG_BUF_SHIFT=99 (-K)": "it must be from 12 to 25 (ask for a value from 12 to 25)",
    "CONFIG_CRYPTO=m (-K)": ("y: it can be a module only with MODULES, but MODULES=n (-K CONFIG_MODULES=y)"),
    "CONFIG_PHYSICAL_START=0x2000000 (-K)": (
        "0x1000000: it needs EXPERT || CRASH_DUMP, but EXPERT=n, CRASH_DUMP=n (what would help: -K CONFIG_EXPERT=y"
    ),
    "CONFIG_LTO_CLANG=y (-K)": (
        "n: it has no prompt and follows other options: it needs one of the options that select it, "
        "but LTO_CLANG_FULL=n, LTO_CLANG_THIN=n"
    ),
    "CONFIG_LOCALVERSION=17 (-K)": '"": it is a string and needs quotes (write -K ',
    "CONFIG_KVM=y (-K)": "n: it needs VIRTUALIZATION, but VIRTUALIZATION=n",
    "CONFIG_MMU=n (-K)": "y: it has no prompt: kconfig makes it y by default",
    "CONFIG_NR_CPUS_DEFAULT=7 (-K)": "it has no prompt: kconfig computes it",
    "CONFIG_SMP=5 (-K)": "n: it is bool (ask for y or n)",
    "CONFIG_HZ_100=y (-K)": "n: it is one of the choice 'Timer frequency', and HZ_300=y (-K)",
}


@pytest.mark.parametrize("asked", REFUSED)
def test_why_not(refusal: list[str], asked: str) -> None:
    line = next(line for line in refusal if line.startswith(asked))
    assert line.startswith(f"{asked} did not survive, it is ")
    assert REFUSED[asked] in line


KASAN = ("CONFIG_SYSFS=y", "CONFIG_KASAN=y", "CONFIG_DEBUG_KERNEL=y", "CONFIG_DEBUG_INFO_DWARF5=y")


def test_kasan_with_an_old_clang(place: Place) -> None:
    first, *_, hint = place.refused(*KASAN, number=14)
    if place.release == "6.1":
        assert first.endswith("needs !KASAN || KASAN_HW_TAGS, but KASAN=y (-K), KASAN_HW_TAGS=n")
        assert hint == "what would help: -K CONFIG_KASAN=n"
    else:
        assert "!KASAN || KASAN_HW_TAGS || CLANG_VERSION >= 170000 || !DEBUG_INFO, but KASAN=y (-K)" in first
        assert "CLANG_VERSION=140006, DEBUG_INFO=y" in first
        assert hint == (
            "what would help: -K CONFIG_KASAN=n or clang 17 or later (-t) or -K CONFIG_DEBUG_INFO_DWARF5=n"
        )
        assert place.make(*KASAN[:2], number=14).lto == "thin"


def test_kcfi_needs_a_newer_clang(place_6_12: Place) -> None:
    first, *_ = place_6_12.refused("CONFIG_CFI_CLANG=y", number=14)
    assert "CONFIG_CFI_CLANG=y (-K) did not survive" in first
    assert "it needs $(cc-option,-fsanitize=kcfi) (arch/Kconfig:" in first


def test_tools_that_are_not_llvms(place_6_12: Place) -> None:
    first, *_ = place_6_12.refused(args=("LLVM_IAS=0",))
    assert 'which needs AS_IS_LLVM, which needs $(success,test "$(as-name)" = LLVM) (init/Kconfig:' in first
    first, *_ = place_6_12.refused(args=("NM=nm",))
    assert "which needs $(success,$(NM) --help | head -n 1 | grep -qi llvm) and" in first


def test_recordmcount(place_6_12: Place) -> None:
    """Only 32-bit x86 still uses it; klto builds x86_64, and says so when nothing else is wrong."""
    ftrace = ("CONFIG_64BIT=n", "CONFIG_FTRACE=y", "CONFIG_FUNCTION_TRACER=y")
    first, *_ = place_6_12.refused(*ftrace)
    assert "needs HAS_LTO_CLANG, which needs !FTRACE_MCOUNT_USE_RECORDMCOUNT, but" in first
    assert place_6_12.refused(*ftrace, lto="keep") == [
        "this configuration is for 32-bit x86 (-K), klto builds x86_64", "ask for -K CONFIG_64BIT=y"
    ]  # fmt: skip


def test_arm64_big_endian(place: Place) -> None:
    arm64 = Place(KernelTree.open(place.tree.path, "arm64"), place.build_dir)
    first, *_, hint = arm64.refused("CONFIG_CPU_BIG_ENDIAN=y")
    assert (
        "needs ARCH_SUPPORTS_LTO_CLANG, which is selected by ARM64, which for this needs CPU_LITTLE_ENDIAN, "
        "but CPU_LITTLE_ENDIAN=n"
    ) in first
    assert hint == "what would help: -K CONFIG_CPU_LITTLE_ENDIAN=y"


def test_line_that_kconfig_would_drop(place: Place) -> None:
    place.make("CONFIG_SMP=y")
    lines = place.config.read_text().splitlines()
    number = lines.index("CONFIG_SMP=y") + 1
    lines[number - 1] = "CONFIG_SMP=maybe"
    garbage = "\n".join(lines) + "\n"
    place.config.write_text(garbage)
    with pytest.raises(UsageError) as caught:
        place.make("CONFIG_PRINTK=y", base=None)
    assert caught.value.message == f"{place.config}:{number}: symbol value 'maybe' invalid for SMP"
    assert place.config.read_text() == garbage
    place.config.write_text(garbage.replace("CONFIG_SMP=maybe", "CONFIG_SMP=yes, kconfig takes this"))
    place.make("CONFIG_PRINTK=y", base=None)
    assert read_config(place.config)["SMP"] == "y"


def test_configuration_that_changed_since(place_6_12: Place) -> None:
    place_6_12.make("CONFIG_SMP=y")
    requests = parse_requests(["CONFIG_SMP=y"]).merged(lto_requests("thin"))
    verify(place_6_12.tree, llvm(19), place_6_12.build_dir, requests)
    place_6_12.config.write_text(
        place_6_12.config.read_text().replace("CONFIG_LTO_CLANG_THIN=y", "CONFIG_LTO_NONE=y")
    )
    with pytest.raises(UsageError, match=r"CONFIG_LTO_CLANG_THIN=y \(--lto thin\) did not survive"):
        verify(place_6_12.tree, llvm(19), place_6_12.build_dir, requests)


def test_another_clang_may_not_drop_lto(place_6_12: Place) -> None:
    """A .config that has all that is asked for, made by a clang that could: this one cannot."""
    place_6_12.make(*KASAN)
    before = place_6_12.config.read_bytes()
    requests = parse_requests(KASAN).merged(lto_requests("thin"))
    with pytest.raises(UsageError, match="CLANG_VERSION=140006"):
        configure(place_6_12.tree, llvm(14), place_6_12.build_dir, None, requests)
    assert place_6_12.config.read_bytes() == before


def test_defconfig(place_6_12: Place) -> None:
    assert place_6_12.make("CONFIG_LOCALVERSION_AUTO=n", base="defconfig").lto == "thin"
    assert len(read_config(place_6_12.config)) > 1000
    with pytest.raises(UsageError, match=r"no \.config in"):
        configure(place_6_12.tree, llvm(19), place_6_12.build_dir / "other", None, parse_requests([]))


def test_doctor_without_touching_anything(
    place_6_12: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, klto: Klto
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    place_6_12.make("CONFIG_SMP=y")
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    top = sorted(os.listdir(place_6_12.tree.path))
    (fresh / ".config").write_bytes(place_6_12.config.read_bytes())
    assert explain_lto(place_6_12.tree, llvm(19), fresh) == []
    place_6_12.make("CONFIG_DEBUG_FS=y", "CONFIG_GCOV_KERNEL=y", "CONFIG_COMPILE_TEST=y", lto="keep")
    (fresh / ".config").write_bytes(place_6_12.config.read_bytes())
    found = explain_lto(place_6_12.tree, llvm(19), fresh)
    assert [b.reason for b in found] == ["needs HAS_LTO_CLANG, which needs !GCOV_KERNEL, but GCOV_KERNEL=y"]
    found = explain_lto(place_6_12.tree, llvm(19), fresh, "full")
    assert [b.reason.split(", but")[1] for b in found] == [" GCOV_KERNEL=y", " COMPILE_TEST=y"]
    done = klto("doctor", "-q", "-C", place_6_12.tree.path, "-b", fresh, "-a", "x86_64")
    assert done.status == 2
    assert "no LTO: CONFIG_LTO_CLANG_THIN needs HAS_LTO_CLANG, which needs !GCOV_KERNEL" in done.out
    assert os.listdir(fresh) == [".config"]
    assert sorted(os.listdir(place_6_12.tree.path)) == top


def test_doctor_on_defconfig(klto: Klto, linux_6_12: Path) -> None:
    done = klto("doctor", "-C", linux_6_12, "-a", "arm64")
    assert done.status == 0, done.out
    assert "no .config yet, defconfig is looked at" in done.out
    assert "ready: LTO is possible here" in done.out


def test_full_disk(linux_6_12: Path, mount_tmpfs: Callable[..., Path]) -> None:
    for size in ("4k", "64k", "600k"):
        place = Place(KernelTree.open(linux_6_12, "x86_64"), mount_tmpfs(f"size={size}"))
        first, *_ = place.refused("CONFIG_SMP=y")
        assert first.startswith("cannot write")
        assert first.endswith("No space left on device")
        assert not place.config.exists()


@pytest.fixture
def own_tree(linux_6_12: Path, tmp_path: Path) -> Iterator[Path]:
    """The tree with a layer above it, so that it can be built in without a copy."""
    if os.geteuid() != 0:
        missing("root, to mount an overlay")
    for name in ("upper", "work", "linux"):
        (tmp_path / name).mkdir()
    layers = f"lowerdir={linux_6_12},upperdir={tmp_path}/upper,workdir={tmp_path}/work"
    subprocess.run(["mount", "-t", "overlay", "-o", layers, "overlay", tmp_path / "linux"], check=True)
    yield tmp_path / "linux"
    subprocess.run(["umount", "-l", tmp_path / "linux"], check=True)


def test_in_tree(own_tree: Path) -> None:
    place = Place(KernelTree.open(own_tree, "x86_64"), own_tree)
    assert place.make("CONFIG_SMP=y").lto == "thin"
    first, *_ = place.refused("CONFIG_DEBUG_FS=y", "CONFIG_GCOV_KERNEL=y")
    assert "needs !GCOV_KERNEL" in first
    assert place.tree.dirty_in_tree() == ".config"
    assert explain_lto(place.tree, llvm(19), own_tree) == []
