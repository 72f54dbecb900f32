"""``klto build`` on the fake kernel tree: the driver, its record, and every way it can be stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jsonschema
import pytest

from klto.events import LinkFinished, Step, read_journal
from klto.record import read_record, record_schema
from tests.conftest import Klto, klto_environment
from tests.fake_kernel import make_fake_kernel, thin_config


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return make_fake_kernel(tmp_path / "linux")


@pytest.fixture
def build_dir(tmp_path: Path, llvm_bin: Path) -> Path:
    folder = tmp_path / "build"
    folder.mkdir()
    (folder / ".config").write_text(thin_config(llvm_bin))
    return folder


def _make(tree: Path, build_dir: Path, llvm_bin: Path, *arguments: str) -> list[str]:
    """Plain make; the steps that it announced."""
    done = subprocess.run(
        ["make", "--no-print-directory", "-C", tree, f"O={build_dir}", "LLVM=1", *arguments],
        env=klto_environment(llvm_bin, tree),
        capture_output=True,
        text=True,
        check=True,
    )
    return [line.strip() for line in done.stdout.splitlines() if line.startswith("  ")]


def test_build_verifies_records_and_sums_up(klto: Klto, tree: Path, build_dir: Path) -> None:
    done = klto("build", "-C", tree, "-b", build_dir, "-j2")
    assert done.status == 0, done.err
    assert "thin: 6 bitcode and 1 native objects, 1 kernel modules" in done.out
    assert "link       done" in done.err
    text = (build_dir / ".klto/record.json").read_bytes()
    jsonschema.validate(json.loads(text), record_schema())
    record = read_record(build_dir / ".klto/record.json")
    assert (record.status, record.exit_status) == ("done", 0)
    assert [stage.name for stage in record.stages] == [
        "configure",
        "compile",
        "link",
        "finish",
        "verify",
        "check",
    ]
    assert {stage.status for stage in record.stages} == {"done"}
    assert record.objects_compiled == 8
    assert record.tree is not None
    assert record.tree.version == "6.12.0-fake"
    links = {link.output: link for link in record.links}
    assert set(links) == {"vmlinux.o", "lib/.tmp_single.o"}
    assert (links["vmlinux.o"].bitcode_inputs, links["vmlinux.o"].native_inputs) == (6, 1)
    assert (links["vmlinux.o"].peak_bytes or 0) > 10 << 20
    assert record.verification is not None
    assert (record.verification.bitcode, record.verification.native) == (6, 1)
    image = next(a for a in record.artifacts if a.path == "arch/x86/boot/bzImage")
    assert image.bytes == (build_dir / image.path).stat().st_size


def test_json_prints_the_record_and_nothing_else(klto: Klto, tree: Path, build_dir: Path) -> None:
    done = klto("build", "-C", tree, "-b", build_dir, "--json", "-q")
    assert json.loads(done.out)["schema"] == "klto/record/1"
    assert done.err == ""


def test_quiet_prints_nothing(klto: Klto, tree: Path, build_dir: Path) -> None:
    done = klto("build", "-C", tree, "-b", build_dir, "-q")
    assert (done.status, done.out, done.err) == (0, "", "")


def test_make_and_klto_rebuild_nothing_of_each_others(
    klto: Klto, tree: Path, build_dir: Path, llvm_bin: Path
) -> None:
    assert klto("build", "-C", tree, "-b", build_dir).status == 0
    assert _make(tree, build_dir, llvm_bin) == []
    (tree / "init/part3.c").write_text("int part3(int x) { return x - 3; }\n")
    assert "CC      init/part3.o" in _make(tree, build_dir, llvm_bin)
    assert klto("build", "-C", tree, "-b", build_dir).status == 0
    record = read_record(build_dir / ".klto/record.json")
    assert (record.objects_compiled, record.links) == (0, [])


@pytest.mark.slow
@pytest.mark.parametrize("spelling", ["-19", "/usr/lib/llvm-19/bin/"])
def test_other_spellings_are_kept_and_linked_by_klto(
    klto: Klto, tree: Path, build_dir: Path, llvm_bin: Path, spelling: str
) -> None:
    _make(tree, build_dir, llvm_bin, f"LLVM={spelling}")
    (tree / "init/part3.c").write_text("int part3(int x) { return x - 3; }\n")
    assert klto("build", "-C", tree, "-b", build_dir).status == 0
    record = read_record(build_dir / ".klto/record.json")
    assert record.objects_compiled == 1
    assert [link.output for link in record.links] == ["vmlinux.o"]
    assert _make(tree, build_dir, llvm_bin, f"LLVM={spelling}") == []


@pytest.mark.slow
def test_in_tree_build(klto: Klto, tree: Path, llvm_bin: Path) -> None:
    (tree / ".config").write_text(thin_config(llvm_bin))
    assert klto("build", cwd=tree).status == 0
    assert (tree / "vmlinux").exists()
    subprocess.run(["make", "-s", "clean"], cwd=tree, env=klto_environment(llvm_bin, tree), check=True)
    assert klto("build", cwd=tree).status == 0


def test_single_target_is_built_and_not_verified(klto: Klto, tree: Path, build_dir: Path) -> None:
    assert klto("build", "-C", tree, "-b", build_dir, "init/main.o").status == 0
    record = read_record(build_dir / ".klto/record.json")
    assert record.objects_compiled == 1
    assert record.verification is None


@pytest.mark.slow
def test_links_at_the_same_time_share_the_jobs(klto: Klto, tree: Path, build_dir: Path) -> None:
    """The link of vmlinux.o takes what make and the kernel module's link leave."""
    assert klto("build", "-C", tree, "-b", build_dir, "-j4").status == 0
    links = read_record(build_dir / ".klto/record.json").links
    for link in links:
        at_once = [o for o in links if o.start <= link.start < o.start + (o.wall_seconds or 0)]
        assert sum(other.jobs for other in at_once) <= 4
    assert max(link.jobs for link in links) > 1


