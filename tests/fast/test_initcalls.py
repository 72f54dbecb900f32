"""Initcall order of small kernels of our own making, as the kernel's script prints it and after the link."""

from __future__ import annotations

import json
import re
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from objects_helpers import LLVMS, compiled, run, scratch, tool

from klto.cli import main
from klto.errors import UsageError
from klto.kernel.initcall_tables import calls_in_log, differences, log_differences, read_tables
from klto.kernel.initcalls import (
    Initcall,
    NoInitcalls,
    in_run_order,
    linker_script,
    read_initcalls,
    split_name,
)
from klto.objects import irsymtab
from klto.objects.errors import MalformedObject

#: ____define_initcall of include/linux/init.h with CONFIG_LTO_CLANG and PREL32 relocations, in short.
MACROS = r"""
#define S(x) #x
#define NAME(p, m, c, l, f, v) p ## kmod_ ## m ## __ ## c ## _ ## l ## _ ## f ## v
#define INITCALL(m, c, l, f, v, sec) static int f(void) { return l; } \
    int NAME(__initstub__, m, c, l, f, v)(void); int NAME(__initstub__, m, c, l, f, v)(void) { return f(); } \
    asm(".section \"" sec ".init..kmod_" S(m) "__" S(c) "_" S(l) "_" S(f) "\",\"a\"\n" \
        "__initcall__kmod_" S(m) "__" S(c) "_" S(l) "_" S(f) S(v) ":\n" \
        ".long __initstub__kmod_" S(m) "__" S(c) "_" S(l) "_" S(f) S(v) " - .\n.previous\n");
"""
FIRST = MACROS + (
    'INITCALL(first, 10, 7, late, 7, ".initcall7") INITCALL(first, 9, 5, early_one, early, ".initcallearly")'
    'INITCALL(first, 100, 9, console, con, ".con_initcall")'
    'INITCALL(first, 11, 8, level_6, 6s, ".initcall6s")'
)
SECOND = MACROS + (
    'INITCALL(second, 1, 2, start, 6, ".initcall6") INITCALL(second, 2, 3, files, rootfs, ".initcallrootfs")'
    'INITCALL(second, 3, 4, start7, 7, ".initcall7")'
)
EXPECTED = """SECTIONS {
\t.initcall6.init : {
\t\t*(.initcall6.init..kmod_second__1_2_start) ;
\t}
\t.initcall6s.init : {
\t\t*(.initcall6s.init..kmod_first__11_8_level_6) ;
\t}
\t.initcall7.init : {
\t\t*(.initcall7.init..kmod_first__10_7_late) ;
\t\t*(.initcall7.init..kmod_second__3_4_start7) ;
\t}
\t.con_initcall.init : {
\t\t*(.con_initcall.init..kmod_first__100_9_console) ;
\t}
\t.initcallearly.init : {
\t\t*(.initcallearly.init..kmod_first__9_5_early_one) ;
\t}
\t.initcallrootfs.init : {
\t\t*(.initcallrootfs.init..kmod_second__2_3_files) ;
\t}
}
"""
X86 = "--target=x86_64-linux-gnu"
BITCODE, NATIVE = (X86, "-flto=thin", "-O2"), (X86, "-O2")
#: Of include/asm-generic/vmlinux.lds.h, what has to do with initcalls.
VMLINUX_LDS = (
    "SECTIONS { . = 0xffffffff81000000; .text : { *(.text .text.*) } .init.data : { __initcall_start = .;"
    " KEEP(*(.initcallearly.init)) "
    + "".join(f"__initcall{n}_start = .; KEEP(*(.initcall{n}.init .initcall{n}s.init)) " for n in range(6))
    + "__initcallrootfs_start = .; KEEP(*(.initcallrootfs.init .initcallrootfss.init)) "
    + "".join(
        f"__initcall{n}_start = .; KEEP(*(.initcall{n}.init)) KEEP(*(.initcall{n}s.init)) " for n in (6, 7)
    )
    + "__initcall_end = .; __con_initcall_start = .; KEEP(*(.con_initcall.init)) __con_initcall_end = .; } }"
)


