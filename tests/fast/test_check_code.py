"""Rules about code: where it is, how far it reaches, which addresses are in it."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from check_helpers import ARM64, FULL, THIN, X86, asm, build_dir, c, linked, of_build, of_link, of_paths, put
from objects_helpers import LLVMS, tool

from klto.check.finding import Level
from klto.check.run import check_paths
from klto.check.subject import open_subject
from klto.cli.check import _rules
from klto.objects.elf import SHT_SYMTAB_SHNDX, Elf
from klto.objects.relocation_types import relocation_name

PURGATORY = "int helper(int x) { return x * 7; } int purgatory(int x) { return helper(x) + 1; }"


@pytest.mark.parametrize("version", LLVMS)
def test_split_text(tmp_path: Path, version: int) -> None:
    """LTO's -r link gives each function a section; without LTO there is one."""
    folder = tmp_path / "arch/x86/purgatory"
    text = "__attribute__((noinline)) " + PURGATORY.replace(
        "int purgatory", "__attribute__((noinline)) int purgatory"
    )
    split = linked(folder / "purgatory.ro", c(text, X86, *THIN, version=version), version=version)
    found = of_paths("split-text", split)
    assert [f.level for f in found] == [Level.ERROR]
    assert "2 executable sections where 1 may be" in found[0].message
    assert "overlap at the entry" in found[0].message
    assert found[0].source == "arch/x86/purgatory/Makefile"
    whole = linked(folder / "purgatory.ro", c(text, X86, "-O2", version=version), version=version)
    assert of_paths("split-text", whole) == []


@pytest.mark.parametrize("loader", ["", 'sym = kexec_purgatory_find_symbol(pi, "purgatory_start");\n'])
def test_split_text_under_a_loader_that_asks_for_the_symbol(tmp_path: Path, loader: str) -> None:
    """A warning where the tree's own loader does not mind."""
    build = build_dir(tmp_path / "build")
    tree = tmp_path / "linux"
    (tree / "kernel").mkdir(parents=True)
    (tree / "Kbuild").touch()
    (tree / "kernel/kexec_file.c").write_text(loader)
    (build / "source").symlink_to(tree)
    text = PURGATORY.replace("int helper", "__attribute__((noinline)) int helper")
    other = build / "arch/x86/purgatory/purgatory.ro"
    for name, level in (
        ("purgatory_start", Level.WARNING if loader else Level.ERROR),
        ("other", Level.ERROR),
    ):
        hot = '__attribute__((section(".text.hot"))) void hot(void) {}'
        code = c(text.replace("int purgatory", f"int {name}") + hot)
        linked(other, code)
        [found] = of_build("split-text", build)
        assert found.level is level
        assert ("of this tree" in found.message) == (level is Level.WARNING)


def test_what_an_earlier_configuration_left_behind(tmp_path: Path) -> None:
    """With KEXEC_FILE off again the purgatory's files stay in the build dir, and are no part of the kernel."""
    folder = tmp_path / "arch/x86/purgatory"
    text = "__attribute__((noinline)) " + PURGATORY
    split = linked(folder / "purgatory.ro", c(text, X86, *THIN, version=19))
    main, part = (
        put(c("int x;"), tmp_path / name) for name in ("init/main.o", f"{folder}/kexec-purgatory.o")
    )
    other = build_dir(tmp_path, inputs=[main])
    assert of_build("split-text", other) == []
    # vmlinux.a may be of another configuration: this one has it, and its build got no further than that.
    tree = tmp_path / "linux"
    for name, text in (
        ("Makefile", "VERSION = 6\nPATCHLEVEL = 12\nSUBLEVEL = 0\n"), ("Kconfig", ""),
        ("arch/Kconfig", "config LTO_CLANG_THIN\n\tbool\n"), ("arch/x86/Makefile", ""),
        ("scripts/kconfig/Makefile", ""),
        ("arch/x86/Kconfig", "config X86\n\tselect ARCH_SUPPORTS_LTO_CLANG\n"), ("scripts/Makefile.build", ""),
        ("Kbuild", "obj-y += arch/$(SRCARCH)/\n"), ("arch/x86/Kbuild", "obj-$(CONFIG_KEXEC_FILE) += purgatory/\n"),
    ):  # fmt: skip
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(text)
    (tmp_path / "source").symlink_to(tree)
    assert of_build("split-text", other) == []
    (tmp_path / ".config").write_text("CONFIG_LTO_CLANG_THIN=y\nCONFIG_KEXEC_FILE=y\n")
    assert len(of_build("split-text", other)) == 1
    (tmp_path / ".config").write_text("CONFIG_LTO_CLANG_THIN=y\n")
    assert of_build("split-text", other) == []
    os.utime(split, (time.time() + 10,) * 2)
    assert len(of_build("split-text", other)) == 1, "built since, alone"
    os.utime(split, (time.time() - 10,) * 2)
    assert len(of_build("split-text", build_dir(tmp_path, inputs=[main, part]))) == 1


