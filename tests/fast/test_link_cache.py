"""The link cache: the linked object equals what an uncached link gives, whatever changed and whatever broke."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from itertools import product
from pathlib import Path

import pytest

from klto.events import LinkFinished, read_journal
from klto.link import entry
from klto.link.includes import may_include

#: An inline function with .incbin, a module that imports it, module-level assembly, and modules without any.
SOURCES = {
    "asm_in_function": r"""
static int secret(int x) { return x * 3; }
int (*pointer)(int) = secret;
int asm_in_function(int x) {
  asm volatile(".pushsection .rodata.x,\"a\"\n.incbin \"data.bin\"\n.popsection");
  return secret(x);
}
""",
    "importer": "int asm_in_function(int); int importer(int x) { return asm_in_function(x) + 1; }\n",
    "asm_at_top": 'asm(".section .rodata.y,\\"a\\"\\n.include \\"more.s\\"\\n.text\\n"); int asm_at_top = 1;\n',
    "plain1": "int plain2(int); int plain1(int x) { return plain2(x) ^ 5; }\n",
    "plain2": "int plain2(int x) { return x + 2; }\n",
}


class Project:
    """A small LTO link in a folder, through klto's link process."""

    def __init__(self, folder: Path, llvm: int) -> None:
        self.folder, self.llvm = folder, llvm
        self.linker = Path(f"/usr/lib/llvm-{llvm}/bin/ld.lld")
        self.cache = folder / "cache"
        (folder / "data.bin").write_text("first data")
        (folder / "nested.bin").write_text("nested data")
        (folder / "more.s").write_text('.incbin "nested.bin"\n')
        for name in SOURCES:
            self.compile(name, SOURCES[name])
        self.archive("all.a", "cDPrST")

    def compile(self, name: str, text: str, *flags: str) -> None:
        (self.folder / f"{name}.c").write_text(text)
        command = [f"clang-{self.llvm}", "-O2", "-flto=thin", "-fsplit-lto-unit", "-c", f"{name}.c", *flags]
        subprocess.run(command, cwd=self.folder, check=True)

    def archive(self, name: str, flags: str) -> None:
        (self.folder / name).unlink(missing_ok=True)
        objects = [f"{source}.o" for source in SOURCES]
        subprocess.run([f"llvm-ar-{self.llvm}", flags, name, *objects], cwd=self.folder, check=True)

    def command(self, *arguments: str, out: str = "out.o") -> list[str]:
        inputs = ["--whole-archive", "all.a", "--no-whole-archive"]
        return [
            sys.executable,
            "-I",
            "-S",
            entry.__file__,
            str(self.linker),
            "-r",
            *inputs,
            "-o",
            out,
            *arguments,
        ]

    def environment(self, cache: Path | None) -> dict[str, str]:
        return {**os.environ, "KLTO_CACHE": str(cache or ""), "KLTO_JOURNAL": str(self.folder / "journal")}

    def link(self, *arguments: str, cached: bool = True) -> tuple[bytes, int | None, str]:
        """(the linked object, how many modules were generated, what was said)."""
        done = subprocess.run(
            self.command(*arguments),
            cwd=self.folder,
            env=self.environment(self.cache if cached else None),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        ended = read_journal(self.folder / "journal")[-1]
        assert isinstance(ended, LinkFinished)
        return (self.folder / "out.o").read_bytes(), ended.generated, done.stderr

    def expect(self, generated: int | None, *arguments: str) -> str:
        """Link with the cache and without: the same bytes; ``generated`` modules made. What was said."""
        fresh, none, _ = self.link(*arguments, cached=False)
        assert none is None
        linked, count, said = self.link(*arguments)
        assert linked == fresh
        if generated is not None:
            assert count == generated, said
        return said

    def entries(self) -> list[Path]:
        return sorted(p for p in self.cache.glob("partitions/*/*") if not p.name.startswith("index"))


@pytest.fixture(params=[14, 19, 22])
def every_llvm(request: pytest.FixtureRequest, tmp_path: Path) -> Project:
    return Project(tmp_path, request.param)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path, 19)


# -- right ----------------------------------------------------------------------------------------------------


def test_first_link_generates_and_the_second_does_not(every_llvm: Project) -> None:
    assert every_llvm.expect(5) == ""
    assert every_llvm.expect(0) == ""


def test_changed_source(every_llvm: Project) -> None:
    every_llvm.expect(5)
    every_llvm.compile("plain2", "int plain2(int x) { return x + 77; }\n")
    # plain1 imports plain2.
    every_llvm.expect(2)
    every_llvm.expect(0)


