"""Rules about LTO itself: what is bitcode, by whom, with which options and names."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from check_helpers import ARM64, FULL, THIN, X86, asm, build_dir, c, linked, of_build, of_link, of_paths, put
from objects_helpers import LLVMS, run, tool

from klto.check.finding import Level
from klto.check.link_inputs import BitcodeInput, LinkInputs
from klto.check.rules.lost import LtoLost
from klto.check.saved import SavedCommand
from klto.check.subject import Subject
from klto.objects.bitcode import Bitcode
from klto.objects.elf import SHT_RELA, Elf
from klto.objects.errors import MalformedObject
from klto.objects.module_flags import module_flags
from klto.objects.object_file import read_object

ONE = "int one(int x) { return x + 1; }"
TWO = "int two(int x) { return x + 2; }"


@pytest.mark.parametrize("version", LLVMS)
@pytest.mark.parametrize("flags", [(), ("-g",), ("-mcmodel=kernel", "-mstack-alignment=8", "-fno-pic")])
def test_module_flags_are_llvms(version: int, flags: tuple[str, ...]) -> None:
    path = c(ONE, X86, *THIN, *flags, version=version)
    bitcode = read_object(path).bitcode
    assert bitcode is not None
    found = module_flags(bitcode.modules[0])
    text = run(tool("llvm-dis", version), path, "-o", "-")
    expected = {}
    for line in text.splitlines():
        head, equals, body = line.partition(" = !{i32 ")
        parts = body.rstrip("}").split(", ", 2)
        if equals and head.startswith("!") and len(parts) == 3 and parts[1].startswith('!"'):
            value = parts[2].removeprefix("i32 ")
            expected[parts[1][2:-1]] = (int(parts[0]), value[2:-1] if value.startswith('!"') else int(value))
    assert {name: tuple(flag) for name, flag in found.items()} == expected
    assert expected


def test_damaged_module_flags() -> None:
    data = bytearray(c(ONE, X86, *THIN, "-mcmodel=kernel").read_bytes())
    for at in range(64, len(data), 97):
        broken = bytes(data[:at]) + bytes([data[at] ^ 0x55]) + bytes(data[at + 1 :])
        try:
            module_flags(Bitcode(broken, "x.o").modules[0])
        except MalformedObject:
            continue


def test_leftover_bitcode(tmp_path: Path) -> None:
    bitcode, native = c(ONE, X86, *THIN), c(ONE)
    for place in ("drivers/a.ko", "arch/arm64/kernel/pi/x.pi.o", "arch/riscv/kernel/vdso/vgettimeofday.o"):
        assert [f.level for f in of_paths("leftover-bitcode", put(bitcode, tmp_path / place))] == [
            Level.ERROR
        ]
        assert of_paths("leftover-bitcode", put(native, tmp_path / place)) == []
    assert of_paths("leftover-bitcode", put(bitcode, tmp_path / "kernel/sys.o")) == []
    fat = c(ONE, X86, "-O2", "-fembed-bitcode=all")
    assert [f.section for f in of_paths("leftover-bitcode", put(fat, tmp_path / "b.ko"))] == [".llvmbc"]


def test_lto_lost(tmp_path: Path) -> None:
    """The real case of 6.13: every object went through ld -r."""
    root = build_dir(tmp_path)
    compile_ = "clang -O2 -flto=thin -c -o {0} {0}.c"
    bitcode = put(c(ONE, X86, *THIN), root / "one.o", compile_.format("one.o"))
    lost = linked(root / "two.o", c(TWO, X86, *THIN))
    own = " ; ld.lld -r -o ./.tmp_two.o two.o; mv ./.tmp_two.o two.o"
    put(lost, root / "sub/two.o", compile_.format("two.o") + own.replace("./", "sub/"))
    plain = put(c(TWO), root / "plain.o", "clang -O2 -flto=thin -fno-lto -c -o plain.o plain.c")
    build_dir(root, inputs=[bitcode, root / "sub/two.o", plain])
    errors = [f for f in of_build("lto-lost", root) if f.level is Level.ERROR]
    assert [f.artifact for f in errors] == ["sub/two.o"]
    assert "ld.lld -r" in errors[0].message
    build_dir(root, inputs=[bitcode, plain])
    [note] = of_build("lto-lost", root)
    assert note.level is Level.NOTE
    assert "1 of 2 objects compiled from C (50.0 %)" in note.message
    assert "; compiled without: plain.o; 0 are assembly" in note.message
    (root / ".klto").mkdir()
    (root / ".klto/overrides.log").write_text("sub/two.o\n")
    build_dir(root, inputs=[bitcode, root / "sub/two.o"])
    [note] = of_build("lto-lost", root)
    assert "1 of the others by --no-lto; 0 are" in note.message
    build_dir(root, inputs=[plain])
    assert "none of 1 inputs is bitcode" in of_build("lto-lost", root)[0].message


def test_share_is_not_rounded_up() -> None:
    """2817 of 2818 are not 100.0 %."""
    link = LinkInputs("vmlinux.o", [], lto="thin")
    plain = Subject("a.o", read_object(c(ONE)), SavedCommand("a.o", "clang -c -o a.o a.c", ""))
    link.native = [(0, plain)]
    link.bitcode = [replace(of_module, place=1) for of_module in [_module()] * 2817]
    [note] = [f for f in LtoLost().of_link(link) if f.level is Level.NOTE]
    assert "2817 of 2818 objects compiled from C (99.9 %)" in note.message
    link.native = []
    [note] = LtoLost().of_link(link)
    assert "2817 of 2817 objects compiled from C (100.0 %)" in note.message


def _module() -> BitcodeInput:
    [found] = LinkInputs("vmlinux.o", [str(c(ONE, X86, *THIN))]).bitcode
    return found


def test_lto_that_was_asked_for_and_dropped(tmp_path: Path) -> None:
    root = build_dir(tmp_path, "CONFIG_LTO_NONE=y\n")
    assert of_build("lto-lost", root) == []
    (root / ".klto").mkdir()
    (root / ".klto/record.json").write_text(json.dumps({"asked": {"lto": "thin"}}))
    assert [f.message for f in of_build("lto-lost", root)] == [
        "thin LTO was asked for, the configuration has none"
    ]


def test_mixed_producers() -> None:
    """A linker of 14 refuses bitcode of 22; same-version modules are fine."""
    old, new = c(ONE, X86, *THIN, version=14), c(TWO, X86, *THIN, version=22)
    found = of_link("mixed-toolchain", old, new)
    assert [f.level for f in found] == [Level.ERROR]
    assert {found[0].seen, found[0].allowed} == {"LLVM14.0.6", read_object(new).producer}
    assert of_link("mixed-toolchain", c(ONE, X86, *THIN), c(TWO, X86, *THIN)) == []


def test_invalid_symbol_index(tmp_path: Path) -> None:
    """A relocation that names a symbol past the table."""
    path = put(asm("call f\n"), tmp_path / "a.o")
    assert of_link("mixed-toolchain", path, c(ONE, X86, *THIN)) == []
    data = bytearray(path.read_bytes())
    elf = Elf(bytes(data), "a.o")
    rela = next(i for i, row in enumerate(elf.sections.tolist()) if row[1] == SHT_RELA)
    at = int(elf.sections["sh_offset"][rela]) + 12
    data[at : at + 4] = (99).to_bytes(4, "little")
    path.write_bytes(data)
    assert ["invalid symbol index" in f.message for f in of_link("mixed-toolchain", path)] == [True]
    said = subprocess.run(
        [tool("ld.lld", 19), "-r", path, "-o", tmp_path / "b.o"], capture_output=True, text=True, check=False
    )
    assert "invalid symbol index" in said.stderr


@pytest.mark.parametrize(
    ("command", "wrong"), [("ar cDPrST vmlinux.a one.o", 1), ("llvm-ar cDPrST vmlinux.a one.o", 0)]
)
def test_gnu_tools_on_bitcode(tmp_path: Path, command: str, wrong: int) -> None:
    root = build_dir(tmp_path, inputs=[put(c(ONE, X86, *THIN), tmp_path / "one.o")])
    (root / ".vmlinux.a.cmd").write_text(f"savedcmd_vmlinux.a := rm -f vmlinux.a; {command}\n\n")
    assert len(of_build("mixed-toolchain", root)) == wrong


def test_code_models_that_disagree(tmp_path: Path) -> None:
    """ld.lld says the same."""
    main = "int one(int); int main(void) { return one(1); }"
    kernel = c(main, X86, *THIN, "-mcmodel=kernel", "-fno-pic")
    large = c(ONE, X86, *THIN, "-mcmodel=large", "-fno-pic")
    found = of_link("lost-codegen-option", kernel, large)
    assert [(f.symbol, f.level) for f in found] == [("Code Model", Level.ERROR)]
    said = subprocess.run(
        [tool("ld.lld", 19), "-r", kernel, large, "-o", tmp_path / "x.o"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "linking module flags 'Code Model'" in said.stderr
    assert of_link("lost-codegen-option", kernel, c(ONE, X86, *THIN, "-mcmodel=kernel", "-fno-pic")) == []


def test_back_end_option_that_the_link_lacks(tmp_path: Path) -> None:
    path = put(
        c(ONE, X86, *THIN),
        tmp_path / "one.o",
        "clang -mllvm -import-instr-limit=5 -flto=thin -c -o one.o one.c",
    )
    found = of_link("lost-codegen-option", path, words=["-r"])
    assert [(f.level, f.seen) for f in found] == [(Level.WARNING, "-mllvm -import-instr-limit=5")]
    assert of_link("lost-codegen-option", path, words=["-mllvm", "-import-instr-limit=5"]) == []


def test_stack_alignment_that_bitcode_lacks(tmp_path: Path) -> None:
    """As with an LLVM before 13: the option is in the command and not among the module's flags."""
    command = "clang -mstack-alignment=8 -flto=thin -c -o one.o one.c"
    path = put(c(ONE, X86, *THIN), tmp_path / "one.o", command)
    assert [f.level for f in of_link("lost-codegen-option", path)] == [Level.ERROR]
    assert of_link("lost-codegen-option", path, words=["-plugin-opt=-stack-alignment=8"]) == []
    carried = put(c(ONE, X86, *THIN, "-mstack-alignment=8"), tmp_path / "one.o", command)
    assert of_link("lost-codegen-option", carried) == []
    twice = of_link("lost-codegen-option", carried, words=["-plugin-opt=-stack-alignment=8"])
    assert [f.level for f in twice] == [Level.WARNING]


