"""A link of which nothing has changed is taken as a whole; one of which anything has is not."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from klto.events import LinkFinished, read_journal
from klto.link.includes import Scan
from klto.link.inputs import read_inputs
from klto.link.request import parse_request
from klto.link.whole import Whole
from tests.fast.test_link_cache import SOURCES, Project


class Wholes(Project):
    """A project whose links may be taken as a whole."""

    def environment(self, cache: Path | None) -> dict[str, str]:
        return {**super().environment(cache), "KLTO_WHOLE_LINKS": "1" if cache else ""}

    def taken(self, *arguments: str) -> bool:
        """Whether the link was taken as a whole; it is what an uncached one gives either way."""
        fresh, _, _ = self.link(*arguments, cached=False)
        (self.folder / "out.o").unlink()
        linked, _, _ = self.link(*arguments)
        assert linked == fresh
        ended = read_journal(self.folder / "journal")[-1]
        assert isinstance(ended, LinkFinished)
        assert ended.returncode == 0
        assert len(ended.modules) == len(SOURCES)
        return ended.whole


@pytest.fixture(params=[14, 19, 22])
def every_llvm(request: pytest.FixtureRequest, tmp_path: Path) -> Wholes:
    return Wholes(tmp_path, request.param)


@pytest.fixture
def project(tmp_path: Path) -> Wholes:
    return Wholes(tmp_path, 19)


def test_unchanged_link_is_taken(every_llvm: Wholes) -> None:
    assert [every_llvm.taken() for _ in range(3)] == [False, True, True]


def test_unchanged_full_lto(project: Wholes) -> None:
    for name, text in SOURCES.items():
        project.compile(name, text, "-flto=full")
    assert [project.taken() for _ in range(2)] == [False, True]


@pytest.mark.parametrize("file", ["data.bin", "nested.bin", "more.s"])
def test_included_file(project: Wholes, file: str) -> None:
    assert [project.taken() for _ in range(2)] == [False, True]
    path = project.folder / file
    before = path.read_bytes()
    path.write_bytes(before + b"\n")
    assert not project.taken()
    path.write_bytes(before)
    assert project.taken()


def test_included_file_of_a_member_of_a_full_archive(project: Wholes) -> None:
    project.archive("all.a", "cDPrS")
    assert [project.taken() for _ in range(2)] == [False, False]
    (project.folder / "data.bin").write_text("other data")
    assert not project.taken()


def test_source_native_object_archive_and_script(project: Wholes) -> None:
    folder = project.folder
    (folder / "native.s").write_text(".globl native\nnative: .quad 1\n")
    (folder / "script.lds").write_text("SECTIONS { .rodata.x : { *(.rodata.x) } }\n")

    def assemble() -> None:
        command = ["clang-19", "-c", "native.s", "-o", "native.o"]
        subprocess.run(command, cwd=folder, check=True)

    assemble()
    arguments = ("native.o", "-T", "script.lds")
    assert [project.taken(*arguments) for _ in range(2)] == [False, True]
    project.compile("plain2", "int plain2(int x) { return x + 77; }\n")
    assert [project.taken(*arguments) for _ in range(2)] == [False, True]
    (folder / "native.s").write_text(".globl native\nnative: .quad 2\n")
    assemble()
    assert [project.taken(*arguments) for _ in range(2)] == [False, True]
    (folder / "script.lds").write_text("SECTIONS { .rodata.z : { *(.rodata.x) } }\n")
    assert [project.taken(*arguments) for _ in range(2)] == [False, True]
    # The archive brings its members in another order.
    names = [f"{name}.o" for name in reversed(SOURCES)]
    (folder / "all.a").unlink()
    subprocess.run(["llvm-ar-19", "cDPrST", "all.a", *names], cwd=folder, check=True)
    assert [project.taken(*arguments) for _ in range(2)] == [False, True]
    # The same words in another order.
    assert not project.taken("-T", "script.lds", "native.o")


@pytest.mark.parametrize(
    "options",
    [
        ("-Map=map",),
        ("--print-map",),
        ("--dependency-file=deps",),
        ("--trace",),
        ("-mllvm", "-print-after-all"),
        ("-mllvm", "--info-output-file=x"),
        ("--plugin-opt=save-temps",),
        ("-L", "."),
    ],
    ids=lambda options: "".join(options),
)
def test_options_with_other_results_and_options_not_known(project: Wholes, options: tuple[str, ...]) -> None:
    assert [project.taken(*options) for _ in range(2)] == [False, False]


def test_script_that_reads_another(project: Wholes) -> None:
    (project.folder / "script.lds").write_text("INCLUDE other.lds\n")
    (project.folder / "other.lds").write_text("SECTIONS { .rodata.x : { *(.rodata.x) } }\n")
    assert [project.taken("-T", "script.lds") for _ in range(2)] == [False, False]


def test_option_of_the_linker_that_changes_code(project: Wholes) -> None:
    assert [project.taken() for _ in range(2)] == [False, True]
    assert not project.taken("--lto-O0")
    assert not project.taken("-mllvm", "-align-all-functions=6")


def test_link_with_a_warning_is_done_each_time(project: Wholes) -> None:
    """What the linker says has to be said again."""
    for _ in range(3):
        _, _, said = project.link("-z", "nothing-known")
        assert "unknown -z value: nothing-known" in said


def test_damaged_output_is_dropped(project: Wholes) -> None:
    assert [project.taken() for _ in range(2)] == [False, True]
    (kept,) = (p for p in (project.cache / "partitions/links").iterdir() if not p.name.startswith("index"))
    kept.write_bytes(kept.read_bytes()[:-1] + b"x")
    assert [project.taken() for _ in range(2)] == [False, True]


def test_link_that_failed_is_not_kept(project: Wholes) -> None:
    project.compile("plain2", 'int plain2(int x) { asm("bogus"); return x; }\n')
    for _ in range(2):
        arguments, env = project.command(), project.environment(project.cache)
        done = subprocess.run(arguments, cwd=project.folder, env=env, capture_output=True, check=False)
        assert done.returncode == 1
        assert b"bogus" in done.stderr


def test_program_stays_executable(project: Wholes) -> None:
    command = [word for word in project.command("-e", "plain1") if word != "-r"]
    for whole in (False, True):
        (project.folder / "out.o").unlink(missing_ok=True)
        env = project.environment(project.cache)
        subprocess.run(command, cwd=project.folder, env=env, check=True)
        ended = read_journal(project.folder / "journal")[-1]
        assert isinstance(ended, LinkFinished)
        assert ended.whole == whole
        assert os.access(project.folder / "out.o", os.X_OK)


def test_the_oldest_links_go_first(project: Wholes, monkeypatch: pytest.MonkeyPatch) -> None:
    from klto.link import whole
    from klto.link.store import LINKS, Partition

    assert [project.taken() for _ in range(2)] == [False, True]
    assert not project.taken("--lto-O1")
    partition = Partition(str(project.cache), LINKS)
    older, newer = partition.entries().values()
    monkeypatch.setattr(whole, "LIMIT", older.size + newer.size - 1)
    whole._keep_latest(partition)
    assert list(partition.entries()) == [newer.key]
    assert [project.taken() for _ in range(2)] == [False, True]


@pytest.mark.parametrize("name", ["data.bin", "script.lds", "plain2.o"])
def test_what_changes_while_it_is_linked_is_not_kept(project: Wholes, name: str) -> None:
    """A linker that changes an input when it has read it stands for somebody else who does."""
    folder = project.folder
    (folder / "script.lds").write_text("SECTIONS { .rodata.x : { *(.rodata.x) } }\n")
    request = parse_request(["-r", "-T", "script.lds", "--whole-archive", "all.a", "-o", "out.o"])
    before = Path.cwd()
    os.chdir(folder)
    try:
        for changed in (True, False):
            scan = Scan(str(folder / f"memo-{changed}"))
            whole = Whole(str(project.cache), "linker", request, read_inputs(request), scan)
            assert not whole.find()
            assert whole.key is not None
            os.makedirs(project.cache / "partitions/links", exist_ok=True)
            (folder / "out.o").write_text("linked")
            if changed:
                (folder / name).write_bytes((folder / name).read_bytes() + b" ")
            whole.keep()
            assert whole.find() != changed
    finally:
        os.chdir(before)
