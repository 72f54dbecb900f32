"""ELF files of many targets, against every section, symbol and relocation that llvm-readobj prints."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from elf_oracle import (
    letters,
    relocations,
    sections,
    symbols,
    wanted_relocations,
    wanted_sections,
    wanted_symbols,
)
from objects_helpers import LLVMS, assembled, braces, compiled, nm, number, run, scratch, tool

from klto.objects.elf import SHF_COMPRESSED, Elf
from klto.objects.elf_sections import section_names
from klto.objects.errors import MalformedObject
from klto.objects.relocation_types import relocation_name, relocation_types
from klto.objects.relocations import RelocationReader

C = """
extern int undefined_object, undefined_function(int); extern int weak_undefined(void) __attribute__((weak));
int defined_object = 4; static int local_object; __attribute__((weak)) int weak_object = 3; int common_object;
__attribute__((visibility("hidden"))) int hidden_object; const int fixed = 7; int *pointer = &defined_object;
static int f(int x) { switch (x) { case 1: return 7; case 2: return 5; case 3: return 17; case 4: return 9; }
  return x + local_object++ + undefined_object; }
int g(int x) { return f(x) + undefined_function(defined_object) + (weak_undefined ? weak_undefined() : 0); }
int (*table[])(int) = { f, g, undefined_function };
"""
TARGETS = {
    "x86_64-linux-gnu": 14,
    "i386-linux-gnu": 14,
    "aarch64-linux-gnu": 14,
    "aarch64_be-linux-gnu": 14,
    "arm-linux-gnueabi": 14,
    "armeb-linux-gnueabi": 14,
    "riscv64-linux-gnu": 14,
    "riscv32-linux-gnu": 14,
    "powerpc64le-linux-gnu": 14,
    "powerpc64-linux-gnu": 14,
    "powerpc-linux-gnu": 14,
    "s390x-linux-gnu": 14,
    "loongarch64-linux-gnu": 19,
}
EVERY = [(version, target) for target, since in TARGETS.items() for version in LLVMS if version >= since]


def read(path: Path) -> Elf:
    return Elf(path.read_bytes(), str(path))


@pytest.mark.parametrize(("version", "target"), EVERY)
def test_every_table_of_every_target(version: int, target: str) -> None:
    flags = ("-O2", "-ffunction-sections", "-fcommon", "-g")
    path = compiled(C, version, f"--target={target}", *flags)
    elf = read(path)
    assert sections(elf) == wanted_sections(path, version)
    assert symbols(elf) == wanted_symbols(path, version)
    assert relocations(elf) == wanted_relocations(path, version)
    assert section_names(path) == elf.section_names
    assert len(relocations(elf)) > 30
    assert elf.producers == [line for line in elf.producers if "clang version" in line] != []
    named = [entry for entry in sorted(nm(path, version)) if entry[1]]
    assert letters(path) == named


def test_more_sections_than_the_header_can_count() -> None:
    """Past SHN_LORESERVE the numbers move to section 0 and symbols' sections to SHT_SYMTAB_SHNDX."""
    lines = [
        f'.section .s{n},"ax"\nf{n}: .quad f0' if n % 64 == 0 else f".section .s{n}" for n in range(65281)
    ]
    source = assembled("\n".join(lines), 19, "x86_64-linux-gnu")
    # lld puts the names last, so that their section's number does not fit either.
    path = linked(19, source, "-r")
    assert struct.unpack_from("<H", source.read_bytes(), 60) == (0,)
    assert struct.unpack_from("<2H", path.read_bytes(), 60) == (0, 0xFFFF)
    elf = read(path)
    assert len(elf.sections) > 65280
    assert sections(elf) == wanted_sections(path, 19)
    assert section_names(path) == elf.section_names
    for each in (source, path):
        assert symbols(read(each)) == wanted_symbols(each, 19)
        assert relocations(read(each)) == wanted_relocations(each, 19)
        assert letters(each) == sorted(nm(each, 19))
    assert elf.symtab
    assert elf.section_names[elf.symtab.section[elf.symtab.by_name["f65280"]]] == ".s65280"


def linked(version: int, source: Path, *flags: str) -> Path:
    output = source.with_name(f"linked{abs(hash(flags))}")
    run(tool("ld.lld", version), source, "-o", output, *flags)
    return output