def test_split_text_spares_others(tmp_path: Path) -> None:
    """nVHE's script keeps several sections; any file is checked under --single-text."""
    text = asm('.section .hyp.text,"ax"\nnop\n.section .hyp.idmap.text,"ax"\nnop\n', ARM64)
    place = put(text, tmp_path / "arch/arm64/kvm/hyp/nvhe/kvm_nvhe.o")
    assert of_paths("split-text", place) == []
    assert len(check_paths([str(place)], _rules(["split-text"], True, ()))) == 1


FAR = """
.text
.globl entry
entry:
	cbnz x0, target
	adr x1, target
	ret
.skip {gap}
"""


@pytest.mark.parametrize(("gap", "level"), [(64, Level.NOTE), (2 << 20, Level.ERROR)])
def test_short_branch_before_the_link(tmp_path: Path, gap: int, level: Level) -> None:
    """What is predicted is what ld.lld says of the same two relocations."""
    native = asm(FAR.format(gap=gap), ARM64)
    code = c("int target(int x) { return x + 1; }", ARM64, *THIN)
    found = of_link("short-branch", native, code)
    assert [f.level for f in found] == [level, level]
    assert {f.symbol for f in found} == {"target"}
    assert {f.offset for f in found} == {0, 4}
    merged = linked(tmp_path / "vmlinux.o", native, code)
    final = subprocess.run(
        [tool("ld.lld", 19), "-e", "entry", "-o", tmp_path / "vmlinux", merged],
        capture_output=True,
        text=True,
        check=False,
    )
    said = [
        kind
        for kind in ("R_AARCH64_CONDBR19", "R_AARCH64_ADR_PREL_LO21")
        if f"{kind} out of range" in final.stderr
    ]
    assert len(said) == (2 if level is Level.ERROR else 0)
    assert all(any(kind in f.message for f in found) for kind in said)


def test_short_branch_without_bitcode_is_the_linkers_business() -> None:
    """Assembly that reaches assembly was so before LTO."""
    native = asm(FAR.format(gap=64), ARM64)
    assert of_link("short-branch", native, asm(".globl target\ntarget: ret\n", ARM64)) == []


def test_short_branch_after_the_link(tmp_path: Path) -> None:
    """Distances within a section of vmlinux.o."""
    near = asm(".globl f\nf: cbnz x0, g\n.skip 4096\n.globl g\ng: ret\n", ARM64)
    assert of_paths("short-branch", linked(tmp_path / "near/vmlinux.o", near)) == []
    close = asm(".globl f\nf: cbnz x0, g\n.skip 1040000\n.globl g\ng: ret\n", ARM64)
    found = of_paths("short-branch", linked(tmp_path / "close/vmlinux.o", close))
    assert [(f.level, f.seen) for f in found] == [(Level.WARNING, "1040004 bytes")]
    far = asm(".globl f\nf: cbnz x0, g\n.skip 1050000\n.globl g\ng: ret\n", ARM64)
    found = of_paths("short-branch", linked(tmp_path / "far/vmlinux.o", far))
    assert [(f.level, f.symbol) for f in found] == [(Level.ERROR, "g")]


def test_image_beyond_the_reach_of_calls(tmp_path: Path) -> None:
    """128 MiB of code: the file is sparse."""
    big = asm('.section .text.big,"ax",@nobits\nf: .skip 127000000\n', ARM64)
    found = of_paths("short-branch", put(big, tmp_path / "vmlinux.o"))
    assert [f.level for f in found] == [Level.WARNING]
    assert "127000000 bytes" in found[0].message


GOTO = """
int step(int n, const unsigned char *code) {
	static const void *const table[] = { &&one, &&two, &&three };
	goto *table[code[n] % 3];
one: return 1;
two: return n;
three: return n * 3;
}
"""