def test_other_targets_in_one_link() -> None:
    found = of_link("lost-codegen-option", c(ONE, X86, *THIN), c(TWO, X86, *THIN), c(ONE, ARM64, *THIN))
    assert [f.level for f in found if "aarch64" in f.message] == [Level.ERROR]


LABEL = 'asm("mark_{0}: .long 1"); int f{1}(void) {{ return {1}; }}'


def test_asm_labels_that_clash_in_full_lto(tmp_path: Path) -> None:
    """Full LTO refuses what ThinLTO takes."""
    same = [c(LABEL.format(1, n), X86, *FULL) for n in (1, 2)]
    found = of_link("asm-symbol-clash", *same, lto="full")
    assert [(f.symbol, f.level) for f in found] == [("mark_1", Level.ERROR)]
    said = subprocess.run(
        [tool("ld.lld", 19), "-r", *same, "-o", tmp_path / "x.o"], capture_output=True, text=True, check=False
    )
    assert "mark_1' is already defined" in said.stderr
    assert of_link("asm-symbol-clash", *(c(LABEL.format(n, n), X86, *FULL) for n in (1, 2)), lto="full") == []
    assert of_link("asm-symbol-clash", *(c(LABEL.format(1, n), X86, *THIN) for n in (1, 2)), lto="thin") == []


