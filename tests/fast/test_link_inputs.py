"""Inputs that no linker can take, and clocks that go back: the linker's own answer, and never a stale link."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from klto.link import includes
from klto.link.includes import Scan, may_include
from tests.fast.test_link_cache import SOURCES, Project


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path, 19)


def _truncated(folder: Path) -> None:
    path = folder / "plain1.o"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _neither(folder: Path) -> None:
    (folder / "plain1.o").write_text("int plain1;\n")


def _newer(folder: Path) -> None:
    command = ["clang-22", "-O2", "-flto=thin", "-fsplit-lto-unit", "-c", "plain1.c"]
    subprocess.run(command, cwd=folder, check=True)


def _missing(folder: Path) -> None:
    (folder / "plain1.o").unlink()


@pytest.mark.parametrize("llvm", [14, 19, 22])
@pytest.mark.parametrize("spoil", [_truncated, _neither, _newer, _missing])
def test_what_the_linker_refuses(tmp_path: Path, spoil: Callable[[Path], None], llvm: int) -> None:
    """Its words and status, the file's name, nothing linked; what was right before is still in the cache."""
    if spoil is _newer and llvm == 22:
        pytest.skip("there is no newer LLVM here")
    project = Project(tmp_path, llvm)
    project.expect(5)
    (tmp_path / "out.o").unlink()
    good = (tmp_path / "plain1.o").read_bytes()
    spoil(tmp_path)
    arguments = project.command()
    plain = subprocess.run(arguments[4:], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert plain.returncode == 1
    env = project.environment(project.cache)
    done = subprocess.run(arguments, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert plain.stderr.splitlines()[0] in done.stderr
    assert "plain1.o" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out.o").exists()
    (tmp_path / "plain1.o").write_bytes(good)
    project.expect(0)


def test_source_changed_while_the_clock_was_set_back(project: Project) -> None:
    project.expect(5)
    project.compile("plain2", "int plain2(int x) { return x + 77; }\n")
    os.utime(project.folder / "plain2.o", (1000, 1000))
    project.expect(2)


def test_included_file_changed_with_its_old_time(project: Project) -> None:
    project.expect(5)
    before = (project.folder / "data.bin").stat()
    (project.folder / "data.bin").write_text("other data")
    os.utime(project.folder / "data.bin", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (project.folder / "data.bin").stat().st_size == before.st_size
    project.expect(2)


def test_object_that_includes_another_file_with_size_inode_and_time_as_before(project: Project) -> None:
    (project.folder / "dat2.bin").write_text("other data")
    project.expect(5)
    path = project.folder / "asm_in_function.o"
    before = path.stat()
    content = path.read_bytes()
    project.compile("asm_in_function", SOURCES["asm_in_function"].replace("data.bin", "dat2.bin"))
    changed = path.read_bytes()
    assert len(changed) == len(content)
    path.write_bytes(changed)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    project.expect(2)
    (project.folder / "dat2.bin").write_text("third data")
    project.expect(2)


@pytest.mark.parametrize("boot", ["another-boot", ""])
def test_entry_of_an_earlier_boot_is_read_before_it_is_used(project: Project, boot: str) -> None:
    """After a power loss a file may have the stamps that the index knows, and other content."""
    project.expect(5)
    (index,) = project.cache.glob("partitions/*/index")
    lines = {line.split()[0]: line.split() for line in index.read_text().splitlines() if line}
    torn = project.entries()[0]
    torn.write_bytes(bytes(torn.stat().st_size))
    status = torn.stat()
    for fields in lines.values():
        fields[6] = boot
    lines[torn.name][3:6] = map(str, (status.st_ino, status.st_mtime_ns, status.st_ctime_ns))
    index.write_text("".join(" ".join(fields).strip() + "\n" for fields in lines.values()))
    if boot:
        assert "were damaged" in project.expect(1)
        current = [line.split()[6] for line in index.read_text().splitlines() if line]
        assert len(set(current[5:])) == 1
        assert current[-1] != boot
    else:
        project.expect(5)  # A line that says no boot is torn.
    assert project.expect(0) == ""


def _many(project: Project) -> dict[str, bool]:
    """A hundred and more modules, every third of which includes a file, and a text."""
    paths = {}
    for number in range(120):
        source = project.folder / f"{('asm_in_function', 'plain1', 'importer')[number % 3]}.o"
        copy = project.folder / f"copy{number}.o"
        copy.write_bytes(source.read_bytes())
        os.utime(copy, (1000, 1000))
        paths[str(copy)] = True
    (project.folder / "text").write_text("incbin")
    paths[str(project.folder / "text")] = False
    time.sleep(0.1)  # Younger files are not remembered.
    return paths


def _looked_at(scan: Scan, paths: dict[str, bool]) -> dict[str, tuple[str, list[str]]]:
    seen = {path: scan.look(path, bitcode=bitcode) for path, bitcode in paths.items()}
    return {path: (item.sha256, item.names) for path, item in seen.items()}


def test_two_processes_find_what_one_does(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = _many(project)
    wanted = _looked_at(Scan(str(project.folder / "one")), paths)
    assert sum(names == ["data.bin"] for _, names in wanted.values()) == 40
    scan = Scan(str(project.folder / "two"))
    read: list[bytes] = []
    monkeypatch.setattr(includes, "may_include", lambda data: read.append(data) or may_include(data))
    scan.begin(paths)
    assert read == []
    scan.finish()
    assert len(read) == 60  # The others were read by the other process.
    assert _looked_at(scan, paths) == wanted
    assert len(read) == 60
    scan.save(paths)
    read.clear()
    assert _looked_at(Scan(str(project.folder / "two")), paths) == wanted
    assert read == []


def test_other_process_that_dies_costs_time_only(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = _many(project)
    wanted = _looked_at(Scan(str(project.folder / "one")), paths)
    monkeypatch.setattr(includes, "_write_json", lambda descriptor, value: os.write(descriptor, b'[{"x'))
    scan = Scan(str(project.folder / "two"))
    scan.begin(paths)
    scan.finish()
    assert _looked_at(scan, paths) == wanted


def test_what_the_other_process_cannot_tell_is_met_again(project: Project) -> None:
    paths = _many(project)
    project.compile("unknown", 'asm(".macro m x\\n.incbin \\"\\\\x\\"\\n.endm\\nm data.bin");\n')
    paths = {str(project.folder / "unknown.o"): True, **paths}
    time.sleep(0.1)
    scan = Scan(str(project.folder / "memo"))
    scan.begin(paths)
    scan.finish()
    with pytest.raises(includes.Uncacheable):
        scan.look(str(project.folder / "unknown.o"), bitcode=True)
