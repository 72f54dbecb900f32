"""Bitcode that clang 14, 19 and 22 make, against llvm-nm, llvm-dis and llvm-bcanalyzer of their version."""

from __future__ import annotations

import re
import struct
from collections import Counter
from pathlib import Path

import pytest
from bitcode_oracle import letters, of_records, of_text, read, wanted_of_records, wanted_of_text
from objects_helpers import LLVMS, compiled, nm, run, scratch, tool

from klto.objects import irsymtab
from klto.objects.bitcode import Bitcode, Module
from klto.objects.errors import MalformedObject
from klto.objects.nm import letter_of_ir

C = r"""
asm(".section .x,\"a\"\n\t.globl asm_global\nasm_global:\n\t.quad asm_undefined\nasm_local:\n"
    "\t.quad c_function\n\t.weak asm_weak\nasm_weak:\n\t.weak asm_weak_undefined\n"
    "\t.quad asm_weak_undefined\n\t.previous\n");
asm(".set \"caf\303\251\", 1\n\t.incbin \"an \\\"odd\\\" name\"");
extern int undefined_object; extern int undefined_function(int);
extern int weak_undefined(void) __attribute__((weak));
int common_object; int defined_object = 4; static int local_object = 5; const char text[] = "unnamed string";
int second_common; __thread int thread_object = 1;
__attribute__((weak)) int weak_function(void) { return 1; }
__attribute__((visibility("hidden"))) int hidden_function(void) { return 2; }
__attribute__((visibility("protected"))) int protected_function(void) { return 2; }
static int local_function(int x) { asm volatile("nop # %0 $1 %%" : : "r"(x)); return x + local_object; }
int c_function(int x) {
    asm volatile("call inline_callee\n\tjmp *inline_pointer(%%rip)" ::: "memory");
    asm volatile(".pushsection .y,\"a\"; .include \"included\"; .popsection");
    asm volatile("movq $named_address, %0; .quad other_symbol - ." : "=r"(x));
    asm("mov{l %1, %0| %0, %1}" : "=r"(x) : "i"(&defined_object));
    return local_function(x) + undefined_object + undefined_function(x) + hidden_function() + thread_object
         + (weak_undefined ? weak_undefined() : 0) + (int)(long)"string literal";
}
int alias_function(int x) __attribute__((alias("c_function")));
extern int alias_object __attribute__((alias("defined_object"), weak));
static int (*resolve(void))(int) { return c_function; }
int ifunc_function(int) __attribute__((ifunc("resolve")));
__attribute__((used)) static void kept(void) {}
__attribute__((section("my section"))) int placed = 3;
"""

#: Two modules in one file: a class hierarchy that whole-program devirtualisation wants in regular LTO.
CXX = """
struct A { virtual int f(); int a; }; int A::f() { return a; }
struct B : A { int f() override; }; int B::f() { return 2; }
int g(A *a) { return a->f(); }
asm(".globl from_asm\\nfrom_asm:");
"""
X86 = "--target=x86_64-linux-gnu"
ARM64 = "--target=aarch64-linux-gnu"

#: Flags and a suffix for each kind of bitcode.
VARIANTS = {
    "thin": (X86, "-flto=thin", "-O2"),
    "full": (X86, "-flto", "-O2"),
    "debug": (X86, "-flto=thin", "-O1", "-g"),
    "plain": (X86, "-emit-llvm", "-O0", "-fcommon"),
    "medium": (X86, "-flto=thin", "-O2", "-mcmodel=medium"),
}
EVERY = [(version, name) for version in LLVMS for name in VARIANTS]


def the_object(version: int, variant: str) -> Path:
    return compiled(C, version, *VARIANTS[variant])


def two_modules(version: int) -> Path:
    flags = ("-flto=thin", "-fsplit-lto-unit", "-fwhole-program-vtables", "-fvisibility=hidden", "-O2")
    return compiled(CXX, version, X86, *flags, suffix=".cpp")