def archive(version: int, *kinds: tuple[str, ...], flags: str = "rcST") -> Path:
    """FIRST and SECOND, compiled as ``kinds`` say, between members without initcalls."""
    name = "".join("b" if kind is BITCODE else "n" for kind in kinds)
    folder = scratch() / f"{name}-{version}-{flags}"
    folder.mkdir(exist_ok=True)
    objects = [compiled(source, version, *kind) for source, kind in zip((FIRST, SECOND), kinds, strict=True)]
    empty = [compiled(f"int no_initcall_{n};", version, *kind) for n, kind in enumerate((BITCODE, NATIVE))]
    (folder / "text.o").write_text("no object")
    path = folder / "vmlinux.a"
    path.unlink(missing_ok=True)
    run(
        tool("llvm-ar", version),
        flags,
        path,
        empty[0],
        objects[0],
        empty[1],
        folder / "text.o",
        objects[1],
        cwd=folder,
    )
    return path


@pytest.mark.parametrize("version", LLVMS)
@pytest.mark.parametrize("flags", ["rcST", "qcS"])
@pytest.mark.parametrize(
    "kinds", [(BITCODE, BITCODE), (NATIVE, NATIVE), (BITCODE, NATIVE)], ids=["lto", "elf", "mixed"]
)
def test_the_order_of_an_archive(version: int, flags: str, kinds: tuple[tuple[str, ...], ...]) -> None:
    initcalls = read_initcalls([str(archive(version, *kinds, flags=flags))])
    assert linker_script(initcalls) == EXPECTED
    run_order = ["console", "early_one", "files", "start", "level_6", "late", "start7"]
    assert [initcall.function for initcall in in_run_order(initcalls)] == run_order
    objects = {initcall.object.rpartition("/")[2] for initcall in initcalls}
    assert objects == {"object.o"} if flags == "rcST" else {"vmlinux.a(object.o)"}


def test_inputs_come_in_the_order_given() -> None:
    first, second = (str(compiled(source, 19, *BITCODE)) for source in (FIRST, SECOND))
    assert linker_script(read_initcalls([first, second])) == EXPECTED
    swapped = [initcall.function for initcall in read_initcalls([second, first]) if initcall.level == "7"]
    assert swapped == ["start7", "late"]


@pytest.mark.parametrize("version", LLVMS)
def test_vmlinux_has_the_order_of_its_objects(version: int) -> None:
    path = archive(version, BITCODE, BITCODE)
    initcalls = read_initcalls([str(path)])
    found = read_tables(link(path, version, linker_script(initcalls)))
    assert [entry.name for entry in found] == [
        initcall.id + initcall.level for initcall in in_run_order(initcalls)
    ]
    assert found[2].target == {"__initstub__kmod_second__2_3_filesrootfs"}
    assert differences(initcalls, found) == []
    backwards = link(path, version, linker_script(initcalls[::-1]))
    assert differences(initcalls, read_tables(backwards)) == [
        "initcall 5 is kmod_second__3_4_start77, but the objects' order has kmod_first__10_7_late7 there"
    ]
    assert differences(initcalls[1:], found) == [
        f"{initcalls[0].id}early is in a table, but in none of the link's inputs"
    ]
    assert differences(initcalls, found[1:]) == ["kmod_first__100_9_consolecon is in no table"]


def test_a_boots_log_is_held_against_the_objects() -> None:
    initcalls = read_initcalls([str(archive(19, BITCODE, BITCODE))])
    names = [initcall.id + initcall.level for initcall in in_run_order(initcalls)][1:]
    lines = [f"[    0.1{n}] calling  __initstub__{name}+0x0/0x8 @ 1" for n, name in enumerate(names)]
    log = "\r\n".join(
        [
            "Linux version",
            *lines[:2],
            "[    0.2] pci 0000:00:00.0: calling  quirk_mmio_always_on+0x0/0x10 @ 1",
            "<6>[    0.2][    T1] " + lines[2].partition("] ")[2],
            *lines[3:],
            "initcall x+0x0/0x8 returned 0 after 0 usecs",
            "calling  init_module+0x0/0x1 [m] @ 9",
        ]
    )
    assert calls_in_log(log) == [*names, "init_module"]
    assert log_differences(initcalls, calls_in_log(log)) == []
    assert log_differences(initcalls, names[:-1]) == [
        "initcall 5 was nothing, but the objects' order has kmod_second__3_4_start77 there"
    ]
    assert log_differences(initcalls, names[1:])[0].startswith(
        "initcall 0 was kmod_second__2_3_filesrootfs, but"
    )
    # Without LTO there are no stubs: the functions themselves are called.
    functions = [initcall.function for initcall in in_run_order(initcalls)][1:]
    assert log_differences(initcalls, [*functions[:2], f"{functions[2]}.cfi", *functions[3:]]) == []