@pytest.mark.parametrize("file", ["data.bin", "nested.bin", "more.s"])
def test_changed_included_file_changes_modules_and_importers(every_llvm: Project, file: str) -> None:
    every_llvm.expect(5)
    path = every_llvm.folder / file
    path.write_text("# other\n" + path.read_text() if file == "more.s" else "other data")
    every_llvm.expect(2 if file == "data.bin" else 1)
    every_llvm.expect(0)


def test_included_file_that_comes_back_is_found_again(project: Project) -> None:
    project.expect(5)
    before = (project.folder / "data.bin").read_text()
    (project.folder / "data.bin").write_text("other")
    project.expect(2)
    (project.folder / "data.bin").write_text(before)
    project.expect(0)


def test_modules_named_by_path_and_in_a_full_archive(project: Project) -> None:
    project.archive("all.a", "cDPrS")
    project.expect(5)
    (project.folder / "data.bin").write_text("other")
    project.expect(2)
    (project.folder / "all.a").unlink()
    project.archive("all.a", "cDPrST")
    project.expect(0)


@pytest.mark.slow
@pytest.mark.parametrize(
    "option",
    [
        "-plugin-opt=-align-all-functions=6",
        "-plugin-opt=-align-loops=64",
        "--plugin-opt=-align-all-nofallthru-blocks=5",
        "--lto-basic-block-sections=all",
        "-mllvm=-align-all-functions=5",
        "--lto-O1",
        "--lto-CGO0",
        "-plugin-opt=O1",
        "--lto-whole-program-visibility",
        "-plugin-opt=mcpu=x86-64-v3",
    ],
)
@pytest.mark.parametrize("llvm", [19])  # All options with all LLVMs: tests/real/test_link_options.py.
def test_option_that_changes_code_is_never_linked_stale(tmp_path: Path, option: str, llvm: int) -> None:
    project = Project(tmp_path, llvm)
    asked = subprocess.run([project.linker, option, "--version"], capture_output=True, check=False)
    if asked.returncode != 0:
        return  # This lld has no such option.
    project.link()
    project.expect(None, option)
    project.expect(0)
    project.expect(0, option)


def test_two_word_option(project: Project) -> None:
    project.expect(5)
    project.expect(5, "-mllvm", "-align-all-functions=6")
    project.expect(0)


def test_file_that_an_option_names(project: Project) -> None:
    """The list of functions to split: its content counts, not only its name."""
    (project.folder / "list").write_text("!plain1\n")
    option = f"--lto-basic-block-sections={project.folder / 'list'}"
    project.expect(None, option)
    (project.folder / "list").write_text("!plain2\n")
    project.expect(5, option)


def test_results_and_threads_do_not_divide_the_cache(project: Project) -> None:
    project.expect(5)
    project.expect(0, "--threads=1", "--thinlto-jobs=1", "--time-trace=trace.json")


def test_caller_with_a_cache_of_his_own_is_left_alone(project: Project) -> None:
    project.link("--thinlto-cache-dir=mine")
    assert list((project.folder / "mine").glob("llvmcache-*"))
    assert project.entries() == []


@pytest.mark.parametrize("options", [["-Map=side"], ["-Map", "side"], ["--dependency-file=side"]])
def test_lists_of_inputs_name_them_as_without_the_cache(project: Project, options: list[str]) -> None:
    project.expect(5)
    lists = []
    for cached in (False, True):
        project.link(*options, cached=cached)
        lists.append((project.folder / "side").read_text())
        (project.folder / "side").unlink()
    assert "all.a" in lists[0]
    assert lists[0] == lists[1]


def test_linker_that_is_a_script_gets_no_cache(project: Project) -> None:
    fake = project.folder / "fake_linker"
    fake.write_text(f'#!/bin/sh\nexec {project.linker} "$@"\n')
    fake.chmod(0o755)
    project.linker = fake
    _, generated, said = project.link()
    assert generated is None
    assert "is linked without the cache" in said


def test_needles_find_words_at_every_bit_offset(project: Project) -> None:
    found = [name for name in SOURCES if may_include((project.folder / f"{name}.o").read_bytes())]
    assert found == ["asm_in_function", "asm_at_top"]
    # Offsets change with what stands before the assembly; the assembler takes directives in any case.
    for length, spelled in product(range(12), (".incbin", ".INCBIN", ".IncBin")):
        text = SOURCES["asm_in_function"].replace(
            "pushsection .rodata.x", "pushsection .rodata." + "x" * (length + 1)
        )
        project.compile("other", text.replace(".incbin", spelled), "-O0")
        assert may_include((project.folder / "other.o").read_bytes()), (length, spelled)


