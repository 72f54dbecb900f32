"""Every object of the three test kernels against LLVM's own tools: all symbols, relocations, modules."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import bitcode_oracle
import elf_oracle
import pytest
from objects_helpers import run, tool

from klto.objects.archive import read_archive
from klto.objects.bitcode import Bitcode
from klto.objects.elf import Elf
from klto.objects.kind import kind_of
from klto.objects.source import read_whole

pytestmark = pytest.mark.real

KERNELS = ("x86_64_6_12", "arm64_6_12", "x86_64_6_1")
#: Objects handed to one call of a tool.
BATCH = 200


@pytest.fixture(params=KERNELS)
def build_dir(request: pytest.FixtureRequest) -> Path:
    kernel = request.getfixturevalue(request.param)
    folder: Path = kernel.build_dir
    return folder


def version_of(build_dir: Path) -> int:
    """The LLVM that built it (CONFIG_CLANG_VERSION: major * 10000 + ...)."""
    match = re.search(r"^CONFIG_CLANG_VERSION=(\d+)$", (build_dir / ".config").read_text(), re.MULTILINE)
    assert match
    return int(match[1]) // 10000


def of_kind(build_dir: Path, kind: str, *patterns: str) -> list[Path]:
    found = sorted({path for pattern in patterns for path in build_dir.rglob(pattern) if path.is_file()})
    return [path for path in found if kind_of(path) == kind]


def batches(paths: list[Path]) -> Iterator[list[Path]]:
    for begin in range(0, len(paths), BATCH):
        yield paths[begin : begin + BATCH]


def nm_of_all(paths: list[Path], version: int, build_dir: Path) -> dict[str, list[tuple[str, str]]]:
    """llvm-nm of many objects at once, in the folder that the kernel's assembly includes files from."""
    found: dict[str, list[tuple[str, str]]] = {}
    for batch in batches(paths):
        # The file that is no object makes sure of headers, and nm's status says so.
        text = run(tool("llvm-nm", version), *batch, "/dev/null", cwd=build_dir, ok=False)
        current: list[tuple[str, str]] = []
        for line in text.splitlines():
            if line.endswith(":") and line.startswith("/"):
                current = found.setdefault(line[:-1], [])
            elif match := re.fullmatch(r"(?:[0-9a-f]+|-+| +) (.) (.*)", line):
                current.append((match[1], match[2]))
    return found


def test_symbols_of_every_bitcode_object(build_dir: Path) -> None:
    version = version_of(build_dir)
    paths = of_kind(build_dir, "bitcode", "*.o")
    wanted = nm_of_all(paths, version, build_dir)
    count = 0
    for path in paths:
        bitcode = Bitcode(read_whole(path), str(path))
        found = bitcode_oracle.letters(bitcode)
        assert bitcode.symbol_table_problem == "", path
        assert Counter(found) == Counter(wanted.get(str(path), [])), path
        count += len(found)
    assert len(paths) > 700
    assert count > 40_000


def in_threads(function: object, paths: Iterable[Path]) -> list[object]:
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(function, paths))  # type: ignore[arg-type]


def test_text_and_records_of_every_bitcode_object(build_dir: Path) -> None:
    version = version_of(build_dir)
    paths = of_kind(build_dir, "bitcode", "*.o")

    def wanted(path: Path) -> dict[str, object]:
        whole = bitcode_oracle.wanted_of_text(path, version)
        return whole | bitcode_oracle.wanted_of_records(path, version)

    inline = 0
    for path, expected in zip(paths, in_threads(wanted, paths), strict=True):
        (module,) = Bitcode(read_whole(path), str(path)).modules
        found = bitcode_oracle.of_text(module)
        assert found | bitcode_oracle.of_records(module) == expected, path
        assert module.properties.hash, path
        inline += len(list(module.inline_asm()))
    assert inline > 5000


def test_every_table_of_every_elf_object(build_dir: Path) -> None:
    version = version_of(build_dir)
    paths = of_kind(build_dir, "elf", "*.o", "*.ko", "vmlinux", "*.so", "*.so.dbg", "*.ro")
    assert {"vmlinux", "vmlinux.o"} <= {path.name for path in paths}

    def wanted(path: Path) -> tuple[object, ...]:
        tables = (elf_oracle.wanted_sections, elf_oracle.wanted_symbols, elf_oracle.wanted_relocations)
        return tuple(table(path, version) for table in tables)

    count = 0
    for path in paths:
        elf = Elf(read_whole(path), str(path))
        found = (elf_oracle.sections(elf), elf_oracle.symbols(elf), elf_oracle.relocations(elf))
        assert found == wanted(path), path
        count += len(found[2])
    assert count > 150_000


def test_letters_of_every_elf_object(build_dir: Path) -> None:
    version = version_of(build_dir)
    paths = of_kind(build_dir, "elf", "*.o", "*.ko", "vmlinux")
    wanted = nm_of_all(paths, version, build_dir)
    for path in paths:
        # Nameless symbols: some versions print them, some do not.
        assert elf_oracle.letters(path) == sorted(e for e in wanted.get(str(path), []) if e[1]), path


def test_members_of_every_archive(build_dir: Path) -> None:
    version = version_of(build_dir)
    paths = [path for path in build_dir.rglob("*.a") if path.is_file()]
    assert any(path.name == "vmlinux.a" for path in paths)
    for path in paths:
        wanted = run(tool("llvm-ar", version), "t", path.name, cwd=path.parent).splitlines()
        archive = read_archive(path)
        assert [member.name for member in archive.members] == wanted, path
        if archive.thin:
            assert all(Path(member.path or "").is_file() for member in archive.members), path