def test_set_symbols_with_different_values() -> None:
    text = 'asm(".globl k\\n.set k, {0}"); int f{1}(void) {{ return {1}; }}'
    other = [c(text.format(n, n), X86, *FULL) for n in (1, 2)]
    assert [f.level for f in of_link("asm-symbol-clash", *other, lto="full")] == [Level.WARNING]
    equal = [c(text.format(5, n), X86, *FULL) for n in (1, 2)]
    assert of_link("asm-symbol-clash", *equal, lto="full") == []


def test_assembly_that_needs_what_is_static(tmp_path: Path) -> None:
    native = asm(".text\ncall helper\n")
    static = c("static int helper(void) { return 3; } int (*keep)(void) = helper;", X86, *THIN)
    assert [(f.symbol, f.level) for f in of_link("asm-symbol-clash", native, static)] == [
        ("helper", Level.ERROR)
    ]
    assert of_link("asm-symbol-clash", native, c("int helper(void) { return 3; }", X86, *THIN)) == []


def test_promoted_names(tmp_path: Path) -> None:
    """A static function that two modules share."""
    root = build_dir(tmp_path)
    own = "static __attribute__((noinline)) int own(int x) { return x * 77; }"
    holder = f"{own} int shared(int x) {{ return own(x) + own(x + 1); }}"
    user = "int shared(int); int _start(int x) { return shared(x); }"
    objects = [c(user, X86, *THIN), c(holder, X86, *THIN)]
    linked(root / "vmlinux", *objects, flags=("-e", "_start"))
    [found] = of_build("promoted-names", root)
    assert found.level is Level.NOTE
    assert "1 static names have a suffix" in found.message
    assert "traced: none, FUNCTION_TRACER is off; BPF-attachable: none, BPF_SYSCALL is off" in found.message
    (root / ".config").write_text("CONFIG_LTO_CLANG_THIN=y\nCONFIG_BPF_SYSCALL=y\n")
    assert "FUNCTION_TRACER is off; BPF-attachable: 1" in of_build("promoted-names", root)[0].message
    linked(
        root / "vmlinux", objects[0], c("int shared(int x) { return x; }", X86, *THIN), flags=("-e", "_start")
    )
    assert of_build("promoted-names", root) == []


