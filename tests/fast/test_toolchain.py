"""Which LLVM is taken, in which spelling, and what is said when it cannot be used."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from klto.errors import UsageError
from klto.kernel import toolchain as toolchain_module
from klto.kernel.toolchain import TOOLS, candidates, find_toolchain
from klto.kernel.toolchain_made import made_with
from klto.kernel.toolchain_probe import AnswerCache
from klto.kernel.tree import KernelTree
from tests.conftest import missing

FakeLlvm = Callable[..., Path]


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    toolchain_module._answers.cache_clear()


@pytest.fixture
def nothing_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine without any LLVM; its PATH and /usr/lib are folders of the test."""
    for name in ("bin", "usr-lib"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(toolchain_module, "_DEBIAN_DIRS", tmp_path / "usr-lib")
    return tmp_path


@pytest.fixture
def fake_llvm(nothing_installed: Path) -> FakeLlvm:
    """Put fake tools somewhere: scripts that say a version, and take everything for granted."""

    def install(version: str, folder: str = "bin", suffix: str = "", without: str = "") -> Path:
        place = nothing_installed / folder
        place.mkdir(parents=True, exist_ok=True)
        for tool in TOOLS:
            if tool != without:
                said = {"clang": f"Fake clang version {version}", "ld.lld": f"Fake LLD {version}"}
                script = place / (tool + suffix)
                script.write_text(
                    f'#!/bin/sh\ncase "$1" in -dumpversion) echo {version} ;;\n'
                    f"*) echo '{said.get(tool, 'Fake LLVM version ' + version)}' ;;\nesac\n"
                )
                script.chmod(0o755)
        return place

    return install


@pytest.fixture
def build_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "build"
    folder.mkdir()
    return folder


def made(build_dir: Path, command: str, text: str | None = None, file: str = "init/.main.o.cmd") -> None:
    """Make ``build_dir`` look as if ``command`` had compiled there."""
    (build_dir / file).parent.mkdir(parents=True, exist_ok=True)
    (build_dir / file).write_text(f"savedcmd_init/main.o := {command} -Wp,-MMD -c -o init/main.o\n")
    if text is not None:
        (build_dir / ".config").write_text(f'CONFIG_CC_VERSION_TEXT="{text}"\n')


def test_suffixed_names_in_path(fake_llvm: FakeLlvm) -> None:
    place = fake_llvm("19.1.7", suffix="-19")
    found = find_toolchain(request="llvm-19")
    assert (found.spelling, found.path_prefix, found.suffix) == ("LLVM=-19", None, "-19")
    assert found.make_args() == ["LLVM=-19"]
    assert found.linker_name() == "ld.lld-19"
    assert found.ld_lld == place / "ld.lld-19"
    assert (found.clang_text, found.clang_version) == ("Fake clang version 19.1.7", (19, 1, 7))
    assert found.lld_version == (19, 1, 7)


def test_number_without_suffixed_names_is_debians_directory(fake_llvm: FakeLlvm) -> None:
    place = fake_llvm("19.1.7", "usr-lib/llvm-19/bin")
    fake_llvm("19.1.7", suffix="-19", without="llvm-nm")
    found = find_toolchain(request="llvm-19")
    assert (found.spelling, found.path_prefix, found.linker_name()) == ("LLVM=1", place, "ld.lld")
    assert found.search_path().split(":")[0] == str(place)


def test_tree_that_does_not_know_suffixes(fake_llvm: FakeLlvm, tmp_path: Path) -> None:
    place = fake_llvm("13.0.1", "usr-lib/llvm-13/bin")
    fake_llvm("13.0.1", suffix="-13")
    old = KernelTree(tmp_path, "5.17", (5, 17, 0), "x86_64", has_llvm_suffix=False)
    assert find_toolchain(old).path_prefix == place
    assert find_toolchain(old, request="llvm-13").spelling == "LLVM=1"


def test_directory_comes_first_in_path_and_is_complete_itself(fake_llvm: FakeLlvm) -> None:
    fake_llvm("14.0.6")
    place = fake_llvm("22.1.0", "opt/llvm")
    found = find_toolchain(request=str(place))
    assert (found.spelling, found.path_prefix, found.llvm_nm) == ("LLVM=1", place, place / "llvm-nm")
    (place / "llvm-nm").unlink()
    with pytest.raises(UsageError, match=f"toolchain {place} is not complete: no llvm-nm"):
        find_toolchain(request=str(place))


def test_default_is_paths_then_the_newest_complete(fake_llvm: FakeLlvm) -> None:
    fake_llvm("9.0.0", suffix="-9")
    fake_llvm("19.1.7", suffix="-19")
    fake_llvm("22.1.0", suffix="-22", without="ld.lld")
    assert find_toolchain().spelling == "LLVM=-19"
    assert [(c.label, c.missing) for c in candidates()] == [
        ("llvm-22", ("ld.lld",)),
        ("llvm-19", ()),
        ("llvm-9", ()),
    ]
    fake_llvm("14.0.6")
    assert find_toolchain().clang_version == (14, 0, 6)
    assert find_toolchain(request="llvm").spelling == "LLVM=1"


@pytest.mark.parametrize("spelling", ["savedcmd_", "cmd_"])
def test_what_a_build_dir_was_made_with(build_dir: Path, spelling: str) -> None:
    assert made_with(build_dir) is None
    for command, expected in {
        "clang": "LLVM=1",
        "clang-19": "LLVM=-19",
        "/opt/llvm/bin/clang": "LLVM=/opt/llvm/bin/",
        "gcc": None,
        "/opt/bin/clang-19": None,
        "ccache clang": None,
    }.items():
        made(build_dir, command)
        file = build_dir / "init/.main.o.cmd"
        file.write_text(file.read_text().replace("savedcmd_", spelling))
        found = made_with(build_dir)
        assert found is not None
        assert (found.spelling, found.compiled) == (expected, True), command


def test_configured_build_dir_without_kernel_objects(build_dir: Path, fake_llvm: FakeLlvm) -> None:
    fake_llvm("19.1.7", suffix="-19")
    fake_llvm("22.1.0", suffix="-22")
    made(build_dir, "clang-19", file="scripts/basic/.fixdep.cmd")
    found = made_with(build_dir)
    assert found is not None
    assert not found.compiled
    toolchain = find_toolchain(build_dir=build_dir)
    assert toolchain.spelling == "LLVM=-19"
    assert find_toolchain(request="llvm-22").would_recompile(build_dir) is None


def test_build_dir_keeps_its_spelling(fake_llvm: FakeLlvm, build_dir: Path) -> None:
    place = fake_llvm("19.1.7", "usr-lib/llvm-19/bin")
    for tool in TOOLS:
        (place.parent.parent.parent / "bin" / f"{tool}-19").symlink_to(place / tool)
    fake_llvm("22.1.0", suffix="-22")
    for command, spelling, prefix in (
        ("clang-19", "LLVM=-19", None),
        (f"{place}/clang", f"LLVM={place}/", None),
        ("clang", "LLVM=1", place),
    ):
        made(build_dir, command, "Fake clang version 19.1.7")
        for request in (None, "llvm-19", str(place)):
            found = find_toolchain(build_dir=build_dir, request=request)
            assert (found.spelling, found.path_prefix) == (spelling, prefix), (command, request)
            assert found.would_recompile(build_dir) is None
    made(build_dir, f"{place}/clang")
    assert find_toolchain(build_dir=build_dir).linker_name() == str(place / "ld.lld")


def test_plain_name_is_the_clang_of_the_version_text(fake_llvm: FakeLlvm, build_dir: Path) -> None:
    """``LLVM=1`` was made with what PATH meant on that day."""
    place = fake_llvm("19.1.7", "usr-lib/llvm-19/bin")
    fake_llvm("14.0.6")
    made(build_dir, "clang", "Fake clang version 19.1.7")
    assert find_toolchain(build_dir=build_dir).path_prefix == place
    made(build_dir, "clang", "Fake clang version 14.0.6")
    assert find_toolchain(build_dir=build_dir).path_prefix is None


def test_another_toolchain_recompiles_and_says_so(fake_llvm: FakeLlvm, build_dir: Path) -> None:
    fake_llvm("19.1.7", suffix="-19")
    fake_llvm("22.1.0", suffix="-22")
    made(build_dir, "clang-19", "Fake clang version 19.1.7")
    said = find_toolchain(build_dir=build_dir, request="llvm-22").would_recompile(build_dir)
    assert said is not None
    assert "Fake clang version 19.1.7" in said
    assert "Fake clang version 22.1.0" in said
    # The configuration that was compiled counts, not one that was made since.
    (build_dir / "include/config").mkdir(parents=True)
    (build_dir / "include/config/auto.conf").write_text(
        'CONFIG_CC_VERSION_TEXT="Fake clang version 22.1.0"\n'
    )
    made(build_dir, "clang-22")
    assert find_toolchain(build_dir=build_dir).would_recompile(build_dir) is None
    made(build_dir, "gcc")
    said = find_toolchain(build_dir=build_dir, request="llvm-22").would_recompile(build_dir)
    assert said is not None
    assert "not LLVM's" in said


def test_toolchain_of_a_build_dir_that_is_gone(fake_llvm: FakeLlvm, build_dir: Path) -> None:
    fake_llvm("22.1.0", suffix="-22")
    made(build_dir, "clang-19", "Fake clang version 19.1.7")
    found = find_toolchain(build_dir=build_dir)
    assert found.spelling == "LLVM=-22"
    assert found.would_recompile(build_dir) is not None


@pytest.mark.parametrize(
    ("request_", "message", "hint"),
    [
        (None, "no LLVM found", "apt-get install clang lld llvm"),
        ("llvm", "no LLVM in PATH", "apt-get install clang lld llvm"),
        ("llvm-19", "llvm-19 is not installed", "apt-get install clang-19 lld-19 llvm-19"),
        ("gcc", "no toolchain 'gcc'", "apt-get install"),
    ],
)
@pytest.mark.usefixtures("nothing_installed")
def test_nothing_installed(request_: str | None, message: str, hint: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        find_toolchain(request=request_)
    assert hint in (caught.value.hint or "")
    assert candidates() == []


def test_missing_tool_names_its_package_and_what_else_is_there(fake_llvm: FakeLlvm) -> None:
    fake_llvm("19.1.7", suffix="-19", without="ld.lld")
    fake_llvm("22.1.0", suffix="-22")
    with pytest.raises(UsageError, match=r"llvm-19 is not complete: no ld\.lld") as caught:
        find_toolchain(request="llvm-19")
    assert caught.value.hint == "install it: apt-get install lld-19; or use what is here: -t llvm-22"


@pytest.mark.parametrize(
    ("tool", "script", "said"),
    [
        ("llvm-objcopy", "#!/bin/sh\necho broken library >&2\nexit 127\n", "exit status 127 .broken library"),
        ("llvm-strip", "#!/bin/sh\necho LLVM version 19\nexit 3\n", "exit status 3"),
        ("clang", "#!/bin/sh\nkill -SEGV $$\n", "killed by SIGSEGV"),
        ("clang", "#!/bin/sh\necho 'gcc (Debian) version 12'\n", "is not clang"),
        ("ld.lld", "#!/bin/sh\necho 'GNU ld 2.40 version'\n", "does not say its version"),
        ("llvm-ar", "", "does not work|cannot start"),
    ],
)
def test_broken_tool(fake_llvm: FakeLlvm, tool: str, script: str, said: str) -> None:
    place = fake_llvm("19.1.7")
    (place / tool).write_text(script)
    with pytest.raises(UsageError, match=said) as caught:
        find_toolchain(request="llvm")
    assert str(place / tool) in caught.value.message
    assert "\n" not in caught.value.message


def test_tool_that_hangs(fake_llvm: FakeLlvm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("klto.kernel.toolchain_probe.ANSWER_SECONDS", 0.2)
    place = fake_llvm("19.1.7")
    (place / "clang").write_text("#!/bin/sh\nwhile :; do /bin/sleep 1; done\n")
    with pytest.raises(UsageError, match=r"no answer within 0\.2 s"):
        find_toolchain(request="llvm")


def llvm(number: int) -> Path:
    """Debian's LLVM, asked for by number."""
    folder = Path(f"/usr/lib/llvm-{number}/bin")
    if any(not (folder / tool).exists() for tool in TOOLS):
        missing(f"LLVM {number} (clang-{number}, lld-{number}, llvm-{number})")
    return folder


def mixed(tmp_path: Path, clang: Path, others: Path) -> str:
    """A directory with one LLVM's clang and another's other tools."""
    folder = tmp_path / "mixed"
    folder.mkdir()
    for tool in TOOLS:
        (folder / tool).symlink_to((clang if tool == "clang" else others) / tool)
    return str(folder)


def x86_64(tmp_path: Path) -> KernelTree:
    return KernelTree(tmp_path, "6.12.0", (6, 12, 0), "x86_64")


@pytest.mark.parametrize(("clang", "lld"), [(19, 14), (22, 19), (22, 14)])
def test_clang_newer_than_the_linker_is_refused(tmp_path: Path, clang: int, lld: int) -> None:
    with pytest.raises(UsageError, match=rf"clang {clang}\..* and LLD {lld}\..* do not fit") as caught:
        find_toolchain(x86_64(tmp_path), request=mixed(tmp_path, llvm(clang), llvm(lld)))
    assert "\n" not in caught.value.message


def test_nm_must_read_bitcode_too(tmp_path: Path) -> None:
    place = Path(mixed(tmp_path, llvm(22), llvm(22)))
    (place / "llvm-nm").unlink()
    (place / "llvm-nm").symlink_to(llvm(14) / "llvm-nm")
    with pytest.raises(UsageError, match=r"do not fit together .*llvm-nm"):
        find_toolchain(x86_64(tmp_path), request=str(place))


@pytest.mark.parametrize("number", [14, 19, 22])
@pytest.mark.parametrize("arch", ["x86_64", "arm64"])
def test_one_llvm_fits(tmp_path: Path, number: int, arch: str) -> None:
    tree = KernelTree(tmp_path, "6.12.0", (6, 12, 0), arch)
    assert find_toolchain(tree, request=str(llvm(number))).clang_version[0] == number


def test_linker_that_cannot_make_the_architecture(tmp_path: Path, llvm_bin: Path) -> None:
    place = Path(mixed(tmp_path, llvm_bin, llvm_bin))
    (place / "ld.lld").unlink()
    (place / "ld.lld").write_text(
        f'#!/bin/sh\ncase "$*" in --version) exec {llvm_bin}/ld.lld --version ;; esac\n'
        "echo 'ld.lld: error: unknown emulation' >&2\nexit 1\n"
    )
    (place / "ld.lld").chmod(0o755)
    with pytest.raises(UsageError, match=r"do not fit together for x86_64-linux-gnu: .*unknown emulation"):
        find_toolchain(x86_64(tmp_path), request=str(place))


@pytest.mark.parametrize("number", [14, 19, 22])
def test_the_linker_is_asked_what_it_takes(number: int) -> None:
    found = find_toolchain(request=str(llvm(number)))
    assert found.supports("--thinlto-cache-dir=x")
    assert found.supports("-mllvm", "-import-instr-limit=5")
    assert found.supports("--threads=2", "--lto-O2")
    assert not found.supports("--no-such-option")
    assert not found.supports("--version")
    assert not found.supports("-mllvm", "-no-such-option")
    assert not found.supports("-mllvm", "-import-instr-limit=many")
    assert not found.supports("--thinlto-cache-policy=nonsense")


def test_asked_once_and_again_after_an_update(tmp_path: Path, llvm_bin: Path) -> None:
    tool = tmp_path / "clang"
    shutil.copy(llvm_bin / "llvm-nm", tool)
    asked: list[int] = []

    def ask() -> int:
        asked.append(len(asked))
        return asked[-1]

    file = tmp_path / "cache.json"
    for _ in range(2):
        assert AnswerCache(file).get("question", [tool], ask) == 0
    assert AnswerCache(file).get("another", [tool], ask) == 1
    status = tool.stat()
    os.utime(tool, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert AnswerCache(file).get("question", [tool], ask) == 2
    tool.write_bytes(tool.read_bytes() + b"\0")
    os.utime(tool, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert AnswerCache(file).get("question", [tool], ask) == 3


def test_wrappers_are_asked_every_time(tmp_path: Path, llvm_bin: Path) -> None:
    script, renamed = tmp_path / "clang", tmp_path / "tool"
    script.write_text("#!/bin/sh\n")
    shutil.copy(llvm_bin / "llvm-nm", tmp_path / "ccache")
    renamed.symlink_to("ccache")
    for tool in (script, renamed):
        answers = iter([1, 2])
        cache = AnswerCache(tmp_path / "cache.json")
        assert [cache.get("question", [tool], lambda a=answers: next(a)) for _ in range(2)] == [1, 2]


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"{",
        b"[]",
        b'{"schema": "other/1"}',
        b"\xff\xfe",
        b'{"schema": "klto/toolchain/1"}',
        b"[" * 99999,
    ],
)
def test_damaged_cache_is_replaced(tmp_path: Path, llvm_bin: Path, damage: bytes) -> None:
    file = tmp_path / "cache.json"
    file.write_bytes(damage)
    assert AnswerCache(file).get("question", [llvm_bin / "llvm-nm"], lambda: "answer") == "answer"
    assert list(json.loads(file.read_text())["answers"].values()) == ["answer"]


def test_cache_that_cannot_be_written(tmp_path: Path, llvm_bin: Path) -> None:
    (tmp_path / "file").touch()
    cache = AnswerCache(tmp_path / "file/cache.json")
    assert cache.get("question", [llvm_bin / "llvm-nm"], lambda: "answer") == "answer"


def test_second_search_starts_no_program(
    tmp_path: Path, llvm_bin: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = find_toolchain(x86_64(tmp_path), request=str(llvm_bin))
    toolchain_module._answers.cache_clear()

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a program was started")

    monkeypatch.setattr("klto.process.run", refuse)
    assert find_toolchain(x86_64(tmp_path), request=str(llvm_bin)) == first