@pytest.mark.parametrize(
    ("place", "target"),
    [
        ("arch/arm64/kernel/pi/map.pi.o", ARM64),
        ("drivers/firmware/efi/libstub/file.stub.o", ARM64),
        ("drivers/firmware/efi/libstub/file.o", X86),
        ("arch/x86/boot/compressed/misc.o", X86),
    ],
)
def test_absolute_table_in_early_code(tmp_path: Path, place: str, target: str) -> None:
    """Computed goto makes an absolute table with every clang; a switch makes a relative one."""
    found = of_paths("absolute-address", put(c(GOTO, target, "-O2", "-fpie"), tmp_path / place))
    assert [f.level for f in found] == [Level.ERROR]
    assert found[0].seen is not None
    assert found[0].seen.startswith("3 ")
    assert "step" in found[0].message
    cases = " ".join(f"case {n}: return {n * n + 77 % (n + 1)};" for n in range(8))
    switch = f"int g(int); int f(int n) {{ switch (n) {{ {cases} }} return g(n); }}"
    assert of_paths("absolute-address", put(c(switch, target, "-O2", "-fpie"), tmp_path / place)) == []


def test_absolute_address_where_it_is_relocated(tmp_path: Path) -> None:
    """The purgatory's loader and .rodata.prel64's converter take them; plain kernel code may have them."""
    table = c(GOTO, X86, "-O2")
    for place in ("arch/x86/purgatory/purgatory.ro", "kernel/bpf/core.o"):
        assert of_paths("absolute-address", put(table, tmp_path / place)) == []
    prel = asm('.section .init.rodata.prel64,"a"\n.quad f\n.text\nf: ret\n', ARM64)
    assert of_paths("absolute-address", put(prel, tmp_path / "arch/arm64/kernel/pi/x.pi.o")) == []


NVHE = """
.section .hyp.text,"ax"
.globl __kvm_nvhe___hyp_section_.hyp.text
__kvm_nvhe___hyp_section_.hyp.text:
f: ret
.section .hyp.rodata,"a"
.globl __kvm_nvhe___hyp_section_.hyp.rodata
__kvm_nvhe___hyp_section_.hyp.rodata:
handlers: .quad f
.quad handlers
.section .hyp.reloc,"a"
.word 0
.reloc 0, R_AARCH64_PREL32, __kvm_nvhe___hyp_section_.hyp.rodata + 0
{second}
"""


def test_absolute_address_that_hyp_reloc_does_not_list(tmp_path: Path) -> None:
    listed = ".word 0\n.reloc 4, R_AARCH64_PREL32, __kvm_nvhe___hyp_section_.hyp.rodata + 8"
    place = tmp_path / "arch/arm64/kvm/hyp/nvhe/kvm_nvhe.o"
    assert of_paths("absolute-address", put(asm(NVHE.format(second=listed), ARM64), place)) == []
    found = of_paths("absolute-address", put(asm(NVHE.format(second=""), ARM64), place))
    assert [(f.section, f.offset, f.symbol) for f in found] == [(".hyp.rodata", 8, "handlers")]


def test_table_into_head_text(tmp_path: Path) -> None:
    bad = asm(
        '.section .head.text,"ax"\nstart: jmp *table(,%rax,8)\n1: ret\n.section .rodata,"a"\ntable: .quad 1b\n'
    )
    found = of_paths("absolute-address", put(bad, tmp_path / "vmlinux.o"))
    assert [(f.section, f.level) for f in found] == [(".rodata", Level.ERROR)]
    good = asm('.section .head.text,"ax"\nstart: leaq start(%rip), %rax\nmovq $_text, %rcx\nret\n')
    assert of_paths("absolute-address", put(good, tmp_path / "vmlinux.o")) == []


def test_unexpected_relocations(tmp_path: Path) -> None:
    got = asm(".text\nmovq x@GOTPCREL(%rip), %rax\n.reloc ., R_X86_64_GOTPCREL, y\n.long 0\n")
    found = of_paths("unexpected-reloc", put(got, tmp_path / "vmlinux.o"))
    assert [(f.symbol, f.level) for f in found] == [("y", Level.ERROR)]
    module = of_paths("unexpected-reloc", put(got, tmp_path / "a.ko"))
    assert {f.seen for f in module} >= {"1 R_X86_64_GOTPCREL"}
    plain = c("extern int y; int f(void) { return y; }", X86, "-O2", "-fno-pic", "-mcmodel=kernel")
    assert of_paths("unexpected-reloc", put(plain, tmp_path / "vmlinux.o")) == []
    assert of_paths("unexpected-reloc", put(plain, tmp_path / "a.ko")) == []