@pytest.mark.parametrize("variable", ["O=/other", "LLVM=1", "ARCH=arm64", "CC=gcc", "SHELL=/bin/bash", "M=x"])
def test_variables_that_klto_sets_itself_are_refused(
    klto: Klto, tree: Path, build_dir: Path, variable: str
) -> None:
    done = klto("build", "-C", tree, "-b", build_dir, variable)
    assert done.status == 2
    assert f"klto: {variable}: klto sets" in done.err


def test_variables_go_to_make(klto: Klto, tree: Path, build_dir: Path) -> None:
    """With another target that says what it got."""
    (tree / "Makefile").write_text((tree / "Makefile").read_text() + "\nshow: ; @echo '  GOT     $(NAME)'\n")
    assert klto("build", "-C", tree, "-b", build_dir, "show", "NAME=value").status == 0
    assert "GOT     value" in (build_dir / ".klto/build.log").read_text()


def test_jobs_beyond_what_a_pipe_holds(klto: Klto, tree: Path, build_dir: Path) -> None:
    done = klto("build", "-C", tree, "-b", build_dir, "-j70000")
    assert done.status == 2
    assert "use at most -j" in done.err


@pytest.mark.slow
def test_leftovers_are_looked_for_after_a_kill_only(klto: Klto, tree: Path, build_dir: Path) -> None:
    """Rules may touch a target after its command was saved, and a user may put a file of his own in its place."""
    assert klto("build", "-C", tree, "-b", build_dir).status == 0
    key, command = build_dir / "certs/signing_key.pem", build_dir / "certs/.signing_key.pem.cmd"
    key.parent.mkdir()
    command.write_text("savedcmd_certs/signing_key.pem := openssl\n")
    os.utime(command, (1, 1))
    key.write_text("mine")
    os.utime(build_dir / "lib/single.ko")
    done = klto("build", "-C", tree, "-b", build_dir, "vmlinux")
    assert done.status == 0, done.err
    assert read_record(build_dir / ".klto/record.json").removed == []
    (build_dir / ".klto/running").touch()
    assert klto("build", "-C", tree, "-b", build_dir).status == 0
    assert key.read_text() == "mine"


