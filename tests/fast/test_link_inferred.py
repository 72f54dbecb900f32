"""A first link is not asked for remarks: when its backends began follows from when they finished."""

from __future__ import annotations

import os
import random
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from klto.events import LinkBlamed, LinkFinished, read_journal
from klto.link import run, tasks
from klto.link.inputs import Module, read_inputs
from klto.link.linker import Linker
from klto.link.request import parse_request
from klto.link.tasks import InferredTasks
from klto.objects.module_size import module_size
from tests.fast.test_link_beside import Many, modules, project
from tests.fast.test_link_blame import _BAD, Modules, _slow
from tests.fast.test_link_cache import SOURCES

pytestmark = pytest.mark.slow

__all__ = ["modules", "project"]  # Fixtures.


def finished(project: Many) -> list[LinkFinished]:
    return [e for e in read_journal(project.folder / "journal") if isinstance(e, LinkFinished)]


def add(project: Many, name: str, text: str) -> None:
    project.compile(name, text)
    add_compiled(project, name)


def add_compiled(project: Many, name: str) -> None:
    project.more.append(str(project.folder / f"{name}.o"))
    project.archive("all.a", "cDPrST")


def add_slow(project: Many, statements: int) -> None:
    """A module whose backend takes seconds, and clang next to nothing: it runs no passes."""
    (project.folder / "slow.c").write_text(_slow(statements))
    clang = ["clang-19", "-O2", "-Xclang", "-disable-llvm-passes", "-S", "-emit-llvm", "slow.c"]
    subprocess.run(clang, cwd=project.folder, check=True)
    opt = ["opt-19", "-module-summary", "-module-hash", "slow.ll", "-o", "slow.o"]
    subprocess.run(opt, cwd=project.folder, check=True)
    add_compiled(project, "slow")


