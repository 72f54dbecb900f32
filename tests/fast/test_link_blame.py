"""A failing link names the guilty modules, and nothing that a failed backend has left is ever linked."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from klto.events import LinkBlamed, LinkFinished, read_journal
from klto.link import entry

pytestmark = pytest.mark.slow

#: Inline assembly that no assembler takes: clang does not look at it, the backend does.
_BAD = 'int ok(int); int {name}(int x) {{ asm volatile("bogus %0" :: "r"(x)); return ok(x); }}\n'
_GOOD = "int {name}(int x) {{ return x * {factor} + 1; }}\n"

#: A backend that ends the whole linker: an instruction that the function's target lacks ("Cannot select").
_CRASH = """
target triple = "x86_64-unknown-linux-gnu"
target datalayout = "{layout}"
declare <2 x i64> @llvm.x86.aesni.aesenc(<2 x i64>, <2 x i64>)
define <2 x i64> @crashing(<2 x i64> %a, <2 x i64> %b) {{
  %r = call <2 x i64> @llvm.x86.aesni.aesenc(<2 x i64> %a, <2 x i64> %b)
  ret <2 x i64> %r
}}
"""


class Modules:
    """A folder of bitcode and a link of it."""

    def __init__(self, folder: Path, llvm: int) -> None:
        self.folder, self.llvm = folder, llvm
        self.bin = Path(f"/usr/lib/llvm-{llvm}/bin")
        self.names: list[str] = []
        self.add("ok", _GOOD.format(name="ok", factor=3))
        for number in range(8):
            self.add(f"good{number}", _GOOD.format(name=f"good{number}", factor=number + 5))

    def add(self, name: str, text: str, *options: str) -> None:
        (self.folder / f"{name}.c").write_text(text)
        command = [self.bin / "clang", "-O2", "-flto=thin", *options, "-c", f"{name}.c"]
        subprocess.run(command, cwd=self.folder, check=True)
        self.names.append(f"{name}.o")

    def add_slow(self, statements: int) -> None:
        """A module whose backend takes seconds, and clang next to nothing: it runs no passes."""
        self.add_unoptimised("slow", _slow(statements))

    def add_unoptimised(self, name: str, text: str) -> None:
        """A module all of whose optimisation is left to the backend."""
        (self.folder / f"{name}.c").write_text(text)
        quick = ["-Xclang", "-disable-llvm-passes"]
        command = [self.bin / "clang", "-O2", *quick, "-S", "-emit-llvm", f"{name}.c"]
        subprocess.run(command, cwd=self.folder, check=True)
        command = [self.bin / "opt", "-module-summary", "-module-hash", f"{name}.ll", "-o", f"{name}.o"]
        subprocess.run(command, cwd=self.folder, check=True)
        self.names.append(f"{name}.o")

    def add_bad(self, name: str) -> None:
        self.add(name, _BAD.format(name=name))

    def add_crash(self) -> None:
        printed = subprocess.run(
            [self.bin / "clang", "-S", "-emit-llvm", "-o", "-", "ok.c"],
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        layout = next(line for line in printed.splitlines() if "datalayout" in line).split('"')[1]
        (self.folder / "crashing.ll").write_text(_CRASH.format(layout=layout))
        command = [self.bin / "opt", "-module-summary", "crashing.ll", "-thinlto-bc", "-o", "crashing.o"]
        subprocess.run(command, cwd=self.folder, check=True)
        self.names.append("crashing.o")

    def environment(self, **more: str) -> dict[str, str]:
        return {
            **os.environ,
            "KLTO_CACHE": str(self.folder / "cache"),
            "KLTO_JOURNAL": str(self.folder / "journal"),
            "KLTO_REPRODUCERS": str(self.folder / "kept"),
            "KLTO_JOBS": "2",
            **more,
        }

    def command(self, *arguments: str) -> list[str]:
        (self.folder / "all.a").unlink(missing_ok=True)
        subprocess.run([self.bin / "llvm-ar", "cDPrST", "all.a", *self.names], cwd=self.folder, check=True)
        inputs = ["--whole-archive", "all.a", "--no-whole-archive"]
        return [
            *(sys.executable, "-I", "-S", entry.__file__, str(self.bin / "ld.lld"), "-r"),
            *(*inputs, "-o", "out.o", *arguments),
        ]

    def link(self, *arguments: str, **more: str) -> tuple[int, str]:
        (self.folder / "journal").unlink(missing_ok=True)
        done = subprocess.run(
            self.command(*arguments),
            cwd=self.folder,
            env=self.environment(**more),
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, done.stderr

    def blamed(self) -> dict[str, str]:
        """Names and reasons of the modules that the last link blamed."""
        events = read_journal(self.folder / "journal")
        return {
            module.name: module.reason
            for event in events
            if isinstance(event, LinkBlamed)
            for module in event.modules
        }


@pytest.fixture(params=[14, 19, 22])
def modules(request: pytest.FixtureRequest, tmp_path: Path) -> Modules:
    return Modules(tmp_path, request.param)


@pytest.fixture
def modules_19(tmp_path: Path) -> Modules:
    return Modules(tmp_path, 19)


def test_module_with_an_error_is_never_taken_from_the_cache(modules: Modules) -> None:
    """LLVM stores its object all the same, and links it without a word the next time."""
    modules.add_bad("bad")
    first = modules.link()
    assert first[0] == 1
    assert "bogus" in first[1]
    second = modules.link()
    assert second[0] == 1
    assert "bogus" in second[1]
    assert modules.blamed() == {"bad.o": "error"}
    modules.add("bad", "int ok(int); int bad(int x) { return ok(x) + 2; }\n")
    modules.names.remove("bad.o")
    assert modules.link()[0] == 0
    ended = read_journal(modules.folder / "journal")[-1]
    assert isinstance(ended, LinkFinished)
    assert ended.generated == 1


def test_error_of_a_link_that_was_killed_after_it_is_not_forgotten(
    modules_19: Modules, tmp_path: Path
) -> None:
    modules = modules_19
    modules.add_bad("bad")
    modules.add_slow(1500)
    process = subprocess.Popen(
        modules.command(), cwd=tmp_path, env=modules.environment(), stderr=subprocess.DEVNULL, process_group=0
    )
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        said = [path.read_bytes() for path in tmp_path.glob("cache/views/*/stderr")]
        if (
            said
            and b"bogus" in said[0]
            and len(list(tmp_path.glob("cache/views/*/objects/llvmcache-*"))) >= 9
        ):
            break
        time.sleep(0.02)
    else:
        pytest.fail("the error did not come")
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    status, said_again = modules.link(KLTO_MODULE_TIMEOUT="0")
    assert status == 1
    assert "bogus" in said_again


def test_error_of_a_link_that_was_stopped_after_it_is_not_forgotten(
    modules_19: Modules, tmp_path: Path
) -> None:
    modules = modules_19
    modules.add_bad("bad")
    modules.add_slow(3000)
    process = subprocess.Popen(
        modules.command(), cwd=tmp_path, env=modules.environment(), stderr=subprocess.DEVNULL, process_group=0
    )
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        made = [p for p in tmp_path.glob("cache/views/*/objects/llvmcache-*") if not p.is_symlink()]
        if len(made) >= 10:
            break
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == -signal.SIGTERM
    status, said = modules.link(KLTO_MODULE_TIMEOUT="0")
    assert status == 1
    assert "bogus" in said


def test_error_before_the_memory_ended_is_not_forgotten(modules_19: Modules) -> None:
    modules_19.add_bad("bad")
    modules_19.add_slow(1500)
    for _ in range(2):
        status, said = modules_19.link(KLTO_MEMORY=str(75 << 20))
        assert status != 0
        assert "bogus" in said
    assert modules_19.link()[0] == 1


def test_all_guilty_modules_are_named_at_once(modules: Modules) -> None:
    for name in ("bad1", "bad2"):
        modules.add_bad(name)
    modules.add_crash()
    status, said = modules.link()
    assert status != 0
    assert modules.blamed() == {"bad1.o": "error", "bad2.o": "error", "crashing.o": "crash"}
    assert "3 of 12 modules cannot be generated; the other 9 can" in said
    events = read_journal(modules.folder / "journal")
    (crash,) = [m for e in events if isinstance(e, LinkBlamed) for m in e.modules if m.reason == "crash"]
    assert (crash.function, crash.source) == ("crashing", "crashing.ll")
    assert "Cannot select" in crash.message


def test_reproducer_runs_alone(modules: Modules, tmp_path_factory: pytest.TempPathFactory) -> None:
    modules.add_bad("bad")
    modules.link()
    events = read_journal(modules.folder / "journal")
    (guilty,) = [m for e in events if isinstance(e, LinkBlamed) for m in e.modules]
    assert guilty.reproducer is not None
    away = tmp_path_factory.mktemp("away") / "reproducer"
    Path(guilty.reproducer).parent.rename(away)
    assert (away / "index.thinlto.bc").read_bytes()[:4] == b"BC\xc0\xde"
    # It holds the module and the one that it imports from, no more.
    assert sorted(p.name for p in (away / "inputs").iterdir()) == ["0-bad.o", "1-ok.o"]
    alone = subprocess.run([away / "run.sh"], cwd="/", capture_output=True, text=True, check=False)
    assert alone.returncode == 1
    assert "bogus" in alone.stderr


def test_error_in_a_function_that_others_import_is_theirs_too(modules_19: Modules) -> None:
    modules_19.add_bad("bad")
    modules_19.add("importer", "int bad(int); int importer(int x) { return bad(x + 1); }\n")
    modules_19.link()
    assert modules_19.blamed() == {"bad.o": "error", "importer.o": "error"}


def test_without_the_cache_modules_are_named_too(modules_19: Modules) -> None:
    modules_19.add_bad("bad")
    assert modules_19.link(KLTO_CACHE="")[0] == 1
    assert modules_19.blamed() == {"bad.o": "error"}


def test_failure_that_is_no_backends_blames_nobody(modules_19: Modules) -> None:
    modules_19.add("twice", _GOOD.format(name="good1", factor=9))
    status, said = modules_19.link()
    assert status == 1
    assert "duplicate symbol" in said
    assert modules_19.blamed() == {}
    assert "klto:" not in said


def test_function_leads_to_its_module_in_full_lto(modules_19: Modules) -> None:
    modules_19.names.clear()
    for name, text in (("first", _GOOD), ("second", _GOOD)):
        modules_19.add(name, text.format(name=name, factor=4), "-flto=full")
    modules_19.add_crash()
    (modules_19.folder / "crashing.o").write_bytes(
        subprocess.run(
            [modules_19.bin / "opt", "crashing.ll"], cwd=modules_19.folder, capture_output=True, check=True
        ).stdout
    )
    assert modules_19.link()[0] != 0
    assert modules_19.blamed() == {"crashing.o": "crash"}


def _slow(statements: int) -> str:
    """A function whose backend takes seconds, and clang next to nothing as long as it runs no passes."""
    lines = [
        f"a[{i % 97}] = b[{i * 7 % 89}] * a[{i * 13 % 97}] + {i}; if (b[{i % 89}] > {i % 11}) "
        f"b[{i * 5 % 89}] ^= a[{i * 3 % 97}];"
        for i in range(statements)
    ]
    return "void slow(int *restrict a, int *restrict b) {\n" + "\n".join(lines) + "\n}\n"


def test_module_that_hangs_is_named_and_the_others_are_made(modules_19: Modules) -> None:
    """Stands for an endless loop: a backend that takes far longer than --module-timeout."""
    modules = modules_19
    modules.add_slow(3000)
    status, said = modules.link(KLTO_MODULE_TIMEOUT="0.7")
    assert status != 0
    assert modules.blamed() == {"slow.o": "hang"}
    assert "got nowhere" in said
    modules.names.remove("slow.o")
    assert modules.link()[0] == 0
    ended = read_journal(modules.folder / "journal")[-1]
    assert isinstance(ended, LinkFinished)
    assert ended.generated == 0


def test_seconds_and_bytes_of_each_module(modules: Modules) -> None:
    modules.add_slow(200)
    assert modules.link()[0] == 0
    ended = read_journal(modules.folder / "journal")[-1]
    assert isinstance(ended, LinkFinished)
    found = {module.name: module for module in ended.modules}
    assert list(found) == modules.names
    assert all(m.seconds is not None and m.bytes_out and not m.cached for m in ended.modules)
    assert sum(m.seconds or 0.0 for m in ended.modules) < 2 * ended.wall_seconds
    assert max(ended.modules, key=lambda m: m.seconds or 0.0).name == "slow.o"
    assert max(ended.modules, key=lambda m: m.bytes_out or 0).name == "slow.o"
    assert found["ok.o"].bytes_in == (modules.folder / "ok.o").stat().st_size
    modules.add("ok", _GOOD.format(name="ok", factor=77))
    modules.names.remove("ok.o")
    assert modules.link()[0] == 0
    ended = read_journal(modules.folder / "journal")[-1]
    assert isinstance(ended, LinkFinished)
    assert [m.name for m in ended.modules if not m.cached] == ["ok.o"]


def test_watching_the_backends_does_not_change_their_code(modules: Modules) -> None:
    modules.add_slow(100)
    assert modules.link()[0] == 0
    plain = [modules.bin / "ld.lld", "-r", "--whole-archive", "all.a", "-o", "plain.o"]
    subprocess.run(plain, cwd=modules.folder, check=True)
    assert (modules.folder / "out.o").read_bytes() == (modules.folder / "plain.o").read_bytes()