def test_nothing_verified_is_said(klto: Klto, tree: Path, build_dir: Path) -> None:
    assert "nothing was verified" in klto("build", "-C", tree, "-b", build_dir, "modules").err


@pytest.mark.slow
def test_json_of_a_refused_run_is_not_an_earlier_runs(
    klto: Klto, tree: Path, build_dir: Path, start: Start
) -> None:
    assert klto("build", "-C", tree, "-b", build_dir).status == 0
    (tree / "init/part1.c").write_text("int part2(int x); int part1(int x) { return part2(x) + 9; }\n")
    start("objtool")
    done = klto("build", "-C", tree, "-b", build_dir, "--json")
    assert (done.status, done.out) == (2, "")


@pytest.mark.slow
def test_reader_that_goes_away_does_not_hide_a_failure(tree: Path, build_dir: Path, llvm_bin: Path) -> None:
    (tree / "init/part3.c").write_text("int part3(int x) { return y; }\n")
    command = f"{sys.executable} -m klto build -C {tree} -b {build_dir} --json -q 2>/dev/null"
    env = klto_environment(llvm_bin, build_dir)
    done = subprocess.run(["bash", "-c", f"{command} | true; exit ${{PIPESTATUS[0]}}"], env=env, check=False)
    assert done.returncode == 1
    command = f"{sys.executable} -m klto build -C {tree} -b {build_dir} 2>&1 >/dev/null"
    done = subprocess.run(["bash", "-c", f"{command} | true; exit ${{PIPESTATUS[0]}}"], env=env, check=False)
    assert done.returncode == 1
    assert read_record(build_dir / ".klto/record.json").status == "failed"


# -- failures ---------------------------------------------------------------------------------------------------


def test_compile_error_shows_its_own_lines_log_and_command(klto: Klto, tree: Path, build_dir: Path) -> None:
    (tree / "init/part3.c").write_text("int part3(int x) { return y; }\n")
    done = klto("build", "-C", tree, "-b", build_dir, "-j2")
    assert done.status == 1
    assert "use of undeclared identifier 'y'" in done.err
    assert "klto: init/part3.o failed: Error 1" in done.err
    assert f"log: {build_dir}/.klto/build.log" in done.err
    assert f"&& klto build -C {tree} -b {build_dir} -j2" in done.err
    assert "part1.o" not in done.err
    record = read_record(build_dir / ".klto/record.json")
    assert (record.status, record.exit_status) == ("failed", 1)
    assert record.stages[-1].status == "failed"


@pytest.mark.slow
def test_failing_step_after_the_link(klto: Klto, tree: Path, build_dir: Path) -> None:
    done = klto("build", "-C", tree, "-b", build_dir, env={"FAKE_FAIL": "objtool:3"})
    assert done.status == 1
    assert "fake objtool: this is why" in done.err
    assert "klto: vmlinux.o failed: Error 3" in done.err
    assert klto("build", "-C", tree, "-b", build_dir).status == 0
    assert (build_dir / "vmlinux.o").read_bytes().endswith(b"objtool")


def test_killed_compiler_is_called_killed(klto: Klto, tree: Path, build_dir: Path) -> None:
    done = klto("build", "-C", tree, "-b", build_dir, env={"FAKE_FAIL": "objtool:137"})
    assert done.status == 1
    assert "something killed it" in done.err
    assert "-j" in done.err