def link(path: Path, version: int, order: str) -> Path:
    folder = path.parent
    (folder / "initcalls.lds").write_text(order)
    (folder / "vmlinux.lds").write_text(VMLINUX_LDS)
    lld = tool("ld.lld", version)
    # Without the member that is no object: the linker does not pass over it.
    (folder / "linked.a").unlink(missing_ok=True)
    objects = [name for name in run(tool("llvm-ar", version), "t", path).split() if "text.o" not in name]
    run(tool("llvm-ar", version), "rcST", "linked.a", *objects, cwd=folder)
    whole = ("--whole-archive", "linked.a", "--no-whole-archive")
    run(lld, "-r", "-o", "vmlinux.o", "-T", "initcalls.lds", *whole, cwd=folder)
    run(lld, "-o", "vmlinux", "-T", "vmlinux.lds", "-e", "0", "vmlinux.o", cwd=folder)
    return folder / "vmlinux"


def test_an_entry_that_calls_something_else_is_told(tmp_path: Path) -> None:
    path = archive(19, BITCODE, BITCODE)
    initcalls = read_initcalls([str(path)])
    vmlinux = link(path, 19, linker_script(initcalls))
    entries = read_tables(vmlinux)
    data = bytearray(vmlinux.read_bytes())
    # Where the table lies in the file: after the address of its first entry, in .init.data.
    text = run(tool("llvm-readelf", 19), "-S", "-W", vmlinux)
    section = re.search(r"\.init\.data +PROGBITS +([0-9a-f]+) ([0-9a-f]+)", text)
    assert section
    offset = int(section[2], 16) + entries[3].address - int(section[1], 16)
    data[offset : offset + 4] = bytes(4)
    (tmp_path / "vmlinux").write_bytes(data)
    (line,) = differences(initcalls, read_tables(tmp_path / "vmlinux"))
    assert line.startswith("the entry of kmod_second__1_2_start6 calls ")


def test_a_table_with_a_gap_is_told(tmp_path: Path) -> None:
    path = archive(19, BITCODE, BITCODE)
    vmlinux = link(path, 19, linker_script(read_initcalls([str(path)])))
    data = vmlinux.read_bytes().replace(
        b"__initcall__kmod_second__3_4_start77", b"__initcall__kmod_second__3_4-start77"
    )
    (tmp_path / "vmlinux").write_bytes(data)
    with pytest.raises(
        MalformedObject, match=r"at offset 0x[0-9a-f]+: expected an initcall's symbol at 0xffffffff81"
    ):
        read_tables(tmp_path / "vmlinux")


def test_tables_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has no symbol __con_initcall_start"):
        read_tables(compiled("int x;", 19, *NATIVE))
    with pytest.raises(UsageError, match="or __con_initcall_end"):
        read_tables(compiled("int __con_initcall_start;", 19, *NATIVE))
    run(tool("llvm-strip", 19), compiled("int x;", 19, *NATIVE), "-o", tmp_path / "stripped")
    with pytest.raises(UsageError, match="has no symbol table"):
        read_tables(tmp_path / "stripped")


#: The script's two expressions (scripts/generate_initcall_order.pl, find_initcalls).
SYMBOL = re.compile(r"[a-z]\s+__initcall__(\S*)__(\d+)_(\d+)_(.*)$", re.ASCII)
LEVEL = re.compile(r"^(.*)((early|rootfs|con|[0-9])s?)$", re.ASCII)
NAMES = st.text(st.sampled_from("_01es"), max_size=12) | st.from_regex(
    r"__initcall__[ab_0-9]{0,6}__[0-9]{1,2}_[0-9]_[a-z_0-9]{0,4}(early|rootfs|con|[0-9])?s?", fullmatch=True
)


@given(st.one_of(NAMES, st.builds("__initcall__{}".format, NAMES)))
def test_names_are_taken_apart_as_the_script_does(name: str) -> None:
    match = SYMBOL.search(f"---------------- t {name}")
    assert split_name(name) == (match.groups() if match else None)