@pytest.mark.parametrize(("version", "variant"), EVERY)
def test_symbols_are_llvm_nms(version: int, variant: str) -> None:
    path = the_object(version, variant)
    bitcode = read(path)
    assert bitcode.symbol_table_problem == ""
    found = Counter(letters(bitcode))
    # llvm-nm does not load the module flag that says which code model this is; the symbol table's writer did.
    found -= Counter([("U", "_GLOBAL_OFFSET_TABLE_")] if variant == "medium" else [])
    assert found == Counter(nm(path, version))
    assert found.total() >= 25


@pytest.mark.parametrize("version", LLVMS)
def test_symbols_of_another_arch_and_of_two_modules(version: int) -> None:
    plain = C.replace("caf", "ascii_caf").split("static int local_function")[0]
    for path in (compiled(plain, version, ARM64, "-flto=thin", "-O2"), two_modules(version)):
        assert Counter(letters(read(path))) == Counter(nm(path, version))
    assert len(read(two_modules(version)).modules) == 2


@pytest.mark.parametrize("version", LLVMS)
def test_flags_of_symbols(version: int) -> None:
    symbols = {symbol.name: symbol for symbol in read(the_object(version, "plain")).symbols() if symbol.in_ir}
    from_asm = {symbol.name for symbol in read(the_object(version, "thin")).symbols() if symbol.from_asm}
    assert {name for name, symbol in symbols.items() if symbol.visibility == "hidden"} == {"hidden_function"}
    assert {name for name, symbol in symbols.items() if symbol.visibility == "protected"} == {
        "protected_function"
    }
    assert {name for name, symbol in symbols.items() if symbol.weak} == {
        "weak_undefined",
        "weak_function",
        "alias_object",
    }
    assert {name for name, symbol in symbols.items() if symbol.common} == {"common_object", "second_common"}
    assert not symbols["undefined_function"].defined
    assert symbols["c_function"].is_global
    assert symbols["c_function"].executable
    assert not symbols["local_object"].is_global
    names = {
        "asm_global",
        "asm_undefined",
        "asm_local",
        "asm_weak",
        "asm_weak_undefined",
        "c_function",
        "café",
    }
    assert from_asm == names


@pytest.mark.parametrize(("version", "variant"), EVERY)
def test_text_is_llvm_diss(version: int, variant: str) -> None:
    path = the_object(version, variant)
    (module,) = read(path).modules
    found = of_text(module)
    assert found == wanted_of_text(path, version)
    assert len(module.properties.asm.splitlines()) == 13
    assert len(list(module.inline_asm())) == 5
    assert module.properties.version == 2
    assert "my section" in module.properties.section_names


@pytest.mark.parametrize(("version", "variant"), EVERY)
def test_records_are_llvm_bcanalyzers(version: int, variant: str) -> None:
    path = the_object(version, variant)
    (module,) = read(path).modules
    found = of_records(module)
    assert found == wanted_of_records(path, version)
    assert (found["hash"] is not None) == (variant in ("thin", "debug", "medium"))
    assert found["summary"] == {"full": "full", "plain": None}.get(variant, "thin")
    assert str(found["producer"]).startswith(f"LLVM{version}")


@pytest.mark.parametrize("version", LLVMS)
def test_both_modules_of_a_split_unit(version: int) -> None:
    path = two_modules(version)
    bitcode = read(path)
    for number, module in enumerate(bitcode.modules):
        part = path.with_suffix(f".{number}.bc")
        run(tool("llvm-modextract", version), path, "-n", str(number), "-o", part)
        assert of_text(module) == wanted_of_text(part, version)
        text = run(tool("llvm-dis", version), part, "-o", "-")
        assert sorted(letter_of_ir(s.flags) + s.name for s in module.symbols() if s.name == "_Z1gP1A") == (
            ["T_Z1gP1A"] if "define" in text and "@_Z1gP1A(" in text else []
        )
    assert [module.properties.summary for module in bitcode.modules] == ["thin", "full"]
    assert bitcode.modules[0].properties.asm.startswith(b".globl from_asm")