@pytest.mark.parametrize("target", ["x86_64-linux-gnu", "aarch64_be-linux-gnu", "arm-linux-gnueabi"])
def test_relr(target: str) -> None:
    pointers = "".join(f"static int v{n}; int *p{n}[{n % 5 + 1}] = {{&v{n}}};" for n in range(300))
    path = linked(
        19,
        compiled(pointers, 19, f"--target={target}", "-fPIC"),
        "-pie",
        "--pack-dyn-relocs=relr",
        "--no-dynamic-linker",
    )
    elf = read(path)
    reader = RelocationReader(elf)
    (index,) = reader.relr_indexes
    found = reader.relr(index)
    assert len(found) == 300
    groups = [
        part
        for part in run(tool("llvm-readobj", 19), "--relocations", path).split("  Section (")
        if ".relr.dyn" in part
    ]
    wanted = [int(line.split()[0], 0) for line in groups[0].splitlines() if "RELATIVE" in line]
    assert found.tolist() == wanted
    assert sections(elf) == wanted_sections(path, 19)


@pytest.mark.parametrize("version", LLVMS)
def test_dynamic_symbols(version: int) -> None:
    source = compiled(C, version, "--target=x86_64-linux-gnu", "-fPIC", "-fcommon")
    path = linked(version, source, "-shared")
    static, dynamic = sorted(read(path).symbol_tables, key=lambda table: -len(table))
    wanted = sorted(name for _, name in nm(path, version, "-D"))
    assert sorted(dynamic.names[1:]) == wanted
    assert {"g", "undefined_object"} <= set(wanted)
    assert "f" in static.names
    assert "f" not in wanted
    assert read(path).symtab is not None
    run(tool("llvm-strip", version), path)
    (only,) = read(path).symbol_tables
    assert sorted(only.names[1:]) == wanted
    assert read(path).symtab is None


def test_a_name_stands_for_its_global_symbol() -> None:
    texts = ("dup: twice: nop", "nop; dup: twice: nop", ".globl dup; dup: nop")
    objects = [assembled(text, 19, "x86_64-linux-gnu") for text in texts]
    table = read(linked(19, objects[0], "-r", *map(str, objects[1:]))).symtab
    assert table
    binding = dict(enumerate(table.table["st_info"] >> 4))
    assert [binding[i] for i, name in enumerate(table.names) if name == "dup"] == [0, 0, 1]
    assert binding[table.by_name["dup"]] == 1
    assert table.by_name["twice"] == table.names.index("twice")
    assert table.names.count("twice") == 2


@pytest.mark.parametrize("target", ["x86_64-linux-gnu", "aarch64-linux-gnu", "riscv32-linux-gnu"])
def test_crel(target: str) -> None:
    flags = (f"--target={target}", "-O1", "-g", "-ffunction-sections")
    plain = compiled(C, 22, *flags)
    path = compiled(C, 22, *flags, "-Wa,--crel,--allow-experimental-crel")
    elf = read(path)
    assert 0x40000014 in elf.sections["sh_type"]
    assert relocations(elf) == wanted_relocations(path, 22)
    key = ["r_offset", "r_type", "r_addend"]
    pair = [RelocationReader(read(p)).all.entries[key] for p in (plain, path)]
    assert sorted(pair[0].tolist()) == sorted(pair[1].tolist())


@pytest.mark.parametrize("version", LLVMS)
def test_notes(version: int) -> None:
    path = linked(
        version,
        compiled("int _start;", version, "--target=x86_64-linux-gnu", "-fcf-protection=full"),
        "--build-id=0xabcd",
    )
    text = '.section .note.x,"a",@note; .long 5, 3, 9; .asciz "klto"; .balign 4; .ascii "abc"; .balign 4'
    source = assembled(text.replace(";", "\n"), version, "powerpc64-linux-gnu")
    (note,) = read(source).notes()
    assert (note.name, note.n_type, bytes(note.desc)) == (b"klto", 9, b"abc")
    notes = {note.name: note for note in read(path).notes()}
    # NT_GNU_BUILD_ID.
    assert [(n.n_type, bytes(n.desc)) for n in read(path).notes() if n.n_type == 3] == [(3, b"\xab\xcd")]
    assert set(notes) == {b"GNU"}
    stripped = bytearray(path.read_bytes())
    struct.pack_into("<Q", stripped, 40, 0)
    struct.pack_into("<HH", stripped, 60, 0, 0)
    from_segments = list(Elf(bytes(stripped), "x").notes())
    assert {(n.name, n.n_type, bytes(n.desc)) for n in from_segments} == {
        (n.name, n.n_type, bytes(n.desc)) for n in read(path).notes()
    }