def test_stale_include(tmp_path: Path) -> None:
    root = build_dir(tmp_path)
    path = put(c('asm(".incbin \\"included\\""); int f(void) { return 1; }', X86, *THIN), root / "configs.o")
    (root / "included").write_text("old")
    os.utime(root / "included", (1, 1))
    build_dir(root, inputs=[path])
    assert of_build("stale-include", root) == []
    later = path.stat().st_mtime + 5
    os.utime(root / "included", (later, later))
    assert [(f.symbol, f.level) for f in of_build("stale-include", root)] == [("included", Level.WARNING)]
    (root / "included").unlink()
    assert ["not there" in f.message for f in of_build("stale-include", root)] == [True]


def test_dependent_load(tmp_path: Path) -> None:
    header = tmp_path / "source/arch/arm64/include/asm/rwonce.h"
    header.parent.mkdir(parents=True)
    (tmp_path / "source/Kbuild").touch()
    path = put(c(ONE, ARM64, *THIN), tmp_path / "one.o", "clang -flto=thin -c -o one.o one.c")
    root = build_dir(tmp_path, "CONFIG_ARM64=y\nCONFIG_LTO_CLANG_THIN=y\n", [path])
    header.write_text(
        "#ifdef CONFIG_LTO\n#define __LOAD_RCPC(x)\n#define __READ_ONCE(x) __LOAD_RCPC(x)\n#endif\n"
    )
    assert of_build("dependent-load", root) == []
    with (root / ".one.o.cmd").open("a") as stream:
        stream.write("deps_one.o := include/asm-generic/rwonce.h\n")
    assert [f.artifact for f in of_build("dependent-load", root)] == ["one.o"]
    with (root / ".one.o.cmd").open("a") as stream:
        stream.write("  arch/arm64/include/asm/rwonce.h\n")
    assert of_build("dependent-load", root) == []
    header.write_text("#include <asm-generic/rwonce.h>\n")
    assert [f.level for f in of_build("dependent-load", root)] == [Level.ERROR]
    build_dir(root, "CONFIG_ARM64=y\n")
    assert of_build("dependent-load", root) == []


def test_objtool_is_folded_and_attributed(tmp_path: Path) -> None:
    path = put(
        c("static int helper(int x) { return x; } int (*p)(int) = helper;", X86, *THIN),
        tmp_path / "one.o",
        "clang -flto=thin -c -o one.o drivers/one.c",
    )
    root = build_dir(tmp_path, inputs=[path])
    (root / ".klto").mkdir()
    log = root / ".klto/build.log"
    log.write_text("  LD      vmlinux.o\n")
    assert of_build("objtool", root) == []
    log.write_text(
        "vmlinux.o: warning: objtool: helper.llvm.123+0x44: unexpected end of section\n"
        "vmlinux.o: warning: objtool: other+0x12: unexpected end of section\n"
        "vmlinux.o: warning: objtool: third() falls through to next function fourth()\n"
    )
    found = of_build("objtool", root)
    assert [f.level for f in found] == [Level.WARNING] * 2
    assert "2 times" in found[0].message
    assert found[0].source == "drivers/one.c"
    assert "undefined behaviour" in found[0].message