def without_symbol_table(data: bytes) -> bytes:
    """The file as an LLVM without the target would have written it: without the SYMTAB block."""
    blocks = irsymtab.top_level_blocks(data, "x")
    return data[:4] + b"".join(
        data[b - 8 : e] for kind, _, b, e in blocks if kind != irsymtab.SYMTAB_BLOCK_ID
    )


@pytest.mark.parametrize(("version", "variant"), EVERY)
def test_without_a_symbol_table_the_records_give_the_same(version: int, variant: str) -> None:
    data = the_object(version, variant).read_bytes()
    whole, bare = Bitcode(data, "whole"), Bitcode(without_symbol_table(data), "bare")
    assert bare.symbol_table_problem == "no symbol table"
    assert bare.lacks_asm_symbols
    assert not whole.lacks_asm_symbols
    # What only the whole IR tells: llvm.used, thread-local, unnamed_addr and may_omit.
    mask = ~(
        irsymtab.FB_USED
        | irsymtab.FB_TLS
        | irsymtab.FB_UNNAMED_ADDR
        | irsymtab.FB_MAY_OMIT
        | irsymtab.FB_HAS_UNCOMMON
    )
    of_whole = Counter((s.name, s.flags & mask) for s in whole.symbols() if s.in_ir)
    of_bare = Counter((s.name, s.flags & mask) for s in bare.symbols())
    assert of_bare == of_whole
    labels = {"asm_global", "asm_local", "asm_weak"}
    assert bare.asm_labels() == labels


#: Every linkage, visibility and kind of global of LLVM's language reference.
GLOBALS = """target datalayout = "e-m:e-i64:64-n8:16:32:64-S128"
target triple = "x86_64-unknown-linux-gnu"
@a = private global i32 1
@b = internal global i32 1
@c = available_externally global i32 1
@d = linkonce global i32 1
@e = linkonce_odr hidden global i32 1
@f = weak global i32 1
@g = weak_odr protected constant i32 1
@h = common global i32 0
@i = extern_weak global i32
@j = external global i32
@"\\01k" = global i32 1, section "named"
@l = alias i32, ptr @b
@m = alias void (), ptr @fa
@n = weak hidden alias void (), ptr @m
@o = ifunc void (), ptr @fb
@llvm.used = appending global [1 x ptr] [ptr @b], section "llvm.metadata"
@kept = private global i32 2, section "llvm.metadata"
define private void @fp() { ret void }
define void @fa() { ret void }
define internal ptr @fb() { ret ptr @fa }
define linkonce_odr void @fc() { ret void }
define available_externally void @fd() { ret void }
declare extern_weak void @fe()
declare void @llvm.donothing()
define void @ff() { call void @fe() call void @llvm.donothing() ret void }
"""


@pytest.mark.parametrize("version", [19, 22])
def test_every_linkage(version: int) -> None:
    """LLVM 14's text form has other pointers; what its records hold is the same."""
    source, path = scratch() / f"globals-{version}.ll", scratch() / f"globals-{version}.bc"
    source.write_text(GLOBALS)
    run(tool("llvm-as", version), source, "-o", path)
    whole = read(path)
    assert whole.symbol_table_problem == ""
    assert Counter(letters(whole)) == Counter(nm(path, version))
    bare = Bitcode(without_symbol_table(path.read_bytes()), "bare")
    mask = ~(irsymtab.FB_USED | irsymtab.FB_MAY_OMIT | irsymtab.FB_HAS_UNCOMMON)
    of_bare = {symbol.name: symbol.flags & mask for symbol in bare.symbols()}
    assert of_bare == {symbol.name: symbol.flags & mask for symbol in whole.symbols()}
    assert len(of_bare) == 25
    # The same module with another file's string table, which is shorter.
    cut, short = (
        without_symbol_table(p.read_bytes()) for p in (path, compiled("int x;", version, *VARIANTS["thin"]))
    )
    begin = strtab_of(cut)[0]
    with pytest.raises(MalformedObject, match="expected a global and its name, found none"):
        Bitcode(cut[: begin - 8] + short[strtab_of(short)[0] - 8 :], "x").symbols()
    with pytest.raises(MalformedObject, match="expected a module of version 2 with a STRTAB"):
        Bitcode(cut[: begin - 8], "x").symbols()


