"""A first link of many inputs: they are looked at while the linker runs, which begins again when it must."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from klto.events import LinkFinished, read_journal
from klto.kernel.jobserver import Jobserver
from klto.link import includes
from klto.link.cached import CachedLink
from klto.link.includes import Scan, Uncacheable
from klto.link.inputs import read_inputs
from klto.link.request import parse_request
from klto.link.store import adopt_abandoned
from tests.fast.test_link_cache import SOURCES, Project

pytestmark = pytest.mark.slow

#: More than includes._WORTH_A_PROCESS.
_MANY = 110

#: Makes a module larger than includes._SMALL.
_LARGE = "".join(
    f"int large{n}(int *p, int x) {{ for (int i = 0; i < x; i++) p[i] = p[i] * {n} + p[i ^ 1]; return p[x]; }}\n"
    for n in range(60)
)


class Many(Project):
    """A project with many modules more, linked by two jobs."""

    def __init__(self, folder: Path, modules: Path, jobserver: dict[str, str]) -> None:
        super().__init__(folder, 19)
        self._jobserver = jobserver
        self.more = [shutil.copy(path, folder) for path in sorted(modules.glob("*.o"))]
        self.archive("all.a", "cDPrST")
        time.sleep(0.1)  # Younger files are not remembered.

    def archive(self, name: str, flags: str) -> None:
        super().archive(name, flags)
        if hasattr(self, "more"):
            command = [f"llvm-ar-{self.llvm}", flags, name, *(path.name for path in map(Path, self.more))]
            subprocess.run(command, cwd=self.folder, check=True)

    def environment(self, cache: Path | None) -> dict[str, str]:
        whole = "1" if cache else ""
        return {**super().environment(cache), **self._jobserver, "KLTO_JOBS": "2", "KLTO_WHOLE_LINKS": whole}

    def runs(self) -> int:
        """How often the linker was called for the last link."""
        ended = [event for event in read_journal(self.folder / "journal") if isinstance(event, LinkFinished)]
        (self.folder / "journal").unlink()
        assert [event.again for event in ended] == [True] * (len(ended) - 1) + [False]
        return len(ended)

    def forget_inputs(self) -> None:
        """As another build dir that shares the cache."""
        shutil.rmtree(self.cache / "scans")

    def check(self, runs: int, *, whole: bool = False) -> str:
        """Link without the cache and with it: the same bytes."""
        fresh, _, _ = self.link(cached=False)
        (self.folder / "journal").unlink()
        (self.folder / "out.o").unlink()
        linked, _, said = self.link()
        assert linked == fresh
        ended = read_journal(self.folder / "journal")[-1]
        assert isinstance(ended, LinkFinished)
        assert ended.whole == whole
        assert len(ended.modules) == len(SOURCES) + _MANY
        assert self.runs() == runs
        assert list(self.cache.glob("views/*")) == []
        return said


@pytest.fixture(scope="module")
def modules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("modules")
    names = [f"many{number}.c" for number in range(_MANY)]
    for number, name in enumerate(names):
        (folder / name).write_text(f"int many{number}(int x) {{ return x + {number}; }}\n")
    command = ["clang-19", "-O2", "-flto=thin", "-fsplit-lto-unit", "-c", *names]
    subprocess.run(command, cwd=folder, check=True)
    return folder


@pytest.fixture
def project(tmp_path: Path, modules: Path) -> Iterator[Many]:
    with Jobserver(str(tmp_path / "fifo"), 2) as server:
        yield Many(tmp_path, modules, server.environment())


def test_small_modules_are_looked_at_before(project: Many) -> None:
    assert project.check(1) == ""
    assert project.check(1, whole=True) == ""
    project.forget_inputs()
    assert project.check(1, whole=True) == ""
    (project.folder / "data.bin").write_text("other data")
    project.forget_inputs()
    project.check(1)


def test_large_module_that_includes_a_file(project: Many) -> None:
    project.compile("asm_in_function", SOURCES["asm_in_function"] + _LARGE)
    assert (project.folder / "asm_in_function.o").stat().st_size > includes._SMALL
    time.sleep(0.1)
    assert project.check(2) == ""
    assert project.check(1, whole=True) == ""
    # Had the first run left the module's code as it was without a salt, it would be found now.
    (project.folder / "data.bin").write_text("other data")
    project.check(1)
    (project.folder / "data.bin").write_text("third data")
    project.forget_inputs()
    shutil.rmtree(project.cache / "partitions/links")
    project.check(2)
    project.check(1, whole=True)


def test_large_module_of_which_it_cannot_be_told(project: Many) -> None:
    text = 'asm(".macro m x\\n.incbin \\"\\\\x\\"\\n.endm\\nm data.bin");\n'
    project.compile("asm_at_top", text + _LARGE)
    time.sleep(0.1)
    assert "linked again without the cache" in project.check(2)
    # The next one knows it.
    said = project.check(1)
    assert "is linked without the cache" in said
    assert "cannot be told" in said


def test_full_lto_does_not_begin_again(project: Many) -> None:
    for name, text in SOURCES.items():
        project.compile(name, text + (_LARGE if name == "asm_in_function" else ""), "-flto=full")
    time.sleep(0.1)
    project.check(1)
    # What the module included while the linker ran nobody could tell any more.
    project.check(1)
    project.check(1, whole=True)


def _cached(project: Many, arguments: list[str]) -> CachedLink:
    request = parse_request(arguments)
    root, linker = str(project.cache), str(project.linker)
    return CachedLink(root, linker, arguments, request, read_inputs(request), whole=True, jobs=2)


_ARGUMENTS = ["-r", "--whole-archive", "all.a", "--no-whole-archive", "-o", "out.o"]


@pytest.mark.parametrize("changed", [True, False])
def test_included_file_that_changes_while_it_is_linked(
    project: Many, changed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project.folder)
    with _cached(project, _ARGUMENTS) as cached:
        assert cached.unsettled
        subprocess.run([project.linker, *cached.arguments], check=True)
        if changed:
            (project.folder / "data.bin").write_text("other data")
        assert cached.settle()
        cached.keep_whole()
    assert bool(project.entries()) != changed
    assert bool(list(project.cache.glob("partitions/links/*"))) != changed
    memo = Scan(str(next(project.cache.glob("scans/*"))))
    assert not memo.worth_a_process([Path(path).name for path in project.more])


def test_input_that_changes_while_it_is_linked(project: Many, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project.folder)
    with _cached(project, _ARGUMENTS) as cached:
        os.utime("plain2.o", (5, 5))
        with pytest.raises(Uncacheable, match=r"plain2\.o has changed while it was linked"):
            cached.settle()
        assert cached.unsettled


def test_nothing_is_taken_over_from_a_killed_link_that_was_not_settled(
    project: Many, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project.folder)
    for settled in (False, True):
        cached = _cached(project, _ARGUMENTS).__enter__()
        subprocess.run([project.linker, *cached.arguments], check=True)
        if settled:
            assert cached.settle()
        assert cached.view is not None
        os.close(cached.view._lock)  # As its end by SIGKILL leaves it.
        said: list[str] = []
        adopt_abandoned(str(project.cache), said.append)
        assert bool(said) == settled
        assert bool(project.entries()) == settled
        assert cached._scan is not None
        cached._scan.stop()


def _paths(project: Many) -> dict[str, bool]:
    project.compile("plain1", SOURCES["plain1"] + _LARGE)
    time.sleep(0.1)
    return {str(project.folder / f"{name}.o"): True for name in SOURCES} | dict.fromkeys(
        map(str, project.more), True
    )


@pytest.mark.parametrize("when", ["before it is looked at", "after it was looked at"])
def test_input_that_changes_beside_the_linker(
    project: Many, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = _paths(project)
    large = project.folder / "plain1.o"
    scan = Scan(str(project.folder / "memo"))
    monkeypatch.chdir(project.folder)
    if when.startswith("before"):
        monkeypatch.setattr(
            Scan, "_start", lambda self, paths: large.write_bytes(large.read_bytes() + b"\0" * 4)
        )
    scan.begin_beside(paths)
    assert scan.is_pending(str(large))
    assert not scan.is_pending(str(project.folder / "plain2.o"))
    if when.startswith("after"):
        while not scan.arrived():
            time.sleep(0.01)
        assert scan.changed() is None
        os.utime(large, (5, 5))
    assert scan.changed() == str(large)


def test_process_beside_that_is_killed_costs_time_only(project: Many) -> None:
    project.compile("asm_in_function", SOURCES["asm_in_function"] + _LARGE)
    paths = _paths(project)
    scan = Scan(str(project.folder / "memo"))
    scan.begin_beside(paths)
    os.kill(scan._helper, signal.SIGKILL)
    assert scan.settle() == {str(project.folder / "asm_in_function.o")}
    assert scan.changed() is None


def test_process_beside_ends_with_the_link(project: Many) -> None:
    scan = Scan(str(project.folder / "memo"))
    scan.begin_beside(_paths(project))
    helper = scan._helper
    scan.stop()
    with pytest.raises(ProcessLookupError):
        os.kill(helper, 0)