def failed(project: Many, command: list[str], **more: str) -> tuple[int, str]:
    """(status, what was said) of a link."""
    environment = {**project.environment(project.cache), **more}
    done = subprocess.run(
        command, cwd=project.folder, env=environment, capture_output=True, text=True, check=False
    )
    return done.returncode, done.stderr


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[list[str]]]:
    """Arguments of each run of the linker in this process."""
    seen: list[list[str]] = []

    class Seen(Linker):
        def __init__(self, argv: list[str], *rest: object, **more: object) -> None:
            seen.append(argv)
            super().__init__(argv, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(run, "Linker", Seen)
    return seen  # type: ignore[return-value]


def test_only_later_links_are_asked_for_remarks(
    project: Many, calls: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project.folder)
    for name, value in project.environment(project.cache).items():
        monkeypatch.setenv(name, value)
    for number in range(2):
        arguments = project.command()[5:]
        request = parse_request(arguments)
        assert run.run_link(str(project.linker), arguments, request, read_inputs(request)) == 0
        assert any("remarks" in word for word in calls[-1]) == (number > 0)
        project.compile("plain1", "int plain2(int); int plain1(int x) { return plain2(x) ^ 55; }\n")
    first, second = finished(project)
    assert all(m.seconds is not None and m.bytes_out and not m.cached for m in first.modules)
    assert [m.name for m in second.modules if not m.cached] == ["plain1.o"]


def test_slow_module_is_the_one_that_took_longest(project: Many) -> None:
    add_slow(project, 200)
    project.link()
    (ended,) = finished(project)
    assert max(ended.modules, key=lambda m: m.seconds or 0.0).name == "slow.o"
    assert sum(m.seconds or 0.0 for m in ended.modules) < 2.2 * ended.wall_seconds


def test_module_that_fails_is_named(project: Many) -> None:
    add(project, "bad", _BAD.format(name="bad") + "int ok(int x) { return x; }\n")
    assert failed(project, project.command())[0] == 1
    (blamed,) = (e for e in read_journal(project.folder / "journal") if isinstance(e, LinkBlamed))
    assert [module.name for module in blamed.modules] == ["bad.o"]
    # What the others were is kept, of the one that failed nothing.
    (project.folder / "journal").unlink()
    project.compile("bad", "int bad(int x) { return x + 2; }\n")
    assert project.link()[1] == 1


def test_module_that_hangs_is_named(project: Many) -> None:
    add_slow(project, 3000)
    status, said = failed(project, project.command(), KLTO_MODULE_TIMEOUT="0.7")
    assert status != 0
    assert "no module was finished for 0.7 s; goes on and follows each" in said
    (blamed,) = (e for e in read_journal(project.folder / "journal") if isinstance(e, LinkBlamed))
    assert [(module.name, module.reason) for module in blamed.modules] == [("slow.o", "hang")]


def test_error_of_the_linker_itself_keeps_what_was_generated(project: Many) -> None:
    add(project, "lost", "int nowhere(void); int lost(void) { return nowhere(); }\n")
    command = [word for word in project.command("-e", "lost") if word != "-r"]
    status, said = failed(project, command)
    assert status == 1
    assert "undefined symbol: nowhere" in said
    assert "klto:" not in said  # No backend is suspected.
    assert not [e for e in read_journal(project.folder / "journal") if isinstance(e, LinkBlamed)]
    kept = [path for path in project.cache.glob("partitions/*/*") if path.read_bytes()[:4] == b"\x7fELF"]
    assert len(kept) == len(SOURCES) + len(project.more)


@pytest.mark.parametrize("jobs", [1, 2, 5])
def test_beginnings_are_those_of_a_pool_of_threads(
    tmp_path: Path, jobs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Threads that take the largest module first, played through, with some from the cache."""
    source = random.Random(jobs)
    folder = tmp_path / "objects"
    folder.mkdir()
    names = [f"m{n}" for n in range(40)]
    listed = [Module(f"{n}.o", f"{n}.o", f"{n}.o", None, 0, lambda: b"") for n in names]
    for module in listed:
        module.size = source.randrange(30)
    inferred = InferredTasks(str(folder), listed, jobs)
    inferred.linker = SimpleNamespace(working_since=1000.0, winding_up=False)  # type: ignore[assignment]
    monkeypatch.setattr(tasks, "file_symbol", lambda path: Path(path).name.removeprefix("llvmcache-") + ".c")
    free, took = [1000.0] * jobs, {}
    order = sorted(range(40), key=lambda n: -listed[n].size) if jobs > 1 else range(40)
    for number in order:
        if number % 7 == 3:
            continue  # From the cache: no time, no object.
        thread = free.index(min(free))
        took[number + 1] = source.randrange(1, 3000) / 1000
        free[thread] += took[number + 1]
        path = folder / f"llvmcache-{names[number]}"
        path.touch()
        os.utime(path, (free[thread], free[thread]))
    done, waiting = inferred.sort_out()
    assert waiting == []
    seconds = {task: times.seconds for task, (times, _) in done.items()}
    assert seconds.keys() == took.keys()
    assert sum(seconds.values()) == pytest.approx(sum(took.values()), abs=0.01)
    sizes = [module.size for module in listed]
    alone = [task for task in took if jobs == 1 or sizes.count(sizes[task - 1]) == 1]
    assert len(alone) > 5
    assert [seconds[task] for task in alone] == pytest.approx([took[task] for task in alone], abs=0.002)


def test_size_of_a_module_is_where_the_next_block_begins(modules: Path) -> None:
    data = (modules / "many0.o").read_bytes()
    size = module_size(data[:256])
    assert size is not None
    # LLVMBitCodes.h: the string table (23) or the symbol table (25) comes behind the module.
    assert int.from_bytes(data[4 + size : 8 + size], "little") >> 2 & 0xFF in (23, 25)
    for wrong in (b"", b"\x7fELF" + data[4:256], data[:4] + b"\0" * 200, data[:20]):
        assert module_size(wrong) is None


@pytest.mark.parametrize("jobs", [1, 2, 4])
@pytest.mark.parametrize("llvm", [14, 19, 22])
def test_linker_has_its_threads_before_the_first_object(
    tmp_path: Path, llvm: int, jobs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = Modules(tmp_path, llvm)
    for number in range(4):
        slow.add_unoptimised(f"slow{number}", _slow(300).replace("void slow(", f"void slow{number}("))
    slow.names.reverse()  # With one thread they are taken in this order.
    old = tmp_path / "out.o"
    old.write_bytes(bytes(1 << 20))  # lld removes it in a thread.
    folder = tmp_path / "objects"
    folder.mkdir()
    options = [f"--threads={jobs}", f"--thinlto-jobs={jobs}", f"--thinlto-cache-dir={folder}"]
    monkeypatch.chdir(tmp_path)
    linker = Linker([*slow.command()[4:], *options])
    begun = time.time()
    assert linker.wait().returncode == 0
    first = min(path.stat().st_mtime for path in folder.glob("llvmcache-*"))
    assert begun < linker.working_since < first
