"""Archives as GNU ar and llvm-ar make them, against what these tools list and extract."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from objects_helpers import LLVMS, run, tool

from klto.objects.archive import Archive, leaves, read_archive
from klto.objects.errors import MalformedObject
from klto.objects.kind import kind_of, kind_of_bytes

#: Short, exactly 15 and 16 characters, long, odd sizes, a blank, in folders, empty.
FILES = {
    "a.o": b"A",
    "exactly15chars.": b"15" * 4,
    "exactly16chars.o": b"16" * 3 + b"x",
    "a much longer name than fits.o": b"BC\xc0\xde" + b"long",
    "sub/dir/a.o": b"\x7fELFother",
    "sub/another_rather_long_name.o": b"",
}
ARS = [*(f"llvm-{version}" for version in LLVMS), "gnu"]


def ar(which: str) -> str:
    return tool("ar") if which == "gnu" else tool("llvm-ar", int(which.removeprefix("llvm-")))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, content in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return tmp_path


def listed(which: str, folder: Path) -> list[str]:
    return run(ar(which), "t", "x.a", cwd=folder).splitlines()


@pytest.mark.parametrize("which", ARS)
@pytest.mark.parametrize("flags", ["rcS", "rcSP", "rcST", "rcSTP", "qcS"])
def test_members_are_those_that_ar_lists(folder: Path, which: str, flags: str) -> None:
    run(ar(which), flags, "x.a", *FILES, cwd=folder)
    archive = read_archive(folder / "x.a")
    names = [member.name for member in archive.members]
    assert names == listed(which, folder)
    assert archive.thin == ("T" in flags)
    assert [bytes(member.data()) for member in archive.members] == list(FILES.values())
    kinds = [kind_of_bytes(content) for content in FILES.values()]
    assert [member.kind() for member in archive.members] == kinds
    assert kinds.count("other") == 4


@pytest.mark.parametrize("version", LLVMS)
@pytest.mark.parametrize("format_", ["bsd", "darwin", "gnu"])
def test_other_name_styles(folder: Path, version: int, format_: str) -> None:
    run(tool("llvm-ar", version), f"--format={format_}", "rcS", "x.a", *FILES, cwd=folder)
    archive = read_archive(folder / "x.a")
    assert [member.name for member in archive.members] == listed(f"llvm-{version}", folder)
    contents = zip(archive.members, FILES.values(), strict=True)
    # Darwin pads members to 8 bytes and counts the padding.
    assert all(bytes(member.data()).rstrip(b"\n\0") == content for member, content in contents)


@pytest.mark.parametrize("which", ARS)
@pytest.mark.parametrize("thin", [False, True])
def test_symbol_tables_are_no_members(folder: Path, which: str, thin: bool) -> None:
    (folder / "s.c").write_text("int f(void) { return 1; }")
    run(tool("clang", 19), "-c", "s.c", "-o", "s.o", cwd=folder)
    run(ar(which), "rcsT" if thin else "rcs", "x.a", "s.o", cwd=folder)
    archive = read_archive(folder / "x.a")
    assert archive.data[8:24].strip() == b"/"
    assert [member.name for member in archive.members] == ["s.o"]
    assert archive.members[0].kind() == "elf"


@pytest.mark.parametrize("which", ARS)
def test_thin_members_are_found_from_any_folder(
    folder: Path, which: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "out").mkdir()
    run(ar(which), "rcST", "out/x.a", "a.o", "sub/dir/a.o", cwd=folder)
    monkeypatch.chdir(folder / "sub")
    members = read_archive(os.path.join("..", "out", "x.a")).members
    assert [bytes(member.data()) for member in members] == [FILES["a.o"], FILES["sub/dir/a.o"]]
    assert all(member.path and Path(member.path).is_file() for member in members)


def test_nested_archives(folder: Path) -> None:
    llvm = ar("llvm-19")
    run(llvm, "rcS", "inner.a", "a.o", "sub/dir/a.o", cwd=folder)
    run(llvm, "qcS", "full.a", "inner.a", "exactly15chars.", cwd=folder)
    run(llvm, "rcST", "thin.a", "full.a", "a.o", cwd=folder)
    archive = read_archive(folder / "thin.a")
    assert [member.name for member in archive.members] == ["full.a", "a.o"]
    found = list(leaves(archive))
    assert [member.name for member in found] == ["a.o", "a.o", "exactly15chars.", "a.o"]
    assert [bytes(m.data()) for m in found] == [
        FILES[n] for n in ("a.o", "sub/dir/a.o", "exactly15chars.", "a.o")
    ]
    assert found[0].where.endswith("full.a(inner.a)(a.o)")


def test_gnu_thin_archive_of_a_full_one(folder: Path) -> None:
    """GNU ar stores "/name offset:member offset" for each member of a full archive it is given."""
    run(ar("gnu"), "rcS", "inner.a", "a.o", "exactly15chars.", cwd=folder)
    run(ar("gnu"), "qcST", "thin.a", "inner.a", "a much longer name than fits.o", cwd=folder)
    archive = read_archive(folder / "thin.a")
    inner = f"{folder}/inner.a"
    members = {member.where: (bytes(member.data()), member.kind()) for member in leaves(archive)}
    assert members == {
        f"{inner}(a.o)": (b"A", "other"),
        f"{inner}(exactly15chars.)": (FILES["exactly15chars."], "other"),
        f"{folder}/a much longer name than fits.o": (b"BC\xc0\xdelong", "bitcode"),
    }
    broken = bytes(archive.data).replace(b":8 ", b":9 ")
    with pytest.raises(MalformedObject, match=r"expected a member of .*inner\.a at its offset 9"):
        list(leaves(Archive(archive.path, broken)))


def test_thin_archive_that_holds_itself_ends(folder: Path) -> None:
    run(ar("llvm-19"), "rcST", "x.a", "a.o", "exactly15chars.", cwd=folder)
    data = (folder / "x.a").read_bytes()
    (folder / "x.a").write_bytes(data.replace(b"a.o/\n", b"x.a/\n"))
    with pytest.raises(MalformedObject, match="met again"):
        list(leaves(read_archive(folder / "x.a")))


def test_nesting_is_bounded() -> None:
    data = b"!<arch>\n"
    for _ in range(12):
        size = f"{len(data)}".encode().ljust(10)
        data = (
            b"!<arch>\n" + b"n.a/".ljust(16) + b"0".ljust(32) + size + b"`\n" + data + b"\n" * (len(data) % 2)
        )
        if len(data) < 600:
            assert list(leaves(Archive("deep.a", data))) == []
    with pytest.raises(MalformedObject, match="nested to a depth of 8"):
        list(leaves(Archive("deep.a", data)))


def header(name: bytes, size: int, end: bytes = b"`\n") -> bytes:
    return (
        name.ljust(16)
        + b"0".ljust(12)
        + b"0".ljust(6)
        + b"0".ljust(6)
        + b"644".ljust(8)
        + f"{size}".encode().ljust(10)
        + end
    )


@pytest.mark.parametrize(
    ("data", "offset", "problem"),
    [
        (b"!<arch>", 0, "magic"),
        (b"!<arch>\n" + b"x" * 59, 8, "member header"),
        (b"!<arch>\n" + header(b"a.o/", 3, b"xx") + b"abc", 8 + 58, "end a header"),
        (b"!<arch>\n" + header(b"a.o/", 4) + b"abc", 8 + 48, "4 bytes of content, found 3"),
        (b"!<arch>\n" + header(b"a.o/", 3).replace(b"3 ", b"-3") + b"abc", 8 + 48, "decimal"),
        (b"!<arch>\n" + header(b"/0", 0), 8, "table of long names"),
        (b"!<arch>\n" + header(b"//", 5) + b"abc/\n\n" + header(b"/9", 0), 8 + 66, "long name at 9"),
        (b"!<arch>\n" + header(b"//", 5) + b"abc/\n\n" + header(b"/1", 0), 8 + 66, "long name at 1"),
        (b"!<arch>\n" + header(b"//", 5) + b"abc\n\n\n" + header(b"/0", 0), 8 + 66, "ended by"),
        (b"!<arch>\n" + header(b"//", 5) + b"abc/\n\n" + header(b"/0:8", 0), 8 + 66, "of thin archives"),
        (b"!<arch>\n" + header(b"//", 5) + b"a\0c/\n\n" + header(b"/0", 0), 8 + 66, "expected a file name"),
        (b"!<arch>\n" + header(b"//", 2) + b"/\n" + header(b"/0", 0), 8 + 62, "expected a file name"),
        (b"!<arch>\n" + header(b"//", 2) + b"a/" + header(b"/0", 0), 8 + 62, "ended by"),
        (b"!<arch>\n" + header(b"a\0b/", 0), 8, "expected a name"),
        (b"!<arch>\n" + header(b"/x", 0), 8, "decimal"),
        (b"!<arch>\n" + header(b"#1/9", 4) + b"abcd", 8, "name of 9 bytes"),
        (b"!<arch>\n" + header(b"", 0), 8, "expected a name"),
        (b"!<thin>\n" + header(b"//", 50) + b"abc/\n\n", 8 + 48, "50 bytes of content"),
    ],
)
def test_errors_say_where(data: bytes, offset: int, problem: str) -> None:
    with pytest.raises(MalformedObject) as caught:
        Archive("bad.a", data)
    assert caught.value.message.startswith(f"bad.a: at offset {offset:#x}: expected")
    assert problem in caught.value.message


def test_missing_thin_member_is_named(folder: Path) -> None:
    run(ar("llvm-19"), "rcST", "x.a", "sub/dir/a.o", cwd=folder)
    (folder / "sub/dir/a.o").unlink()
    member = read_archive(folder / "x.a").members[0]
    for read in (member.data, member.kind):
        wanted = (
            r"x\.a: at offset 0x\w+: expected a member at .*sub/dir/a\.o, which cannot be read: No such file"
        )
        with pytest.raises(MalformedObject, match=wanted) as caught:
            read()
        assert "a thin archive has paths only" in (caught.value.hint or "")


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert kind_of(tmp_path / "pipe") == "other"
    for path in (tmp_path / "pipe", tmp_path):
        with pytest.raises(MalformedObject, match="not a regular file"):
            read_archive(path)
    with pytest.raises(MalformedObject, match="Is a directory"):
        kind_of(tmp_path)


def test_large_archives_are_mapped(tmp_path: Path) -> None:
    content = os.urandom(1 << 20) + b"x"
    (tmp_path / "big.o").write_bytes(content)
    run(ar("llvm-19"), "rcS", "x.a", "big.o", "big.o", cwd=tmp_path)
    member = read_archive(tmp_path / "x.a").members[0]
    assert isinstance(member.data(), memoryview)
    assert member.data() == content


def test_kinds() -> None:
    assert kind_of_bytes(b"\xde\xc0\x17\x0b") == "bitcode"
    assert kind_of_bytes(b"BC\xc0\xde") == "bitcode"
    assert kind_of_bytes(b"BC\xc0\xdd") == kind_of_bytes(b"") == kind_of_bytes(b"!<arch>") == "other"


def test_a_linker_shim_can_afford_it() -> None:
    """Importing and using it loads none of the interpreter's slow modules."""
    source = str(Path(__file__).parents[2] / "src")
    slow = "typing re enum dataclasses numpy pathlib collections functools struct argparse msgspec"
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import klto.objects.archive, klto.objects.kind;"
        f"print(*sorted(set({slow!r}.split()) & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code, source], capture_output=True, check=True, text=True
    )
    assert done.stdout.strip() == ""