def strtab_of(data: bytes) -> tuple[int, int]:
    """Begin and end of the STRTAB block's body."""
    return next(
        (b, e) for kind, _, b, e in irsymtab.top_level_blocks(data, "x") if kind == irsymtab.STRTAB_BLOCK_ID
    )


def test_symbol_tables_that_cannot_be_used() -> None:
    data = the_object(19, "thin").read_bytes()
    symtab = next(
        block for block in irsymtab.top_level_blocks(data, "x") if block[0] == irsymtab.SYMTAB_BLOCK_ID
    )
    at = data.index(irsymtab.blob_of(data, *symtab[1:], "x"))
    other = Bitcode(data[:at] + struct.pack("<I", 9) + data[at + 4 :], "x")
    assert other.symbol_table_problem == "a symbol table of version 9"
    assert {s.name for s in other.symbols()} >= {"c_function", "undefined_object"}
    joined = Bitcode(data + two_modules(19).read_bytes()[4:], "joined")
    assert joined.symbol_table_problem == "a symbol table of 1 of 3 modules"
    assert {s.name for s in joined.symbols()} >= {"c_function", "_Z1gP1A"}


def test_symbol_tables_that_lie() -> None:
    data = the_object(19, "thin").read_bytes()
    blobs = {
        kind: bytes(irsymtab.blob_of(data, *rest, "x"))
        for kind, *rest in irsymtab.top_level_blocks(data, "x")
        if kind > 20
    }
    symtab, strtab = blobs[irsymtab.SYMTAB_BLOCK_ID], blobs[irsymtab.STRTAB_BLOCK_ID]
    words = struct.unpack_from("<19I", symtab)
    count, size = words[8], len(symtab)

    def read(changes: dict[int, int], strings: bytes = strtab) -> int:
        patched = bytearray(symtab)
        for word, value in changes.items():
            struct.pack_into("<I", patched, 4 * word, value)
        table = irsymtab.SymbolTable(bytes(patched), strings, "x", 0x77)
        names = table.columns()[0]
        assert [name for name, _ in table.named(b"asm")] == [name for name in names if name.startswith("asm")]
        return len(names)

    first = words[7] // 4
    assert read({}) == len(irsymtab.SymbolTable(symtab, strtab, "x", 0)) == count
    # Version 4 differs in a part that is not read.
    assert read({0: 4}) == count
    assert read({8: count - 1, first: words[11], first + 1: 0}) == count - 1
    cases = [
        ({2: len(strtab) + 1}, "of the string table"),
        ({4: 1 << 28}, f"{1 << 28} modules"),
        ({8: (size - words[7]) // 24 + 1}, "symbols at"),
        ({7: size - 3}, "symbols at"),
        ({18: 1 << 30}, "libraries"),
        ({first: len(strtab)}, "names within"),
        ({first + 1: len(strtab) + 1}, "names within"),
        (
            {first + 6 * n + part: (0, len(strtab))[part] for n in range(count) for part in (0, 1)},
            "name of its own",
        ),
    ]
    for changes, problem in cases:
        with pytest.raises(MalformedObject, match=f"x: at offset 0x77: expected .*{problem}"):
            read(changes)
    with pytest.raises(MalformedObject, match="expected a symbol table header, found 75 bytes"):
        irsymtab.SymbolTable(symtab[:75], strtab, "x", 0x77)
    empty = struct.pack("<19I", 4, *[0] * 18)
    assert irsymtab.SymbolTable(empty, b"", "x", 0).columns()[0] == []


@pytest.mark.parametrize("version", LLVMS)
def test_wrapped_bitcode(version: int) -> None:
    path = compiled(
        "int g(void); int f(void) { return g(); }", version, "--target=x86_64-apple-macosx", "-emit-llvm"
    )
    assert path.read_bytes()[:4] == bytes.fromhex("dec0170b")
    assert Counter(letters(read(path))) == Counter(nm(path, version))
    assert read(path).modules[0].properties.target_triple.startswith("x86_64-apple-macosx")


def test_assembly_says_what_it_includes() -> None:
    for version in LLVMS:
        found = read(the_object(version, "thin")).includes()
        assert [(i.directive, i.path) for i in found] == [
            ("incbin", 'an "odd" name'),
            ("include", "included"),
        ]
        assert found[1].text == '.pushsection .y,"a"; .include "included"; .popsection'


def test_names_in_inline_assembly_are_found() -> None:
    for version in LLVMS:
        names = read(the_object(version, "thin")).names_in_inline_asm()
        assert names >= {"inline_callee", "inline_pointer", "named_address", "other_symbol"}
        assert not names & {"rip", "call", "movq", "asm_undefined", "c_function", "jmp"}


def test_names_of_an_archless_object_need_a_data_layout() -> None:
    """llvm-as of text without a layout writes no symbol table, as irsymtab::build refuses to."""
    folder = scratch()
    (folder / "bare.ll").write_text(
        "define void @f() { call void @g() ret void }\ndeclare void @g()\n@v = global i8 1\n"
    )
    for version in LLVMS:
        run(tool("llvm-as", version), "bare.ll", "-o", "bare.bc", cwd=folder)
        bitcode = read(folder / "bare.bc")
        assert bitcode.symbol_table_problem in ("", "no symbol table")
        assert Counter(letters(bitcode)) == Counter(nm(folder / "bare.bc", version))


def flip(data: bytes, at: int, value: bytes) -> bytes:
    return data[:at] + value + data[at + len(value) :]


def test_errors_say_where() -> None:
    data = the_object(19, "thin").read_bytes()
    blocks = {kind: (begin, end) for kind, _, begin, end in irsymtab.top_level_blocks(data, "x")}
    module, symtab = blocks[irsymtab.MODULE_BLOCK_ID], blocks[irsymtab.SYMTAB_BLOCK_ID]
    cases = [
        (b"BC\xc0\xdf" + data[4:], "at offset 0x0: expected the magic of bitcode"),
        (data[: module[1] - 4], f"at offset {module[0] - 4:#x}: expected a block of"),
        (flip(data, 4, b"\0\0\0\0"), "at offset 0x4: expected ENTER_SUBBLOCK"),
        (data[:4] + data[symtab[0] - 8 :], "expected a module"),
        (bytes.fromhex("dec0170b") + bytes(8), "expected a wrapper of 20 bytes"),
        (struct.pack("<5I", 0x0B17C0DE, 0, 20, 1 << 20, 7) + data, "at offset 0x8: expected 1048576 bytes"),
    ]
    for broken, message in cases:
        with pytest.raises(MalformedObject, match=re.escape(message)):
            Bitcode(broken, "x")


def test_a_blob_is_found_by_the_book_too() -> None:
    """The short way over LLVM's own prelude and the bitstream reader agree, for every size of blob."""
    for version in LLVMS:
        data = the_object(version, "debug").read_bytes()
        for kind, width, begin, end in irsymtab.top_level_blocks(data, "x"):
            if kind in (irsymtab.SYMTAB_BLOCK_ID, irsymtab.STRTAB_BLOCK_ID):
                short = irsymtab.blob_of(data, width, begin, end, "x")
                assert short == irsymtab._blob_by_the_book(data, width, begin, end, "x", 0)
                assert len(short) > 300


def test_a_module_reads_each_part_on_demand() -> None:
    module = read(the_object(19, "thin")).modules[0]
    assert isinstance(module, Module)
    assert module.properties is module.properties
