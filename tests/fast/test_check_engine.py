"""What the checks stand on: names in tables, the scan for words, names in bitcode, the second process."""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path

import numpy as np
import pytest
from check_helpers import THIN, X86, asm, build_dir, c, linked, of_build, put
from hypothesis import given
from hypothesis import strategies as st

from klto.check.aside import Aside
from klto.check.build_dir import BuildDir
from klto.check.ir_symbols import IrSymbols
from klto.check.link_inputs import LinkInputs
from klto.check.run import check_build, check_link, check_paths
from klto.check.saved import read_saved
from klto.errors import KltoError, UsageError
from klto.objects.assembly_bits import may_hold, written_bits
from klto.objects.assembly_scan import WordScan
from klto.objects.bitcode import Bitcode
from klto.objects.elf import Elf
from klto.objects.elf_names import NameColumn
from klto.objects.errors import MalformedObject
from klto.objects.kind import kind_of_bytes
from tests.fuzz.corpus import seeds
from tests.fuzz.mutations import mutated

NAMES = st.lists(st.text("ab.\u00e9", max_size=12), max_size=20)


@given(
    NAMES, st.booleans(), st.lists(st.text("ab.\u00e9\0", min_size=1, max_size=12), min_size=1, max_size=3)
)
def test_names_are_found_as_in_a_list(names: list[str], shared: bool, words: list[str]) -> None:
    """Whether or not names share their ends, as string tables may have it."""
    table, offsets = b"\0", []
    for name in sorted(names, key=len, reverse=True):
        text = name.encode() + b"\0"
        at = table.find(text) if shared else -1
        offsets.append(len(table) if at < 0 else at)
        table += text if at < 0 else b""
    names = sorted(names, key=len, reverse=True)
    column = NameColumn(table, np.array(offsets, np.uint32))
    assert [column[i] for i in range(len(column))] == column.at(np.arange(len(column))) == names
    # With a NUL in it a prefix says how the name ends, or what stands behind it.
    assert column.starting(*words).tolist() == [
        table[offset:].startswith(tuple(word.encode() for word in words)) for offset in offsets
    ]
    plain = [word.replace("\0", "") or "a" for word in words]
    assert column.equal(*plain).tolist() == [name in plain for name in names]
    for word in plain:
        assert column.holding(word) == [i for i, name in enumerate(names) if word in name]


def test_long_names_are_told_apart() -> None:
    table = b"\0.init.text\0.init.tex\0.init.textures\0.init.data\0"
    column = NameColumn(table, np.array([1, 12, 22, 37], np.uint32))
    assert column.starting(".init.text").tolist() == [True, False, True, False]
    assert column.equal(".init.text", ".init.data").tolist() == [True, False, False, True]
    assert column.starting(".init.data").tolist() == [False, False, False, True]
    assert column[3] == ".init.data"
    assert NameColumn(b"\0a\0data", np.array([1], np.uint32)).holding("data") == []
    with pytest.raises(MalformedObject, match="shared"):
        NameColumn(b"\0" + b"x" * 99 + b"\0", np.ones(9, np.uint32), "x.o").at(np.arange(9))
    long = "x" * 1000
    assert NameColumn(f"\0{long}\0".encode(), np.array([1, 990], np.uint32))[0] == long


@given(st.integers(0, 400), st.integers(0, 2**32), st.booleans())
def test_word_scan_finds_a_word_at_any_bit(at: int, seed: int, there: bool) -> None:
    noise = random.Random(seed).getrandbits(800)
    if there:
        mask = (1 << 72) - 1
        noise = noise & ~(mask << at) | written_bits(b"incbin") << at
    data = noise.to_bytes(100, "little")
    scan = WordScan(b"incbin")
    assert scan.may_hold(data) or not there
    assert not scan.may_hold(data) or may_hold(data, b"incbin")
    # Many places that begin like it.
    assert scan.may_hold(data * 300) == scan.may_hold(data + data)


def test_word_scan_rules_out_what_is_not_there() -> None:
    assert not WordScan(b"incbin").may_hold(bytes(1000))
    for word in (b"short", b""):
        with pytest.raises(ValueError, match="too short"):
            WordScan(word)


SOURCE = (
    'int {n}_global; static int {n}_local; int *{n}(void) {{ return &{n}_local; }} asm(".set {n}_set, 1");'
)


def test_names_in_bitcode() -> None:
    """As the readers have them one by one."""
    paths = [c(SOURCE.format(n=n) + "int both, z;", X86, *THIN, "-fcommon") for n in ("one", "two", "three")]
    found, global_names, local_names = IrSymbols(), dict[str, int](), dict[str, int]()
    for number, path in enumerate(paths):
        read = Bitcode(path.read_bytes(), "x")
        assert read.symbol_table is not None
        if number == 1:
            found.add_records(read)
        else:
            found.add(read.symbol_table, "x")
        for symbol in read.symbols():
            if symbol.defined and not symbol.format_specific:
                (global_names if symbol.is_global else local_names).setdefault(symbol.name, number)
    assert found.defined == global_names
    assert found.local == local_names
    assert found.defined["both"] == 0
    assert {"one_set", "three_set"} <= set(found.of_asm)
    names = {*global_names, *local_names, "nothing", "n", ""}
    assert found.defines(names, globally=True) == set(global_names)
    assert found.defines(names, globally=False) == set(local_names)