@given(st.sampled_from(["", "x", "a_"]), st.text(st.sampled_from("earlyootfscn0189_"), max_size=9))
def test_levels_are_taken_off_as_the_script_does(stem: str, tail: str) -> None:
    from klto.kernel.initcalls import _level

    match = LEVEL.match(stem + tail)
    assert _level(stem + tail) == (match[2] if match else None)


def test_global_and_undefined_symbols_are_not_counted() -> None:
    source = (
        "int __initcall__kmod_a__1_2_global6; extern int __initcall__kmod_a__2_2_undefined6;"
        "static int __initcall__kmod_a__3_2_local6 = 1;"
        "__attribute__((weak)) int __initcall__kmod_a__4_2_weak6;"
        "extern int __initcall__kmod_a__5_2_gone6 __attribute__((weak));"
        "int *keep[] = { &__initcall__kmod_a__2_2_undefined6, &__initcall__kmod_a__3_2_local6,"
        " &__initcall__kmod_a__5_2_gone6 };"
    )
    for flags in (BITCODE, NATIVE):
        found = read_initcalls([str(compiled(source, 19, *flags))])
        assert [initcall.function for initcall in found] == ["local"]


def test_the_kernel_runs_level_by_level() -> None:
    """INIT_CALLS of include/asm-generic/vmlinux.lds.h, behind the consoles' own."""
    order = [
        "con",
        "early",
        "0",
        "0s",
        "1",
        "1s",
        "2",
        "2s",
        "3",
        "3s",
        "4",
        "4s",
        "5",
        "5s",
        "rootfs",
        "rootfss",
        "6",
        "6s",
        "7",
        "7s",
        "8",
        "earlys",
    ]
    initcalls = [Initcall("x.o", "kmod_x", "1", "1", f"f{level}", level) for level in sorted(order)]
    assert [initcall.level for initcall in in_run_order(initcalls)] == order
    assert [i.level for i in in_run_order(initcalls[::-1])][:-2] == order[:-2]


def test_of_one_counter_the_last_name_wins() -> None:
    source = 'asm("__initcall__kmod_a__7_1_b6: __initcall__kmod_a__7_2_a6: __initcall__kmod_a__3_1_z1:");'
    for flags in (BITCODE, NATIVE):
        found = read_initcalls([str(compiled(source, 19, *flags))])
        assert [(initcall.id, initcall.level) for initcall in found] == [
            ("kmod_a__3_1_z", "1"),
            ("kmod_a__7_2_a", "6"),
        ]


@pytest.mark.parametrize(
    ("source", "flags", "why"),
    [
        ("int x;", BITCODE, r"no local symbol __initcall__\* in 1 bitcode of LLVM19.*"),
        ("int x;", NATIVE, r"no local symbol __initcall__\* in 1 ELF"),
    ],
)
def test_why_there_are_none(source: str, flags: tuple[str, ...], why: str) -> None:
    with pytest.raises(NoInitcalls, match=f"no initcalls: {why}") as caught:
        read_initcalls([str(compiled(source, 19, *flags))])
    assert caught.value.hint


def test_why_there_are_none_in_what_is_no_object(tmp_path: Path) -> None:
    (tmp_path / "a.o").write_text("text")
    run(tool("llvm-ar", 19), "rcST", "x.a", "a.o", cwd=tmp_path)
    (tmp_path / "b.o").touch()
    with pytest.raises(NoInitcalls, match="no initcalls: found 1 empty, 1 in no format of objects"):
        read_initcalls([str(tmp_path / "x.a"), str(tmp_path / "b.o")])
    run(tool("llvm-ar", 19), "rcS", "empty.a", cwd=tmp_path)
    with pytest.raises(NoInitcalls, match="the archives are empty"):
        read_initcalls([str(tmp_path / "empty.a")])
    run(tool("llvm-strip", 19), compiled("int x;", 19, *NATIVE), "-o", tmp_path / "s.o")
    with pytest.raises(NoInitcalls, match="1 ELF without symbols") as caught:
        read_initcalls([str(tmp_path / "s.o")])
    assert "not stripped ones" in (caught.value.hint or "")