@pytest.mark.parametrize(
    "target", ["x86_64-linux-gnu", "i386-linux-gnu", "aarch64_be-linux-gnu", "armeb-linux-gnueabi"]
)
def test_segments(target: str) -> None:
    path = linked(19, compiled("int _start = 3; const int c = 4;", 19, f"--target={target}"), "-z", "now")
    keys = (
        "Type",
        "Offset",
        "VirtualAddress",
        "PhysicalAddress",
        "FileSize",
        "MemSize",
        "Flags",
        "Alignment",
    )
    fields = ("type", "offset", "vaddr", "paddr", "filesz", "memsz", "flags", "align")
    groups = braces(run(tool("llvm-readobj", 19), "--program-headers", path), "ProgramHeader")
    wanted = [tuple(number(group[key]) for key in keys) for group in groups]
    segments = read(path).segments
    assert [tuple(int(row[f"p_{field}"]) for field in fields) for row in segments] == wanted
    assert len(wanted) > 2


def test_more_segments_than_the_header_can_count() -> None:
    """PN_XNUM: section 0's sh_info has the number ("ELF Header", e_phnum)."""
    path = linked(19, compiled("int _start = 3;", 19, "--target=x86_64-linux-gnu"), "-z", "now")
    data = bytearray(path.read_bytes())
    count = struct.unpack_from("<H", data, 56)[0]
    struct.pack_into("<H", data, 56, 0xFFFF)
    struct.pack_into("<I", data, struct.unpack_from("<Q", data, 40)[0] + 44, count)
    assert Elf(bytes(data), "x").segments.tolist() == read(path).segments.tolist()
    assert len(read(path).segments) == count > 2


def test_compressed_sections_stay_compressed() -> None:
    path = compiled(C, 19, "--target=x86_64-linux-gnu", "-g", "-gz=zlib")
    elf = read(path)
    names = elf.section_names
    index = names.index(".debug_str")
    assert elf.sections["sh_flags"][index] & SHF_COMPRESSED
    # Elf64_Chdr: ELFCOMPRESS_ZLIB.
    assert struct.unpack_from("<I", elf.content(index)) == (1,)


def test_tables_are_views_of_the_file() -> None:
    elf = read(compiled(C, 19, "--target=x86_64-linux-gnu", "-ffunction-sections"))
    data = np.frombuffer(elf.data, np.uint8)
    assert elf.symtab
    for table in (elf.sections, elf.symtab.table, RelocationReader(elf).of(RelocationReader(elf).indexes[0])):
        assert np.shares_memory(table, data)
        assert not table.flags.writeable


@pytest.mark.parametrize(
    ("machine", "bits"),
    [(3, 32), (20, 32), (21, 64), (22, 64), (40, 32), (62, 64), (183, 64), (243, 64), (258, 64)],
)
def test_every_relocation_name_is_llvm_readobjs(machine: int, bits: int) -> None:
    most = 256 if bits == 32 else 1200
    path = scratch() / f"names{machine}.o"
    path.write_bytes(one_of_each(machine, bits, most))
    elf = read(path)
    entries = RelocationReader(elf).all.entries
    assert entries["r_type"].tolist() == list(range(most))
    names = relocation_types(machine)
    for version in LLVMS:
        for kind, (_, _, name, _, _) in enumerate(wanted_relocations(path, version)):
            # ILP32 relocations of aarch64, vendors' of riscv, and what an older LLVM called otherwise or not.
            known = (
                name != "Unknown"
                and "_P32_" not in str(name)
                and not (machine == 243 and (kind >= 192 or version == 14))
            )
            assert not known or names[kind] == name
    assert relocation_name(machine, 0xFFFF) == f"type 65535 of machine {machine}"


