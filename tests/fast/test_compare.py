"""``klto compare`` against binutils' nm and llvm-size, and with what it must refuse."""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from objects_helpers import assembled, compiled, run, tool
from report_samples import FINDING, sample_record, write_record

from klto.cli import main
from klto.report.attribution import AMBIGUOUS, GENERATED, Definitions, directory_of
from klto.report.compare import compare
from klto.report.compare_text import lines
from klto.report.image import Image, Symbol, origin_of
from klto.report.side import open_side
from klto.report.symbols import Change, Trees, diff_symbols

_SOURCE = """
static int counter; int table[100] = {1}; const char text[] = "words"; int zero[77];
int weak_one __attribute__((weak)) = 3;
__attribute__((weak, noinline)) int weak_two(int a) { return a * 7 + counter++; }
static __attribute__((noinline)) int local(int a) { static int calls; return a / 3 + calls++; }
int __se_sys_left_out(int a) { return a + 1; }
int f(int a) { return local(a) + weak_two(a) + table[a] + zero[a] + text[a & 3]; }
"""
_PLANTED = """
.section .text.planted,"ax",@progbits
.globl planted
.type planted,@function
planted: .skip 4096, 0x90
.size planted, . - planted
"""


def _linked(folder: Path, *objects: Path) -> Path:
    out = folder / "linked.o"
    run(tool("ld.lld", 19), "-r", "-o", out, *objects)
    return out


@pytest.fixture(scope="module")
def image() -> Path:
    return compiled(_SOURCE, 19, "--target=x86_64-linux-gnu", "-O1", "-ffunction-sections")


def test_sections_and_totals_are_those_of_llvm_size(image: Path) -> None:
    found = Image(image)
    text, data, bss = run(tool("llvm-size", 19), image).splitlines()[1].split()[:3]
    assert (found.berkeley.text, found.berkeley.data, found.berkeley.bss) == (int(text), int(data), int(bss))
    listed: dict[str, int] = {}
    for line in run(tool("llvm-size", 19), "-A", image).splitlines()[2:]:
        name, *rest = line.split() or [""]
        if rest and name != "Total":
            listed[name] = listed.get(name, 0) + int(rest[0])
    assert {section.name: section.bytes for section in found.sections} == listed


def test_symbols_are_those_that_nm_sorts_by_size(image: Path) -> None:
    wanted = [
        (name, int(size, 16))
        for size, letter, name in (
            line.split() for line in run(tool("nm"), "--size-sort", image).splitlines()
        )
        if letter in "tTdDbBrRvVwW" and not name.startswith("__se_sys")
    ]
    assert sorted((s.name, s.size) for s in Image(image).symbols()) == sorted(wanted)
    assert len(wanted) >= 8