def test_got_in_vmlinux(tmp_path: Path) -> None:
    object_file = asm(".globl _start\n_start: pushq x@GOTPCREL(%rip)\n.weak x\n")
    vmlinux = linked(tmp_path / "vmlinux", object_file, flags=("-e", "_start"))
    assert [f.section for f in of_paths("unexpected-reloc", vmlinux)] == [".got"]
    clean = linked(tmp_path / "vmlinux", asm(".globl _start\n_start: ret\n"), flags=("-e", "_start"))
    assert of_paths("unexpected-reloc", clean) == []


def test_weak_symbols_that_nobody_defines(tmp_path: Path) -> None:
    """arm64's defconfig has four, of EFI: relocate.c skips them, and leaves the 0 that they are."""
    text = "adrp x0, :got:{0}\nldr x0, [x0, :got_lo12:{0}]\n.data\n.quad {0}\n.globl own\nown: .quad own\n"
    flags = ("-shared", "-Bsymbolic", "-z", "notext", "--no-apply-dynamic-relocs")
    weak = linked(tmp_path / "weak/vmlinux", asm(".weak maybe\n" + text.format("maybe"), ARM64), flags=flags)
    tables = open_subject(str(weak)).tables
    assert tables is not None
    kinds = {relocation_name(tables.machine, number) for number in np.unique(tables.types).tolist()}
    assert kinds == {"R_AARCH64_GLOB_DAT", "R_AARCH64_ABS64", "R_AARCH64_RELATIVE"}
    assert of_paths("unexpected-reloc", weak) == []
    for body in (text.format("missing"), ".weak maybe\n.quad maybe\n" + text.format("missing")):
        strong = linked(tmp_path / "strong/vmlinux", asm(body, ARM64), flags=flags)
        found = of_paths("unexpected-reloc", strong)
        assert {(f.level, (f.seen or "").split()[1]) for f in found} == {
            (Level.ERROR, "R_AARCH64_GLOB_DAT"),
            (Level.WARNING, "R_AARCH64_ABS64"),
        }
    other = asm(".weak maybe\n.data\n.quad maybe + 8\n", ARM64)
    assert len(of_paths("unexpected-reloc", linked(tmp_path / "other/vmlinux", other, flags=flags))) == 1
    # As the kernel's linker script has it.
    script = tmp_path / "script"
    script.write_text(
        "SECTIONS { .text : { *(.text) } .got : { *(.got) } .data : { *(.data) } .rela.dyn : { *(.rela.*) }\n"
        "/DISCARD/ : { *(.dynsym .dynstr .hash .gnu.hash .interp .dynamic) } }\n"
    )
    weak = linked(
        tmp_path / "weak/vmlinux",
        asm(".weak maybe\n" + text.format("maybe"), ARM64),
        flags=(*flags, "-T", str(script)),
    )
    tables = open_subject(str(weak)).tables
    assert tables is not None
    assert set(tables.relocations.entries["r_sym"].tolist()) == {0}
    assert of_paths("unexpected-reloc", weak) == []
    mixed = asm(".weak maybe\n.quad maybe\n" + text.format("missing"), ARM64)
    strong = linked(tmp_path / "mixed/vmlinux", mixed, flags=(*flags, "-T", str(script)))
    assert Level.ERROR in {f.level for f in of_paths("unexpected-reloc", strong)}
    twice = (
        ".globl a, b\n.weak maybe\n"
        + text.format("a")
        + ".text\n"
        + text.format("b").replace("own", "other")
        + "a: b: .quad maybe\n"
    )
    preemptible = linked(
        tmp_path / "two/vmlinux", asm(twice, ARM64), flags=(*flags[:1], *flags[2:], "-T", str(script))
    )
    assert Level.ERROR in {f.level for f in of_paths("unexpected-reloc", preemptible)}


def test_section_table(tmp_path: Path) -> None:
    many = asm("".join(f'.section .text.f{i},"ax"\n.byte 0\n' for i in range(65300)))
    [module] = of_paths("section-table", put(many, tmp_path / "a.ko"))
    assert module.level is Level.ERROR
    [vmlinux_o] = of_paths("section-table", put(many, tmp_path / "vmlinux.o"))
    assert vmlinux_o.level is Level.NOTE
    few = asm('.section .text.f,"ax"\n.byte 0\n')
    assert of_paths("section-table", put(few, tmp_path / "a.ko")) == []