@pytest.mark.slow
def test_killed_link_says_how_much_memory_it_had(
    klto: Klto, tree: Path, build_dir: Path, tmp_path: Path, llvm_bin: Path
) -> None:
    fake = _fake_toolchain(tmp_path, llvm_bin)
    linker = fake / "ld.lld"
    linker.unlink()
    linker.write_text(
        f'#!/bin/sh\ncase "$*" in *vmlinux.o*) [ -e init/main.o ] && kill -KILL $$ ;; esac\n'
        f'exec {llvm_bin}/ld.lld "$@"\n'
    )
    linker.chmod(0o755)
    done = klto("build", "-C", tree, "-b", build_dir, "-t", fake, "-j3")
    assert done.status == 1
    assert "the LTO link of vmlinux.o was killed (SIGKILL) when it had reached" in done.err
    assert "were available when it started" in done.err
    assert "--lto thin" in done.err


def _fake_toolchain(tmp_path: Path, llvm_bin: Path) -> Path:
    """A toolchain directory of links to the real one, of which a test may replace some."""
    folder = tmp_path / "fake-toolchain"
    folder.mkdir()
    for tool in llvm_bin.iterdir():
        (folder / tool.name).symlink_to(tool)
    return folder


@pytest.mark.slow
def test_native_code_where_lto_was_asked_for_is_no_lto_kernel(
    klto: Klto, tree: Path, build_dir: Path, llvm_bin: Path
) -> None:
    """Something replaced an object behind make's back."""
    assert klto("build", "-C", tree, "-b", build_dir).status == 0
    subprocess.run(
        [llvm_bin / "clang", "-c", tree / "init/part2.c", "-o", build_dir / "init/part2.o"], check=True
    )
    command = build_dir / "init/.part2.o.cmd"
    os.utime(command)
    done = klto("build", "-C", tree, "-b", build_dir)
    assert done.status == 3
    assert "init/part2.o: is native code in an LTO link" in done.err
    record = read_record(build_dir / ".klto/record.json")
    assert [(f["rule"], f["artifact"]) for f in record.findings if f["level"] == "error"] == [
        ("lto-lost", "init/part2.o")
    ]
    # The check runs beside the link and ends it.
    assert {stage.name: stage.status for stage in record.stages}["link"] == "failed"
    assert [(link.returncode, link.whole) for link in record.links if link.output == "vmlinux.o"] == [
        (1, False)
    ]
    assert not (build_dir / "vmlinux.o").exists()
    done = klto("build", "-C", tree, "-b", build_dir, "--fail-on", "never")
    assert done.status == 1
    assert "1 objects were compiled with -flto and are native code: init/part2.o" in done.err


