"""The shim, its process, and what it journals; with real clang and lld."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from klto.events import LinkFinished, LinkStarted, read_journal
from klto.kernel.jobserver import Jobserver
from klto.link.inputs import read_inputs
from klto.link.request import parse_request
from klto.link.shim import install_shims

#: Arguments that a shell script could spoil.
ODD = ["a b", "c'd", 'e"f', "$HOME", "`id`", "new\nline", "", "*", "-o", "ünï"]


@pytest.fixture
def objects(tmp_path: Path, llvm_bin: Path) -> Path:
    """A folder with two bitcode objects, a native one, and a thin archive of all three."""
    for name, flags in (("a", ["-flto=thin"]), ("b", ["-flto=thin"]), ("native", [])):
        (tmp_path / f"{name}.c").write_text(f"int {name}(int x) {{ return x + 1; }}\n")
        subprocess.run([llvm_bin / "clang", *flags, "-c", f"{name}.c"], cwd=tmp_path, check=True)
    subprocess.run(
        [llvm_bin / "llvm-ar", "cDPrST", "all.a", "a.o", "native.o", "b.o"], cwd=tmp_path, check=True
    )
    return tmp_path


def test_parse_request_reads_what_kbuild_passes() -> None:
    line = (
        "-m elf_x86_64 -mllvm -import-instr-limit=5 -z noexecstack -r -o vmlinux.o -T .tmp_initcalls.lds "
        "--whole-archive vmlinux.a --no-whole-archive --start-group lib/lib.a --end-group"
    )
    request = parse_request(line.split())
    assert request.output == "vmlinux.o"
    assert request.inputs == ("vmlinux.a", "lib/lib.a")
    assert request.relocatable
    assert not request.sets("thinlto-jobs", "threads")


@pytest.mark.parametrize("option", ["--threads=3", "-threads=3", "--thinlto-jobs=1"])
def test_parse_request_sees_options_of_the_user(option: str) -> None:
    assert parse_request(["-r", option, "x.o"]).sets("threads", "thinlto-jobs")


def test_parse_request_expands_response_files(tmp_path: Path) -> None:
    (tmp_path / "list").write_text("one.o 'two three.o'\n")
    assert parse_request(["-r", f"@{tmp_path / 'list'}", "-o", "x"]).inputs == ("one.o", "two three.o")
    assert parse_request(["@missing"]).inputs == ("@missing",)


def test_read_inputs_counts_members(objects: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(objects)
    found = read_inputs(parse_request(["-r", "all.a", "native.o", "missing.o", "a.c"]))
    assert (found.bitcode, found.native) == (2, 2)
    assert found.bitcode_bytes == sum(os.stat(name).st_size for name in ("a.o", "b.o"))


@pytest.mark.parametrize(
    "arguments", [["-o", "vmlinux", *ODD], ["-r", "-o", "lib/x.ko", *ODD], [], ["--version"], ODD]
)
def test_shim_passes_other_links_to_the_real_linker_unchanged(tmp_path: Path, arguments: list[str]) -> None:
    fake = tmp_path / "fake linker's"
    fake.write_text('#!/bin/sh\nprintf "%s\\0" "$@"\nexit 42\n')
    fake.chmod(0o755)
    shims = install_shims(tmp_path / "bin", "ld.lld", fake).folder
    done = subprocess.run([shims / "ld.lld", *arguments], capture_output=True, check=False)
    assert done.returncode == 42
    assert done.stdout == b"".join(os.fsencode(a) + b"\0" for a in arguments) or (
        not arguments and done.stdout == b"\0"
    )
    assert done.stderr == b""


def _link(objects: Path, llvm_bin: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    shims = install_shims(objects / "bin", "ld.lld", llvm_bin / "ld.lld").folder
    return subprocess.run(
        [shims / "ld.lld", *arguments],
        cwd=objects,
        env={**os.environ, "KLTO_JOURNAL": str(objects / "journal"), **env},
        capture_output=True,
        text=True,
        check=False,
    )


def test_lto_link_gives_the_linkers_bytes_and_is_journaled(objects: Path, llvm_bin: Path) -> None:
    arguments = ["-r", "--whole-archive", "all.a", "-o"]
    subprocess.run([llvm_bin / "ld.lld", *arguments, "plain.o"], cwd=objects, check=True)
    with Jobserver(str(objects / "fifo"), 3) as server:
        done = _link(objects, llvm_bin, *arguments, "klto.o", **server.environment())
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (objects / "klto.o").read_bytes() == (objects / "plain.o").read_bytes()
    began, ended = read_journal(objects / "journal")
    assert isinstance(began, LinkStarted)
    assert isinstance(ended, LinkFinished)
    assert (began.output, began.bitcode_inputs, began.native_inputs, began.jobs) == ("klto.o", 2, 1, 2)
    assert began.directory == str(objects)
    assert (ended.output, ended.returncode) == ("klto.o", 0)
    assert ended.peak_bytes > 10 << 20
    assert ended.cpu_seconds > 0


def test_native_relocatable_link_is_not_an_lto_link(objects: Path, llvm_bin: Path) -> None:
    done = _link(objects, llvm_bin, "-r", "native.o", "-o", "out.o")
    assert done.returncode == 0
    assert (objects / "out.o").exists()
    assert not (objects / "journal").exists()


def test_failing_link_keeps_the_linkers_words_and_status(objects: Path, llvm_bin: Path) -> None:
    done = _link(objects, llvm_bin, "-r", "a.o", "missing.o", "-o", "out.o")
    assert done.returncode == 1
    assert "missing.o" in done.stderr
    ended = read_journal(objects / "journal")[-1]
    assert isinstance(ended, LinkFinished)
    assert ended.returncode == 1


def test_killed_link_ends_as_killed_and_gives_its_jobs_back(objects: Path, tmp_path: Path) -> None:
    fake = tmp_path / "fake_linker"
    fake.write_text("#!/bin/sh\nkill -KILL $$\n")
    fake.chmod(0o755)
    shims = install_shims(tmp_path / "bin", "ld.lld", fake).folder
    with Jobserver(str(tmp_path / "fifo"), 2) as server:
        env = {**os.environ, **server.environment(), "KLTO_JOURNAL": str(tmp_path / "journal")}
        done = subprocess.run([shims / "ld.lld", "-r", "a.o", "-o", "x.o"], cwd=objects, env=env, check=False)
        assert done.returncode == -signal.SIGKILL
        assert os.read(os.open(server.path, os.O_RDONLY | os.O_NONBLOCK), 5) == b"+"
    ended = read_journal(tmp_path / "journal")[-1]
    assert isinstance(ended, LinkFinished)
    assert ended.returncode == -signal.SIGKILL


def test_term_reaches_the_linker(objects: Path, tmp_path: Path) -> None:
    fake = tmp_path / "fake_linker"
    fake.write_text("#!/bin/sh\necho ready\nexec sleep 987650\n")
    fake.chmod(0o755)
    shims = install_shims(tmp_path / "bin", "ld.lld", fake).folder
    link = subprocess.Popen(
        [shims / "ld.lld", "-r", "a.o", "-o", "x.o"], cwd=objects, stdout=subprocess.PIPE, text=True
    )
    assert link.stdout is not None
    assert link.stdout.readline() == "ready\n"
    link.terminate()
    assert link.wait(timeout=10) == -signal.SIGTERM


def test_shim_without_klto_still_links(objects: Path, llvm_bin: Path) -> None:
    """No journal and no jobserver in the environment: make from another shell, say."""
    shims = install_shims(objects / "bin", "ld.lld", llvm_bin / "ld.lld").folder
    env = {k: v for k, v in os.environ.items() if not k.startswith("KLTO")}
    subprocess.run([shims / "ld.lld", "-r", "a.o", "-o", "x.o"], cwd=objects, env=env, check=True)
    assert (objects / "x.o").stat().st_size > 0


def test_install_shims_replaces_what_was_there(tmp_path: Path) -> None:
    install_shims(tmp_path / "bin", "ld.lld-14", Path("/x"))
    install_shims(tmp_path / "bin", "ld.lld", Path("/y"))
    assert [p.name for p in (tmp_path / "bin").iterdir()] == ["ld.lld"]


def test_linker_with_an_absolute_path_is_caught_by_makes_shell(tmp_path: Path) -> None:
    """And nowhere else: quoted text that names it, as in saved commands, stays as it is."""
    real = tmp_path / "real" / "ld.lld"
    real.parent.mkdir()
    real.write_text("#!/bin/sh\necho real\n")
    real.chmod(0o755)
    shims = install_shims(tmp_path / "bin", str(real), real)
    assert real.read_text() == "#!/bin/sh\necho real\n"
    assert shims.shell is not None
    (shims.folder / "ld.lld").write_text("#!/bin/sh\necho shim\n")
    command = f"set -e; {real} -r; printf '%s\\n' 'savedcmd_x := {real} -r'; true && {real}"
    done = subprocess.run([shims.shell, "-c", command], capture_output=True, text=True, check=True)
    assert done.stdout == f"shim\nsavedcmd_x := {real} -r\nshim\n"