def test_extended_index_table_that_was_not_extended(tmp_path: Path) -> None:
    """What objtool of 5.12 made of amdgpu: lld refuses it with the same numbers."""
    text = "".join(f'.section .text.f{i},"ax"\n.globl f{i}\nf{i}: .byte 0\n' for i in range(65300))
    path = put(asm(text), tmp_path / "a.o")
    data = bytearray(path.read_bytes())
    elf = Elf(bytes(data), "a.o")
    index = next(i for i, row in enumerate(elf.sections.tolist()) if row[1] == SHT_SYMTAB_SHNDX)
    size = int(elf.sections["sh_size"][index])
    at = elf.header.place(index) + 32  # sh_size of Elf64_Shdr
    data[at : at + 8] = (size - 4).to_bytes(8, "little")
    path.write_bytes(data)
    [found] = [f for f in of_paths("section-table", path) if f.level is Level.ERROR]
    assert f"{size // 4 - 1} entries, but the symbol table has {size // 4}" in found.message
    said = subprocess.run(
        [tool("ld.lld", 19), "-r", path, "-o", tmp_path / "b.o"], capture_output=True, text=True, check=False
    )
    assert f"SHT_SYMTAB_SHNDX has {size // 4 - 1} entries" in said.stderr


def test_init_code_that_a_copy_keeps_alive(tmp_path: Path) -> None:
    bad = asm(
        '.section .text.f.specialized.1,"ax"\n.globl f.specialized.1\n.type f.specialized.1,@function\n'
        "f.specialized.1: call early\n"
        '.section .init.text,"ax"\n.globl early\nearly: ret\n'
    )
    assert [f.symbol for f in of_paths("section-table", put(bad, tmp_path / "vmlinux.o"))] == [
        "f.specialized.1"
    ]
    good = asm(
        '.section .init.text,"ax"\n.globl f.specialized.1\n.type f.specialized.1,@function\n'
        "f.specialized.1: call early\n"
        ".globl early\nearly: ret\n"
    )
    assert of_paths("section-table", put(good, tmp_path / "vmlinux.o")) == []


def test_vdso_exports(tmp_path: Path) -> None:
    """Bitcode without users loses its symbols; the version script still promises them."""
    root = build_dir(tmp_path)
    folder = root / "arch/x86/entry/vdso"
    folder.mkdir(parents=True)
    script = folder / "vdso.lds"
    script.write_text(
        "SECTIONS { .text : { *(.text*) } }\nVERSION { LINUX_2.6 { global: clock; getcpu; local: *; }; }\n"
    )
    both = c(
        "int clock(void) { return 1; } int getcpu(void) { return 2; }", X86, "-O2", "-fpic", "-ffreestanding"
    )
    linked(folder / "vdso64.so.dbg", both, flags=("-shared",))
    assert of_build("vdso-exports", root) == []
    hidden = c(
        "#pragma GCC visibility push(hidden)\nint getcpu(void) { return 2; }\n#pragma GCC visibility pop\n"
        "int clock(void) { return 1; }",
        X86,
        *FULL,
        "-fpic",
    )
    linked(folder / "vdso64.so.dbg", hidden, flags=("-shared",))
    assert [(f.symbol, f.level) for f in of_build("vdso-exports", root)] == [("getcpu", Level.ERROR)]


def test_damaged_files_are_one_finding_each(tmp_path: Path) -> None:
    whole = c(PURGATORY).read_bytes()
    for cut in (20, 100, len(whole) // 2, len(whole) - 10):
        path = tmp_path / f"{cut}.o"
        path.write_bytes(whole[:cut])
        found = check_paths([str(path)])
        assert [f.rule for f in found] == ["malformed"]


def test_link_order_on_some_of_what_is_merged(tmp_path: Path) -> None:
    ordered = '.section .init.data,"awo",@progbits,.text,unique,1\n.long 1\n'
    patchable = f'.section .init.data,"aw"\n.long 0\n.text\nf: ret\n{ordered}'
    found = of_paths("section-table", put(asm(patchable), tmp_path / "vmlinux.o"))
    assert [(f.section, f.level) for f in found] == [(".init.data", Level.WARNING)]
    plain = asm('.section .init.data,"aw"\n.long 0\n.section .init.data,"aw",@progbits,unique,1\n.long 1\n')
    assert of_paths("section-table", put(plain, tmp_path / "vmlinux.o")) == []