def test_planted_function_is_the_only_difference(
    image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    before = _linked(tmp_path / "a", image)
    after = _linked(tmp_path / "b", image, assembled(_PLANTED, 19, "x86_64-linux-gnu"))
    diff = diff_symbols(Image(before), Image(after))
    assert [(c.name, c.delta, c.change) for c in diff.changes] == [("planted", 4096, Change.NEW)]
    assert main(["compare", "--json", str(before), str(after)]) == 0
    pair = json.loads(capsys.readouterr().out)["pairs"][0]["symbols"]
    assert [c["name"] for c in pair["changes"]] == ["planted"]
    assert (pair["up"], pair["down"], pair["after"] - pair["before"]) == (4096, 0, 4096)
    assert main(["compare", str(before), str(after)]) == 0
    assert re.search(
        r"Symbols, A -> B\n +add/remove: 1/0 .*\n.*\n\n +new: 1 +A +B +B-A\n +planted +- +4096 +\+4096",
        capsys.readouterr().out,
    )


def test_promoted_and_numbered_names_are_matched_to_their_origin() -> None:
    old = "".join(
        f".type {n},@object\n{n}: .skip {s}\n.size {n}, {s}\n" for n, s in (("foo", 10), ("bar.3", 20))
    )
    new = old.replace("foo", "foo.llvm.1234567").replace("bar.3", "bar.llvm.9.12").replace("20", "24")
    images = [Image(assembled(".data\n" + text, 19, "x86_64-linux-gnu")) for text in (old, new)]
    assert [(c.name, c.delta, c.change) for c in diff_symbols(*images).changes] == [("bar", 4, Change.GROWN)]
    assert origin_of("foo.llvm.12") == origin_of("foo.5") == origin_of("foo.specialized.3.llvm.12") == "foo"
    assert origin_of("foo.cold") == "foo.cold"


def test_inlined_is_told_from_removed(tmp_path: Path) -> None:
    names = ("linked_away", "compiled_away", "patched_out", "macro_made", "old_file")
    text = "".join(f".type {n},@function\n{n}: .skip 8\n.size {n}, 8\n" for n in names)
    first = Image(assembled(text, 19, "x86_64-linux-gnu"))
    second = Image(assembled("nop", 19, "x86_64-linux-gnu"))
    before, after = Definitions(), Definitions()
    before.add("kernel/a.o", names[:4])
    before.add("kernel/b.o", names[4:])
    after.add("kernel/a.o", ["linked_away.llvm.5"])
    for tree, content in (("old", "compiled_away patched_out"), ("new", "compiled_away")):
        (tmp_path / tree / "kernel").mkdir(parents=True)
        (tmp_path / tree / "kernel/a.c").write_text(content)
    trees = Trees(tmp_path / "old", tmp_path / "new")
    diff = diff_symbols(first, second, before, after, trees)
    assert {c.name: c.change for c in diff.changes} == {
        "linked_away": Change.INLINED,
        "compiled_away": Change.COMPILED_AWAY,
        "patched_out": Change.REMOVED,
        "macro_made": Change.GONE,
        "old_file": Change.UNLINKED,
    }
    (tmp_path / "old/kernel/b.c").write_text("old_file")
    changes = {c.name: c.change for c in diff_symbols(first, second, before, after, trees).changes}
    assert changes["old_file"] is Change.REMOVED
    # In one tree a file that is older than the first build is the file that it compiled.
    os.utime(tmp_path / "new/kernel/a.c", (100, 100))
    same = Trees(tmp_path / "new", tmp_path / "new", began=200.0)
    changes = {c.name: c.change for c in diff_symbols(first, second, before, after, same).changes}
    assert changes["macro_made"] is Change.COMPILED_AWAY


def test_symbols_are_attributed_to_objects() -> None:
    found = Definitions()
    found.add("mm/slab.o", ["kmalloc", "init"])
    found.add("fs/inode.o", ["iget", "init"])
    found.add("fs/super.o", ["fill"])
    found.add("fs/dcache.o", ["fill"])

    def of(name: str, file: str | None = None) -> str:
        return found.object_of(Symbol(name, 1, "text", file, file is not None))

    assert of("kmalloc.llvm.3") == of("__cfi_kmalloc") == "mm/slab.o"
    assert of("init", "inode.c") == "fs/inode.o"
    assert of("init", "ld-temp.o") == AMBIGUOUS
    assert of("fill") == f"fs/{AMBIGUOUS}"
    assert of("kallsyms_names") == GENERATED
    assert directory_of("fs/ext4/deep/inode.o") == "fs/ext4"
    assert directory_of(GENERATED) == GENERATED


@pytest.fixture
def builds(tmp_path: Path) -> Callable[..., Path]:
    """Build dirs with records only."""

    def make(name: str, **fields: object) -> Path:
        return write_record(tmp_path / name, sample_record(30, **fields))

    return make


def test_records_without_images_are_compared_by_what_they_have(
    builds: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    record = sample_record(60, findings=[])
    first, second = builds("a"), write_record(builds("c").parent / "b", record)
    assert main(["compare", str(first / ".klto/record.json"), str(second), "--format", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    figures = {row["name"]: row["values"] for row in found["figures"]}
    assert figures["peak memory"] == [210 << 20, 210 << 20]
    assert figures["bitcode modules"] == [30, 60]
    assert figures["text"] == [None, None]
    assert figures["functions imported"] == [None, None]
    assert found["pairs"][0]["symbols"] is None
    assert found["pairs"][0]["findings"] == [
        {"rule": FINDING["rule"], "message": FINDING["message"], "appeared": False}
    ]
    assert {row["name"] for row in found["directories"]} >= {"mm", "fs/ext4"}
    assert all("vmlinux is gone" in side["notes"][0] for side in found["sides"])


def test_markdown_is_fit_for_a_mail(tmp_path: Path) -> None:
    names = ("a" * 90, "b" * 90, "c" * 90)
    sides = [
        open_side(write_record(tmp_path / name, sample_record(20 + 7 * i))) for i, name in enumerate(names)
    ]
    text = list(lines(compare(sides), markdown=True, top=0))
    assert max(map(len, text)) <= 75
    assert all(line.isascii() for line in text)
    tables = [line for line in text if line.startswith("|")]
    assert len(tables) > 20
    assert all(line.count("|") == 7 for line in tables)


def test_findings_are_the_same_when_only_a_promoted_name_differs(tmp_path: Path) -> None:
    findings = [
        {**FINDING, "symbol": f"foo.llvm.{number}", "artifact": f"/{number}/vmlinux.o"} for number in (1, 2)
    ]
    sides = [
        open_side(write_record(tmp_path / f["symbol"], sample_record(3, findings=[f]))) for f in findings
    ]
    assert compare(sides).pairs[0].findings == ()


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ("a", "nowhere", r"nowhere: no such file"),
        ("a", "empty", r"empty is no build dir"),
        ("a", "damaged", r"damaged/\.klto/record\.json is no klto record"),
        ("a", "later", r"has schema 'klto/record/9'"),
        ("a", "killed", r"the build in \S*killed was killed before its end"),
        ("a", "arm", r"cannot compare \S*a \(x86_64\) with \S*arm \(arm64\)"),
        ("a", "text", r"text is no klto record"),
    ],
)
def test_bad_input_is_one_line(
    tmp_path: Path, first: str, second: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_record(tmp_path / "a", sample_record(3))
    write_record(tmp_path / "arm", sample_record(3, arch="arm64"))
    write_record(tmp_path / "killed", sample_record(3, status="running"))
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").write_text("hello\n")
    for name, text in (("damaged", '{"schema": "klto/rec'), ("later", None)):
        folder = write_record(
            tmp_path / name, msgspec.structs.replace(sample_record(3), schema="klto/record/9")
        )
        if text is not None:
            (folder / ".klto/record.json").write_text(text)
    for command in (["compare"], ["report", "-o", str(tmp_path / "out.html")]):
        assert main([*command, str(tmp_path / first), str(tmp_path / second)]) == 2
        error = capsys.readouterr().err
        assert re.match(rf"klto: .*{message}", error), error
        assert len(error.splitlines()) <= 2
        assert not (tmp_path / "out.html").exists()


def test_running_build_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build = write_record(tmp_path / "b", sample_record(3, status="running"))
    with (build / ".klto/lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert main(["report", "-b", str(build), "-o", str(tmp_path / "x")]) == 2
    assert "is being built now (process 1)" in capsys.readouterr().err


def test_one_build_is_not_enough(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(write_record(tmp_path / "b", sample_record(3)))]) == 2
    assert "nothing to compare with" in capsys.readouterr().err


def test_a_stripped_image_says_so(image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tool("llvm-strip"), image, "-o", tmp_path / "stripped")
    assert main(["compare", str(image), str(tmp_path / "stripped")]) == 0
    out = capsys.readouterr().out
    assert out.count("note: its image is stripped: symbols not known") == 1
    assert "Symbols" not in out


def test_images_of_different_machines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x86, arm = (assembled("nop", 19, target) for target in ("x86_64-linux-gnu", "aarch64-linux-gnu"))
    assert main(["compare", str(x86), str(arm)]) == 2
    assert "(x86_64) with" in capsys.readouterr().err
    bitcode = compiled("int a;", 19, "-flto")
    assert main(["compare", str(x86), str(bitcode)]) == 2
    assert "object.o" in capsys.readouterr().err