def test_directive_in_mixed_case_is_seen(project: Project) -> None:
    project.compile("asm_in_function", SOURCES["asm_in_function"].replace(".incbin", ".iNcbIN"))
    project.expect(5)
    (project.folder / "data.bin").write_text("other data")
    project.expect(2)


def test_name_that_cannot_be_told_means_no_cache(project: Project) -> None:
    text = 'asm(".macro pull name\\n.section .rodata\\n.incbin \\"\\\\name\\"\\n.text\\n.endm\\npull data.bin\\n");\n'
    project.compile("asm_at_top", text)
    _, generated, said = project.link()
    assert generated is None
    assert "asm_at_top.o includes a file that cannot be told" in said


# -- broken -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("place", ["start", "middle", "end", "truncated", "empty", "longer"])
def test_damaged_entries_are_dropped_and_made_again(project: Project, place: str) -> None:
    project.expect(5)
    for path in project.entries():
        data = bytearray(path.read_bytes())
        at = {"start": 0, "middle": len(data) // 2, "end": len(data) - 1}.get(place)
        if at is not None:
            data[at] ^= 0xFF
        elif place == "truncated":
            del data[len(data) // 2 :]
        elif place == "empty":
            data.clear()
        else:
            data.append(0)
        stamps = path.stat()
        path.write_bytes(data)
        os.utime(path, ns=(stamps.st_atime_ns, stamps.st_mtime_ns))
    assert "5 entries of the link cache were damaged" in project.expect(5)
    assert project.expect(0) == ""


def test_touched_entries_are_still_good(project: Project) -> None:
    project.expect(5)
    for path in project.entries():
        os.utime(path, (1, 1))  # The clock was set back, or the cache was copied.
    assert project.expect(0) == ""


@pytest.mark.parametrize(
    "text", ["", "garbage\n", "\0\xff" * 50, "a b c d e f\n"], ids=["empty", "garbage", "bytes", "fields"]
)
def test_damaged_index_costs_time_only(project: Project, text: str) -> None:
    project.expect(5)
    (index,) = project.cache.glob("partitions/*/index")
    index.write_text(text)
    project.expect(5)
    project.expect(0)


@pytest.mark.parametrize("name", ["linkers.json", "scans"])
def test_damaged_memos_cost_time_only(project: Project, name: str) -> None:
    project.expect(5)
    for path in [project.cache / name] if name.endswith("json") else (project.cache / name).iterdir():
        path.write_text('{"a": [')
    project.expect(0)


@pytest.mark.parametrize("entry", [3, ["digest"], [3, {}], ["digest", []]])
def test_memo_of_linkers_with_something_else_in_it(project: Project, entry: object) -> None:
    project.expect(5)
    memo = project.cache / "linkers.json"
    memo.write_text(json.dumps(dict.fromkeys(json.loads(memo.read_text()), entry)))
    assert project.expect(0) == ""


def test_linkers_are_remembered_where_it_is_said(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    place = project.folder / "linkers"
    monkeypatch.setenv("KLTO_LINKERS", str(place))
    project.expect(5)
    assert str(project.linker.resolve()) in place.read_text()
    assert not (project.cache / "linkers.json").exists()
    monkeypatch.setenv("KLTO_LINKERS", str(project.folder / "none/linkers"))
    assert project.expect(0) == ""


def test_read_only_cache(project: Project) -> None:
    """A file where the folder should be stands for a cache that cannot be written, for root too."""
    project.cache.write_text("")
    _, generated, said = project.link()
    assert generated is None
    assert "is linked without the cache" in said


@pytest.mark.slow
@pytest.mark.parametrize("kib", [16, 40, 64, 96])
def test_full_disk_under_the_cache(project: Project, mount_tmpfs: object, kib: int) -> None:
    assert callable(mount_tmpfs)
    fresh, _, _ = project.link(cached=False)
    project.cache = mount_tmpfs(f"size={kib}k")
    linked, _, _ = project.link()
    assert linked == fresh


def test_two_links_at_once(project: Project) -> None:
    fresh, _, _ = project.link(cached=False)
    running = [
        subprocess.Popen(
            project.command(out=f"out{n}.o"), cwd=project.folder, env=project.environment(project.cache)
        )
        for n in range(4)
    ]
    assert [child.wait() for child in running] == [0] * 4
    for number in range(4):
        assert (project.folder / f"out{number}.o").read_bytes() == fresh
    project.expect(0)
    assert list((project.cache / "views").iterdir()) == []


@pytest.mark.slow
def test_killed_link_is_resumed(project: Project) -> None:
    """SIGKILL at moments spread over the link; each next link gives the right bytes."""
    fresh, _, _ = project.link(cached=False)
    for step in range(20):
        child = subprocess.Popen(
            project.command(), cwd=project.folder, env=project.environment(project.cache), process_group=0
        )
        time.sleep(0.008 * step)
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        linked, _, _ = project.link()
        assert linked == fresh
    project.expect(0)
    assert list((project.cache / "views").iterdir()) == []


@pytest.mark.slow
def test_what_a_killed_link_had_finished_is_used(project: Project) -> None:
    """A view whose owner is gone: its objects are taken over, not generated again."""
    project.expect(5)
    (partition,) = project.cache.glob("partitions/*")
    abandoned = project.cache / "views/abandoned/objects"
    abandoned.mkdir(parents=True)
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    (project.cache / "views/abandoned.owner").write_text(f"{partition.name} {boot}\n")
    for path in project.entries()[:2]:
        path.rename(abandoned / f"llvmcache-{path.name}")
    (partition / "index").unlink()
    for path in project.entries():
        path.unlink()
    assert "2 modules that a killed link had finished are used again" in project.expect(3)


def test_what_was_left_before_a_restart_of_the_machine_is_not_trusted(project: Project) -> None:
    project.expect(5)
    (partition,) = project.cache.glob("partitions/*")
    abandoned = project.cache / "views/abandoned/objects"
    abandoned.mkdir(parents=True)
    (project.cache / "views/abandoned.owner").write_text(f"{partition.name} another-boot\n")
    (abandoned / "llvmcache-0").write_text("torn")
    assert project.expect(0) == ""
    assert not abandoned.exists()


# -- klto cache -------------------------------------------------------------------------------------------------


def _klto(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "klto", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_stats_verify_and_prune(project: Project) -> None:
    project.expect(5)
    cache = ("--cache-dir", project.cache, "--json")
    stats = json.loads(_klto("cache", "stats", *cache).stdout)
    assert (stats["schema"], stats["entries"], stats["partitions"]) == ("klto/cache/1", 5, 1)
    assert stats["bytes"] == sum(path.stat().st_size for path in project.entries())
    assert _klto("cache", "verify", *cache).returncode == 0
    damaged = project.entries()[0]
    damaged.write_bytes(b"x" + damaged.read_bytes()[1:])
    done = _klto("cache", "verify", *cache)
    assert (done.returncode, json.loads(done.stdout)["dropped"]) == (3, 1)
    project.expect(1)
    pruned = json.loads(_klto("cache", "prune", *cache, "--max-size", "0").stdout)
    assert (pruned["removed"], pruned["entries"], pruned["bytes"]) == (5, 0, 0)
    project.expect(5)


def test_prune_removes_what_was_used_longest_ago(project: Project) -> None:
    project.expect(5)
    paths = project.entries()
    for age, path in enumerate(paths):
        os.utime(path, (1000 + age, 1000 + age))
    keep = sum(path.stat().st_size for path in paths[2:])
    assert (
        _klto(
            "cache", "prune", "--cache-dir", project.cache, "--max-size", str(int(keep / 0.9) + 1)
        ).returncode
        == 0
    )
    assert project.entries() == paths[2:]
    project.expect(2)


def test_no_cache_yet(tmp_path: Path) -> None:
    done = _klto("cache", "stats", "--cache-dir", tmp_path / "none")
    assert (done.returncode, done.stdout.split(":")[0]) == (0, "0 entries, 0 B, for 0 sets of options")


def test_klto_ld_is_the_linker(project: Project) -> None:
    env = {**project.environment(project.cache), "KLTO_LD": str(project.linker)}
    command = [sys.executable, "-m", "klto", "ld", "-r", "--whole-archive", "all.a", "-o", "ld.o"]
    subprocess.run(command, cwd=project.folder, env=env, check=True)
    assert (project.folder / "ld.o").read_bytes() == project.link(cached=False)[0]
    version = subprocess.run([*command[:4], "--version"], env=env, capture_output=True, text=True, check=True)
    assert "LLD 19" in version.stdout
    entries = len(project.entries())
    other = project.folder / "other"
    for own, made in (
        (["--no-cache"], False),
        (["--cache-dir", "other"], True),
        (["--cache-dir=other"], True),
    ):
        (project.folder / "ld.o").unlink()
        subprocess.run([*command[:4], *own, *command[4:]], cwd=project.folder, env=env, check=True)
        assert (project.folder / "ld.o").read_bytes() == project.link(cached=False)[0]
        assert other.exists() == made
        assert len(project.entries()) == entries
    done = subprocess.run(
        [*command[:4], "--cache-dir="], env=env, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr.splitlines()[0]) == (2, "klto: klto ld: --cache-dir without a value")