def test_a_symbol_table_that_is_missing_is_an_error(tmp_path: Path) -> None:
    """The kernel's script would have printed an order without these initcalls, or "no initcalls?"."""
    for source, error in (
        (FIRST, "expected a symbol table that lists the initcalls"),
        ("int x;", "no initcalls"),
    ):
        data = compiled(source, 19, *BITCODE).read_bytes()
        blocks = irsymtab.top_level_blocks(data, "x")
        bare = b"".join(data[b - 8 : e] for kind, _, b, e in blocks if kind != irsymtab.SYMTAB_BLOCK_ID)
        (tmp_path / "bare.o").write_bytes(data[:4] + bare)
        with pytest.raises(UsageError, match=error):
            read_initcalls([str(tmp_path / "bare.o")])


def test_a_string_table_serves_the_symbol_table_before_it(tmp_path: Path) -> None:
    """getBitcodeFileContents of BitcodeReader.cpp: a symbol table behind its strings has none."""
    data = compiled(FIRST, 19, *BITCODE).read_bytes()
    blocks = list(irsymtab.top_level_blocks(data, "x"))
    order = sorted(blocks, key=lambda block: block[0] == irsymtab.SYMTAB_BLOCK_ID)
    (tmp_path / "turned.o").write_bytes(data[:4] + b"".join(data[b - 8 : e] for _, _, b, e in order))
    with pytest.raises(MalformedObject, match=r"found no symbol table \(by LLVM19"):
        read_initcalls([str(tmp_path / "turned.o")])
    wrapper = struct.pack("<5I", 0x0B17C0DE, 0, 20, len(data), 7)
    (tmp_path / "wrapped.o").write_bytes(wrapper + data)
    assert len(read_initcalls([str(tmp_path / "wrapped.o")])) == 4


def test_an_initcall_without_a_level_is_an_error() -> None:
    path = compiled('asm("__initcall__kmod_a__7_1_function:");', 19, *BITCODE)
    with pytest.raises(UsageError, match="initcall __initcall__kmod_a__7_1_function has no level"):
        read_initcalls([str(path)])


def test_the_command(tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    path = str(archive(19, BITCODE, BITCODE))
    assert main(["initcalls", path]) == 0
    assert capsysbinary.readouterr().out.decode() == EXPECTED
    assert main(["initcalls", path, "-o", str(tmp_path / "out.lds")]) == 0
    assert (tmp_path / "out.lds").read_text() == EXPECTED
    assert main(["initcalls", path, "--format", "json"]) == 0
    result = json.loads(capsysbinary.readouterr().out)
    assert result["schema"] == "klto/initcalls/1"
    by_order = sorted(result["initcalls"], key=lambda entry: entry["order"])
    assert [(entry["function"], entry["level"], entry["line"]) for entry in by_order[:2]] == [
        ("console", "con", 9),
        ("early_one", "early", 5),
    ]
    assert all(entry["object"].endswith("object.o") for entry in by_order)
    assert {entry["module"] for entry in by_order} == {"first", "second"}


def test_errors_of_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["initcalls", str(tmp_path / "none.a")]) == 2
    assert capsys.readouterr().err == f"klto: {tmp_path}/none.a: cannot be read: No such file or directory\n"
    (tmp_path / "bad.a").write_bytes(b"!<arch>\nnonsense")
    assert main(["initcalls", str(tmp_path / "bad.a")]) == 2
    assert capsys.readouterr().err.startswith(
        f"klto: {tmp_path}/bad.a: at offset 0x8: expected a member header"
    )
    path = str(archive(19, BITCODE, BITCODE))
    assert main(["initcalls", path, "-o", str(tmp_path / "no" / "where")]) == 2
    assert "cannot write" in capsys.readouterr().err


def test_the_short_way_stays_short() -> None:
    """The whole command has a tenth of a second: what it may import is what a plain archive needs."""
    path = str(archive(19, BITCODE, BITCODE))
    code = (
        "import sys; from klto.kernel.initcalls import linker_script, read_initcalls;"
        f"linker_script(read_initcalls([{path!r}]));"
        "print(*sorted(set('re typing enum dataclasses numpy pathlib json'.split()) & set(sys.modules)))"
    )
    source = str(Path(__file__).parents[2] / "src")
    command = [sys.executable, "-I", "-S", "-c", f"import sys; sys.path.insert(0, {source!r}); {code}"]
    assert subprocess.run(command, capture_output=True, check=True, text=True).stdout == "\n"
