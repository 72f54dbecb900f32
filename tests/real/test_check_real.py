"""The checks on kernels that boot, and on the same with real faults put in."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from klto.check.finding import Finding, Level
from klto.check.link_inputs import LinkInputs
from klto.check.run import check_link, check_paths
from klto.cli.check import named
from tests.real.conftest import Kernel


@pytest.mark.parametrize("name", ["x86_64_6_12", "arm64_6_12", "x86_64_6_1"])
def test_no_false_alarm(name: str, request: pytest.FixtureRequest) -> None:
    """They boot: no errors, and every warning would have to be true."""
    kernel: Kernel = request.getfixturevalue(name)
    done = kernel.klto("check", "-b", kernel.build_dir, "--json")
    found = json.loads(done.out)
    assert done.status == 0
    assert found["summary"]["error"] == 0, found["findings"]
    assert found["summary"]["warning"] <= 5, found["findings"]
    assert {f["rule"] for f in found["findings"]} >= {"lto-lost", "promoted-names"}


def _command(kernel: Kernel, target: str) -> str:
    """The first step of the command that Kbuild saved for a target."""
    folder, _, name = target.rpartition("/")
    saved = (kernel.build_dir / folder / f".{name}.cmd").read_text().splitlines()[0]
    return saved.partition(":= ")[2].partition(" ; ")[0]


def _compile(kernel: Kernel, target: str, output: Path, source: Path | None = None, *flags: str) -> Path:
    """A target by its own saved command, with another output, source or further flags."""
    words = _command(kernel, target).split()
    words = [word for word in words if not word.startswith("-Wp,-MMD")]
    given = words[-1]
    words[words.index("-o") + 1] = str(output)
    # The saved command is a shell's line, with quotes in it; what is put in has none.
    line = " ".join([*words[:-1], *flags, str(source) if source else given])
    output.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(["sh", "-c", line], cwd=kernel.build_dir, check=True)
    return output


def _errors(rule: str, *paths: Path) -> Sequence[Finding]:
    return [f for f in check_paths([str(p) for p in paths], [named(rule)]) if f.level is Level.ERROR]


def test_purgatory_with_lto_left_on(x86_64_6_12: Kernel, tmp_path: Path) -> None:
    """What the Makefile's filter-out line keeps away: the purgatory's own commands with CC_FLAGS_LTO."""
    kernel, folder = x86_64_6_12, tmp_path / "arch/x86/purgatory"
    link = _command(kernel, "arch/x86/purgatory/purgatory.ro")
    for target in re.findall(r"arch/x86/purgatory/\S+\.o", link):
        lto = () if _command(kernel, target).endswith(".S") else ("-flto=thin", "-fsplit-lto-unit")
        _compile(kernel, target, folder / Path(target).name, None, *lto)
    subprocess.run(
        ["sh", "-c", link.replace("arch/x86/purgatory/", f"{folder}/")], cwd=kernel.build_dir, check=True
    )
    split = folder / "purgatory.ro"
    [found] = _errors("split-text", split)
    assert found.seen == "25 executable sections"
    done = kernel.klto("rejoin", split, "-o", split)
    assert done.status == 0, done.err
    assert "25 executable sections are 1 now" in done.out
    assert _errors("split-text", split) == []
    assert _errors("unexpected-reloc", split) == _errors("absolute-address", split) == []
    assert _errors("split-text", kernel.build_dir / "arch/x86/purgatory/purgatory.ro") == []


def test_hyp_panic_two_mebibytes_away(arm64_6_12: Kernel, tmp_path: Path) -> None:
    """6.12 has mended entry.S; with the old instructions back the prediction is what the link then says."""
    kernel = arm64_6_12
    entry = (kernel.tree / "arch/arm64/kvm/hyp/entry.S").read_text()
    broken = entry.replace("cbnz\tx0, 1f\n\tb\thyp_panic", "cbnz\tx0, hyp_panic").replace(
        "adr_l\tx1, hyp_panic", "adr\tx1, hyp_panic"
    )
    assert broken.count("hyp_panic") == entry.count("hyp_panic")
    source = tmp_path / "entry.S"
    source.write_text(broken + "\n\t.text\n\t.skip\t0x200000\n")
    made = _compile(kernel, "arch/arm64/kvm/hyp/entry.o", tmp_path / "arch/arm64/kvm/hyp/entry.o", source)
    archive = tmp_path / "vmlinux.a"
    listed = subprocess.run(
        ["llvm-ar-19", "t", "vmlinux.a"], cwd=kernel.build_dir, capture_output=True, text=True, check=True
    )
    members = [
        made if name.endswith("kvm/hyp/entry.o") else kernel.build_dir / name
        for name in listed.stdout.split()
    ]
    (tmp_path / "members").write_text("\n".join(map(str, members)))
    subprocess.run(["llvm-ar-19", "cDPrST", archive, f"@{tmp_path / 'members'}"], check=True)
    found = check_link(LinkInputs("vmlinux.o", [str(archive)], lto="thin"), [named("short-branch")])
    assert {(f.level, f.symbol) for f in found} == {(Level.ERROR, "hyp_panic")}
    kinds = {kind for f in found for kind in re.findall(r"R_AARCH64_\w+", f.message)}
    assert kinds == {"R_AARCH64_CONDBR19", "R_AARCH64_ADR_PREL_LO21"}
    # The two objects alone, linked as vmlinux.o is and then to an image, in the place of the whole kernel.
    merged, image = tmp_path / "vmlinux.o", tmp_path / "vmlinux"
    switch = kernel.build_dir / "arch/arm64/kvm/hyp/vhe/switch.o"
    subprocess.run(["ld.lld-19", "-r", "-o", merged, made, switch], check=True)
    said = subprocess.run(
        ["ld.lld-19", "--unresolved-symbols=ignore-all", "-o", image, merged],
        capture_output=True,
        text=True,
        check=False,
    ).stderr
    said_kinds = set(re.findall(r"relocation (R_AARCH64_\w+) out of range[^\n]*hyp_panic", said))
    assert said_kinds == kinds, said


def test_absolute_tables_in_early_code(arm64_6_12: Kernel, x86_64_6_12: Kernel, tmp_path: Path) -> None:
    """Computed goto in a file of pi and one of the decompressor, by their own commands."""
    table = """
    int klto_step(int n)
    {
        static const void *const t[] = { &&a, &&b };
        goto *t[n & 1]; a: return 1; b: return n;
    }
    """
    for kernel, target, place in (
        (arm64_6_12, "arch/arm64/kernel/pi/map_range.o", "arch/arm64/kernel/pi/map_range.pi.o"),
        (arm64_6_12, "arch/arm64/kernel/pi/map_range.o", "drivers/firmware/efi/libstub/map_range.stub.o"),
        (x86_64_6_12, "arch/x86/boot/compressed/cmdline.o", "drivers/firmware/efi/libstub/cmdline.o"),
    ):
        given = Path(_command(kernel, target).split()[-1])
        source = tmp_path / given.name
        source.write_text((kernel.build_dir / given).read_text() + table)
        flags = (f"-I{(kernel.build_dir / given).parent}", "-Wno-missing-prototypes")
        made = _compile(kernel, target, tmp_path / place, source, *flags)
        [found] = _errors("absolute-address", made)
        assert "klto_step" in found.message
        good = _compile(kernel, target, tmp_path / "good" / place)
        assert _errors("absolute-address", good) == []


def test_abs64_that_hyp_reloc_does_not_list(arm64_6_12: Kernel, tmp_path: Path) -> None:
    from klto.objects.object_file import read_object

    good = arm64_6_12.build_dir / "arch/arm64/kvm/hyp/nvhe/kvm_nvhe.o"
    assert _errors("absolute-address", good) == []
    path = tmp_path / "arch/arm64/kvm/hyp/nvhe/kvm_nvhe.o"
    path.parent.mkdir(parents=True)
    shutil.copy(good, path)
    elf = read_object(path).elf
    assert elf is not None
    table = elf.section_names.index(".rela.hyp.reloc")
    at, size = int(elf.sections["sh_offset"][table]), int(elf.sections["sh_size"][table])
    data = bytearray(path.read_bytes())
    # The last entry now says what the one before it says: one ABS64 less is listed.
    data[at + size - 16 : at + size] = data[at + size - 40 : at + size - 24]
    path.write_bytes(data)
    [found] = _errors("absolute-address", path)
    assert (found.section, found.seen) == (".hyp.rodata", "1 R_AARCH64_ABS64")


def test_fragment_that_loses_lto(x86_64_6_12: Kernel, tmp_path: Path) -> None:
    """KASAN and GCOV drop LTO without a word; with the fragment at hand the check says so."""
    fragment = tmp_path / "lost.config"
    fragment.write_text("CONFIG_LTO_CLANG_THIN=y\nCONFIG_DEBUG_FS=y\nCONFIG_GCOV_KERNEL=y\nCONFIG_64BIT=y\n")
    build = tmp_path / "build"
    subprocess.run(
        ["make", "-s", "-C", x86_64_6_12.tree, f"O={build}", "LLVM=-19", "allnoconfig"],
        env={"PATH": "/usr/bin:/bin", "KCONFIG_ALLCONFIG": str(fragment)},
        check=True,
    )
    done = x86_64_6_12.klto("check", "-b", build, "-K", fragment)
    assert done.status == 3
    assert "CONFIG_LTO_CLANG_THIN=y was asked for, it is n" in done.out