def test_a_name_outside_of_its_strings_is_one_finding(tmp_path: Path) -> None:
    data = bytearray(c("int f(void) { return 1; }", X86, *THIN).read_bytes())
    table = Bitcode(bytes(data), "x").symbol_table
    assert table is not None
    symbols = bytes(table.raw()[0])
    at = data.index(symbols)
    data[at : at + 4] = b"\xff\xff\xff\x7f"
    (tmp_path / "broken.o").write_bytes(data)
    native = asm(".globl g\ng: call f\n")
    found = check_link(LinkInputs("vmlinux.o", [str(tmp_path / "broken.o"), str(native)], lto="thin"))
    assert [f.artifact for f in found if f.rule == "malformed"] == [str(tmp_path / "broken.o")]


def test_a_broken_module_hides_nothing_else(tmp_path: Path) -> None:
    """It is one finding, and the others are checked without it."""
    for name, flags in (("a", ("--target=aarch64-linux-gnu",)), ("b", (X86,)), ("d", (X86,))):
        put(c("int f(void) { return 1; }", *flags, *THIN), tmp_path / f"{name}.o")
    (tmp_path / "e.o").write_bytes((tmp_path / "b.o").read_bytes()[:200])
    inputs = [tmp_path / f"{name}.o" for name in "abde"]
    found = check_build(BuildDir(build_dir(tmp_path, inputs=inputs)))
    assert [f.artifact for f in found if f.rule == "malformed"] == ["e.o"]
    assert "1 module for aarch64" in next(f.message for f in found if f.rule == "lost-codegen-option")


def test_a_second_process_finds_the_same(tmp_path: Path) -> None:
    root = build_dir(tmp_path, inputs=[put(c("int f(void) { return 1; }", X86, *THIN), tmp_path / "a.o")])
    text = "__attribute__((noinline)) int f(int x) { return x; } int g(int x) { return f(x) + 1; }"
    linked(tmp_path / "arch/x86/purgatory/purgatory.ro", c(text, X86, *THIN))
    found = check_build(BuildDir(root), aside=True)
    assert {"split-text", "lto-lost"} <= {f.rule for f in found}
    assert found == check_build(BuildDir(root))


def test_work_aside() -> None:
    """What has failed or was killed there is done, or fails, here."""
    here = os.getpid()
    with Aside(os.getpid) as other:
        assert other.result() != here

    def kill() -> int:
        if os.getpid() != here:
            os.kill(os.getpid(), signal.SIGKILL)
        return here

    with Aside(kill) as other:
        assert other.result() == here

    def fail() -> None:
        raise UsageError("as it is")

    with Aside(fail) as failing, pytest.raises(UsageError, match="as it is"):
        failing.result()
    with pytest.raises(KeyError), Aside(signal.pause):
        raise KeyError
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, 0)


def test_saved_command_and_source_of_a_long_file(tmp_path: Path) -> None:
    """The source stands behind a command of any length; the dependencies are not read."""
    for length in (10, 8150, 8192, 20_000):
        flags = "x" * length
        (tmp_path / ".a.o.cmd").write_text(
            f"savedcmd_a.o := clang -D{flags} -c -o a.o a.c ; other\n\nsource_a.o := /linux/a.c\n\n"
            "deps_a.o := \\\n  " + "include/x.h \\\n  " * 10_000 + "\n\na.o: $(deps_a.o)\n\n$(deps_a.o):\n"
        )
        command = read_saved(str(tmp_path / "a.o"))
        assert command is not None
        assert command.source == "/linux/a.c"
        assert command.compile == f"clang -D{flags} -c -o a.o a.c"
        assert command.compile == command.steps[0]
        assert len(command.text) < 100
    assert read_saved(str(tmp_path / "b.o")) is None


def test_unreadable_artifact_is_one_finding(tmp_path: Path) -> None:
    root = build_dir(tmp_path)
    (root / "vmlinux").write_bytes(b"\x7fELF" + bytes(20))
    found = check_build(BuildDir(root))
    assert [(f.rule, f.artifact) for f in found] == [("malformed", "vmlinux")]
    assert of_build("initcall-order", root)[0].rule == "malformed"


#: Places whose files the rules look at most closely.
PLACES = (
    "vmlinux.o", "vmlinux", "a.ko", "a.o", "arch/x86/purgatory/purgatory.ro", "arch/arm64/kernel/pi/a.pi.o",
    "arch/arm64/kvm/hyp/nvhe/kvm_nvhe.o", "arch/x86/boot/compressed/a.o", "arch/x86/realmode/rm/realmode.elf",
    "drivers/firmware/efi/libstub/a.stub.o", "arch/x86/entry/vdso/vdso64.so.dbg", "lib.a",
)  # fmt: skip


@pytest.mark.slow
def test_damaged_files_are_findings_or_errors(tmp_path: Path) -> None:
    """Whatever is in a file, and whatever it is for: no rule fails over it."""
    corpus = [data for data in seeds(llvms=(19,)) if kind_of_bytes(data) != "thin-archive"]
    for number in range(2500):
        rng = random.Random(number)
        data = mutated(rng.choice(corpus), corpus, rng)
        path = tmp_path / rng.choice(PLACES)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        try:
            check_paths([str(path)])
            check_link(LinkInputs("vmlinux.o", [str(path)], lto=rng.choice(("thin", "full"))))
        except KltoError:
            pass
        except Exception as error:
            raise AssertionError(f"input {number} as {path.name}") from error


def test_relocations_of_no_section_are_one_finding(tmp_path: Path) -> None:
    path = put(asm("nop\ncall f\n"), tmp_path / "vmlinux.o")
    elf = Elf(path.read_bytes(), "x")
    place = elf.header.place(elf.section_names.index(".rela.text"))
    data = bytearray(path.read_bytes())
    data[place + 44 : place + 48] = b"\xff\xff\xff\x7f"  # sh_info
    path.write_bytes(data)
    [found] = check_paths([str(path)])
    assert found.rule == "malformed"
    assert "there is none" in found.message