def one_of_each(machine: int, bits: int, most: int) -> bytes:
    """An object with one relocation of each type below ``most``."""
    is64 = bits == 64
    names = b"\0.text\0.rel\0.symtab\0.strtab\0"
    table = b"".join(
        struct.pack("<QQq", 0, kind, 0) if is64 else struct.pack("<II", 0, kind) for kind in range(most)
    )
    entry, symbol = (24, 24) if is64 else (8, 16)
    begin = 64 if is64 else 52
    parts = [bytes(64), table, bytes(symbol), names]
    offsets = [begin + sum(map(len, parts[:n])) for n in range(4)]
    rows = [
        (0,) * 10,
        (1, 1, 6, 0, offsets[0], 64, 0, 0, 4, 0),
        (7, 4 if is64 else 9, 0, 0, offsets[1], len(table), 3, 1, 8, entry),
        (12, 2, 0, 0, offsets[2], symbol, 4, 1, 8, symbol),
        (20, 3, 0, 0, offsets[3], len(names), 0, 0, 1, 0),
    ]
    head = b"\x7fELF" + bytes([2 if is64 else 1, 1, 1]) + bytes(9)
    sizes = (64, 0, 0, 64) if is64 else (52, 0, 0, 40)
    shoff = begin + sum(map(len, parts))
    head += struct.pack("<HHIQQQI6H" if is64 else "<HHIIIII6H", 1, machine, 1, 0, 0, shoff, 0, *sizes, 5, 4)
    return (
        head + b"".join(parts) + b"".join(struct.pack("<2I4Q2I2Q" if is64 else "<10I", *row) for row in rows)
    )


def patched(**fields: int) -> bytes:
    """An object of one section of relocations with values of section headers replaced: ``s1_size=8``."""
    data = bytearray(one_of_each(62, 64, 4))
    shoff = struct.unpack_from("<Q", data, 40)[0]
    places = {
        "name": 0,
        "type": 4,
        "flags": 8,
        "addr": 16,
        "offset": 24,
        "size": 32,
        "link": 40,
        "info": 44,
        "entsize": 56,
    }
    for key, value in fields.items():
        section, _, field = key.removeprefix("s").partition("_")
        wide = field in ("flags", "addr", "offset", "size", "entsize")
        struct.pack_into("<Q" if wide else "<I", data, shoff + 64 * int(section) + places[field], value)
    return bytes(data)


def use_all(elf: Elf) -> None:
    assert elf.section_names
    for table in elf.symbol_tables:
        assert len(table.names) == len(table.section)
    assert RelocationReader(elf).all
    assert list(elf.notes()) is not None


def test_errors_say_what_was_expected() -> None:
    good = one_of_each(62, 64, 4)
    use_all(Elf(good, "x"))
    cases = [
        (good[:3], "expected the magic of ELF"),
        (good[:12], "expected class 1"),
        (good[:4] + b"\x03" + good[5:], "expected class 1"),
        (good[:5] + b"\x03" + good[6:], "expected byte order"),
        (good[:60], "expected an ELF header of 64 bytes"),
        (good[:-1], "expected 5 section headers, found the end"),
        (good[:58] + b"\x20" + good[59:], "0x3a: expected section headers of 64 bytes, found 32"),
        (good[:54] + b"\x20\0\1" + good[57:], "0x36: expected program headers of 56 bytes, found 32"),
        (good[:62] + b"\x09" + good[63:], "0x3e: expected e_shstrndx below 5, found 9"),
        (patched(s2_size=71), "expected entries of 24 bytes in section 2"),
        (patched(s2_entsize=16), "sh_entsize 16"),
        (patched(s2_size=1 << 40), "expected relocations within"),
        (patched(s2_offset=1 << 40), "found the end of the file"),
        (patched(s3_link=77), "expected a section below 5, found 77"),
        (patched(s1_name=99), "expected a string at 99 of section 4"),
        (patched(s4_size=5), "expected a string"),
        (patched(s1_type=2, s1_entsize=24, s1_size=48), "expected one section of type 2"),
        (patched(s1_type=7, s1_size=8), "expected a note's header of 12 bytes, found 8"),
        (patched(s1_type=7, s1_offset=0, s1_size=40), "expected a note of"),
        (patched(s0_type=4, s0_size=480, s0_entsize=24, s1_type=4, s1_size=240, s1_entsize=24), "overlap"),
    ]
    for data, message in cases:
        with pytest.raises(MalformedObject) as caught:
            use_all(Elf(data, "x"))
        assert message in caught.value.message, caught.value.message
        assert caught.value.message.startswith("x: at offset 0x"), caught.value.message


def test_a_symbol_in_no_section() -> None:
    data = bytearray(one_of_each(62, 64, 4))
    offset = 64 + 64 + 24 * 4
    struct.pack_into("<H", data, offset + 6, 5)
    with pytest.raises(
        MalformedObject, match=r"x: at offset 0x1[0-9a-f]+: symbol 0 of section 3 lies in no section"
    ):
        use_all(Elf(bytes(data), "x"))
    struct.pack_into("<H", data, offset + 6, 0xFFFF)
    with pytest.raises(MalformedObject, match="expected a SHT_SYMTAB_SHNDX for section 3"):
        use_all(Elf(bytes(data), "x"))