# -- interrupted and killed ----------------------------------------------------------------------------------------


Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(tree: Path, build_dir: Path, llvm_bin: Path, tmp_path: Path) -> Iterator[Start]:
    """Start a klto build in a process group of its own, held at a step."""
    running: list[subprocess.Popen[str]] = []

    def begin(hold: str, *arguments: str) -> subprocess.Popen[str]:
        hold_file = tmp_path / "hold"
        env = klto_environment(llvm_bin, tmp_path / "cache") | {"FAKE_HOLD": f"{hold}:{hold_file}"}
        child = subprocess.Popen(
            [sys.executable, "-m", "klto", "build", "-C", tree, "-b", build_dir, *arguments],
            env=env,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        running.append(child)
        deadline = time.monotonic() + 60
        while not hold_file.exists():
            assert child.poll() is None, child.stderr.read() if child.stderr else ""
            assert time.monotonic() < deadline
            time.sleep(0.02)
        return child

    yield begin
    for child in running:
        if child.poll() is None:
            child.kill()
        child.wait()
        if child.stderr:
            child.stderr.close()


def _users_of(build_dir: Path) -> list[str]:
    """Command lines of living processes that work in the build dir."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit() and int(entry) != os.getpid():
            try:
                if Path(os.readlink(f"/proc/{entry}/cwd")).is_relative_to(build_dir):
                    found.append(Path(f"/proc/{entry}/cmdline").read_bytes().replace(b"\0", b" ").decode())
            except OSError:
                continue
    return found


def _wait_until_unused(build_dir: Path) -> None:
    deadline = time.monotonic() + 5
    while _users_of(build_dir):
        assert time.monotonic() < deadline, _users_of(build_dir)
        time.sleep(0.02)


def _finish_and_check(klto: Klto, tree: Path, build_dir: Path, llvm_bin: Path) -> None:
    """The next klto build ends with a right kernel: every object whole, objtool's mark on vmlinux.o."""
    done = klto("build", "-C", tree, "-b", build_dir)
    assert done.status == 0, done.err
    assert (build_dir / "vmlinux.o").read_bytes().endswith(b"objtool")
    assert (build_dir / "lib/single.o").read_bytes().startswith(b"\x7fELF")
    assert (build_dir / "lib/single.ko").read_bytes().startswith(b"\x7fELF")
    assert _make(tree, build_dir, llvm_bin) == []


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupt_ends_every_child_and_is_recorded(
    klto: Klto, tree: Path, build_dir: Path, llvm_bin: Path, start: Start, number: int
) -> None:
    child = start("objtool", "-j2")
    assert _users_of(build_dir)
    deadline = time.monotonic() + 20
    while read_record(build_dir / ".klto/record.json").stages[-1].name != "finish":
        assert time.monotonic() < deadline
        time.sleep(0.02)
    child.send_signal(number)
    assert child.wait(timeout=5) == 130
    assert _users_of(build_dir) == []
    record = read_record(build_dir / ".klto/record.json")
    assert (record.status, record.exit_status) == ("interrupted", 130)
    assert record.stages[-1].status == "interrupted"
    _finish_and_check(klto, tree, build_dir, llvm_bin)


@pytest.mark.slow
@pytest.mark.parametrize("step", ["objtool", "module-ld"])
@pytest.mark.parametrize("rebuild", [False, True])
def test_sigkill_of_everything_between_two_steps_of_a_recipe(
    klto: Klto, tree: Path, build_dir: Path, llvm_bin: Path, start: Start, step: str, rebuild: bool
) -> None:
    """With saved commands of an earlier build around, make alone would take the half-made target for done."""
    if rebuild:
        _make(tree, build_dir, llvm_bin)
        for name in ("init/part1.c", "lib/single.c"):
            source = tree / name
            source.write_text(source.read_text().replace("+ 1", "+ 7"))
    child = start(step, "-j1")
    _kill_all(child, build_dir)
    if rebuild:
        # The red case: this is what klto saves its users from.
        half_made = "vmlinux.o" if step == "objtool" else "lib/single.o"
        made = (build_dir / half_made).stat().st_mtime_ns
        assert made > (build_dir / half_made).with_name(f".{Path(half_made).name}.cmd").stat().st_mtime_ns
    assert read_record(build_dir / ".klto/record.json").status == "running"
    _finish_and_check(klto, tree, build_dir, llvm_bin)


def _kill_all(child: subprocess.Popen[str], build_dir: Path) -> None:
    """SIGKILL for klto and everything that works in the build dir, at once as an OOM killer of a cgroup does."""
    for entry in os.listdir("/proc"):
        if entry.isdigit() and int(entry) != os.getpid():
            try:
                if Path(os.readlink(f"/proc/{entry}/cwd")).is_relative_to(build_dir):
                    os.kill(int(entry), signal.SIGKILL)
            except OSError:
                continue
    child.kill()
    child.wait()
    _wait_until_unused(build_dir)


@pytest.mark.slow
def test_sigkill_of_klto_alone_ends_the_build(
    klto: Klto, tree: Path, build_dir: Path, llvm_bin: Path, start: Start
) -> None:
    child = start("objtool", "-j2")
    child.kill()
    child.wait()
    _wait_until_unused(build_dir)
    _finish_and_check(klto, tree, build_dir, llvm_bin)


@pytest.mark.slow
def test_saved_command_cut_short_by_a_kill(klto: Klto, tree: Path, build_dir: Path, llvm_bin: Path) -> None:
    """fixdep was killed while it wrote: the command is there, the dependencies are not."""
    _make(tree, build_dir, llvm_bin)
    command = build_dir / "init/.part1.o.cmd"
    text = command.read_text()
    command.write_text(text[: text.index("deps_")])
    (build_dir / ".klto").mkdir()
    (build_dir / ".klto/running").touch()
    done = klto("build", "-C", tree, "-b", build_dir)
    assert done.status == 0
    assert "init/part1.o" in read_record(build_dir / ".klto/record.json").removed
    assert "removed what a killed build left half made" in done.err
    assert "deps_init/part1.o" in command.read_text()


@pytest.mark.slow
def test_two_builds_in_one_dir_are_refused(klto: Klto, tree: Path, build_dir: Path, start: Start) -> None:
    start("objtool")
    done = klto("build", "-C", tree, "-b", build_dir)
    assert done.status == 2
    assert "another klto is at work" in done.err


# -- bad input ------------------------------------------------------------------------------------------------------


def test_read_only_build_dir(
    klto: Klto, tree: Path, mount_tmpfs: Callable[..., Path], llvm_bin: Path
) -> None:
    place = mount_tmpfs("size=1m")
    (place / ".config").write_text(thin_config(llvm_bin))
    subprocess.run(["mount", "-o", "remount,ro", place], check=True)
    done = klto("build", "-C", tree, "-b", place)
    assert done.status == 2
    assert "Read-only file system" in done.err
    assert len(done.err.splitlines()) <= 2


@pytest.mark.slow
@pytest.mark.parametrize("kib", [4, 12, 24, 40])
def test_full_disk(
    klto: Klto, tree: Path, mount_tmpfs: Callable[..., Path], llvm_bin: Path, kib: int
) -> None:
    """Wherever the space runs out: one clear line, and with space the next run finishes."""
    place = mount_tmpfs(f"size={kib}k")
    (place / ".config").write_text(thin_config(llvm_bin))
    done = klto("build", "-C", tree, "-b", place)
    assert done.status in (1, 2)
    assert "No space left on device" in done.err
    assert (place / ".config").read_text() == thin_config(llvm_bin)
    subprocess.run(["mount", "-o", "remount,size=4m", place], check=True)
    _finish_and_check(klto, tree, place, llvm_bin)


def test_no_configuration(klto: Klto, tree: Path, tmp_path: Path) -> None:
    done = klto("build", "-C", tree, "-b", tmp_path / "empty")
    assert done.status == 2
    assert "no configuration" in done.err
    assert "-k defconfig" in done.err
    assert not (tmp_path / "empty").exists()


def test_configuration_without_lto_is_asked_about(klto: Klto, tree: Path, build_dir: Path) -> None:
    (build_dir / ".config").write_text("CONFIG_64BIT=y\nCONFIG_LTO_NONE=y\n")
    done = klto("build", "-C", tree, "-b", build_dir)
    assert done.status == 2
    assert "--lto thin" in done.err
    assert "--lto keep" in done.err


def test_contradicting_lto(klto: Klto, tree: Path, build_dir: Path) -> None:
    done = klto("build", "-C", tree, "-b", build_dir, "--lto", "thin", "-K", "CONFIG_LTO_CLANG_FULL=y")
    assert done.status == 2
    assert "contradicts" in done.err


def test_no_jobs(klto: Klto, tree: Path, build_dir: Path) -> None:
    done = klto("build", "-C", tree, "-b", build_dir, "-j0")
    assert done.status == 2


# -- journal --------------------------------------------------------------------------------------------------------


def test_journal_has_steps_and_links(klto: Klto, tree: Path, build_dir: Path) -> None:
    assert klto("build", "-C", tree, "-b", build_dir).status == 0
    events = read_journal(build_dir / ".klto/events.jsonl")
    steps = [event.target for event in events if isinstance(event, Step)]
    assert steps.count("init/main.o") == 1
    assert [e.output for e in events if isinstance(e, LinkFinished)].count("vmlinux.o") == 1
