"""The matcher and the command: logs of any kind, what is said of them, and the build dir."""

from __future__ import annotations

import gzip
import io
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from objects_helpers import compiled, run, tool

from klto.cli import main
from klto.explain import explain_log, source
from klto.explain.conclude import source_place
from klto.explain.conditions import Facts, facts_of_banner
from klto.explain.knowledge import When
from klto.explain.literals import Literals
from klto.explain.source import windows
from klto.report.explanations import SCHEMA

DUPLICATE = b"ld.lld: error: duplicate symbol: dup\n>>> defined in a.o\n>>> defined in b.o\n"
KILLED = b"make[2]: *** [scripts/Makefile.vmlinux_o:65: vmlinux.o] Error 137\n"
NOISE = b"  CC      drivers/net/tun.o\n" * 2000


def _ids(log: object) -> list[str]:
    return [one.id for one in explain_log(log).explanations]  # type: ignore[arg-type]


def test_lines_bytes_text_and_streams_are_the_same() -> None:
    text = DUPLICATE.decode()
    for log in (
        DUPLICATE,
        text,
        text.splitlines(),
        io.BytesIO(DUPLICATE),
        io.StringIO(text),
        iter([DUPLICATE]),
    ):
        assert _ids(log) == ["duplicate-symbol"]


def test_line_numbers_are_an_editors() -> None:
    found = explain_log(NOISE + b"a\rb\rc\r\n" * 10 + DUPLICATE + NOISE)
    assert found.explanations[0].lines[0].number == 2011
    assert [line.text for line in found.explanations[0].lines[1:]] == [
        ">>> defined in a.o",
        ">>> defined in b.o",
    ]
    assert found.log_lines == 4014


def test_several_failures_first_error_and_stage() -> None:
    found = explain_log(NOISE + DUPLICATE + NOISE + KILLED)
    assert [one.id for one in found.explanations] == ["duplicate-symbol", "killed-link"]
    assert found.first_error is not None
    assert "duplicate symbol" in found.first_error.text
    assert found.failed_targets == ("vmlinux.o",)
    assert found.stage == "vmlinux.o-link"


def test_warnings_come_after_errors_and_are_counted() -> None:
    flood = b"".join(
        b"d/m%d.lto.o: warning: objtool: .text.f%d: unexpected end of section\n" % (i, i) for i in range(9000)
    )
    found = explain_log(flood + DUPLICATE)
    assert [(one.id, one.count) for one in found.explanations] == [
        ("duplicate-symbol", 1),
        ("objtool-unexpected-end", 9000),
    ]
    assert not found.explanations[1].count_exact, "those beyond the first were counted by their literal alone"


def test_other_warnings_are_folded() -> None:
    log = b"".join(
        b"drivers/x%d.c:%d:1: warning: unused variable 'v%d' [-Wunused]\n" % (i, i, i) for i in range(500)
    )
    found = explain_log(log)
    assert [(fold.count, fold.line.number) for fold in found.noise] == [(500, 1)]


def test_the_failing_target_gives_the_remedy_its_path() -> None:
    log = 'ld.lld: error: call to __read_overflow marked "dontcall-error": detected read beyond size of object\n'
    log += "make[6]: *** [scripts/Makefile.build:510: drivers/gpu/drm/gud/gud.lto.o] Error 1\n"
    (one,) = explain_log(log).explanations
    assert "klto build --no-lto drivers/gpu/drm/gud/" in [remedy.command for remedy in one.remedies]


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("mm/built-in.a(gup.o at 2432)", "mm/gup.c"),
        ("vmlinux.a(gup.o at 2432)", None),
        ("drivers/net/tun.ko", "drivers/net/"),
        ("kernel/fork.c", "kernel/fork.c"),
        ("/build/x/fork.o", None),
        ("../x/fork.o", None),
        ("vmlinux.o", None),
    ],
)
def test_source_places(name: str, place: str | None) -> None:
    assert source_place(name) == place


def test_torn_at_both_ends_and_in_one_line_without_end() -> None:
    assert _ids(b"ror: gone\n" + DUPLICATE[:-5]) == ["duplicate-symbol"]
    assert _ids(b"x" * 3_000_000 + b" ld.lld: error: duplicate symbol: dup " + b"y" * 3_000_000) == [
        "duplicate-symbol"
    ]
    assert _ids(DUPLICATE[:40]) == ["duplicate-symbol"]


def test_a_quiet_tool_leaves_makes_report() -> None:
    found = explain_log(
        "  FOO     bar.x\nsomething went wrong\nmake[1]: *** [Makefile:3: bar.x] Error 1\n"
        "make: *** [Makefile:9: sub-make] Error 2\n"
    )
    assert found.explanations == ()
    assert [line.number for line in found.unexplained] == [3]
    assert "something went wrong" in [line.text for line in found.unexplained_context]
    assert found.failed_targets == ("bar.x",)


def test_conditions_of_the_kernels_banner_lower_the_confidence() -> None:
    line = "WARNING: CPU: 0 PID: 96 at kernel/kexec_file.c:945 kexec_load_purgatory+0x2c8/0x3c0\n"
    banner = "[ 0.0] Linux version 6.12.117 (u@h) (Debian clang version 19.1.7, Debian LLD 19.1.7) #1 SMP\n"
    (plain,), (here,) = explain_log(line).explanations, explain_log(banner + line).explanations
    assert (plain.confidence, here.confidence) == ("high", "medium")
    assert here.found == ("kernel is 6.12 here, and this was fixed in 6.10",)


def test_facts_against_conditions() -> None:
    facts = Facts((6, 1), (14, 0), "arm64", frozenset(("CONFIG_KASAN=y",)))
    when = When("6.2", None, None, "14", ["x86_64"], ["CONFIG_BTF=y", "!CONFIG_KASAN", "CONFIG_KASAN=y"])
    assert len(list(facts.against(when))) == 5
    assert list(Facts().against(when)) == []
    assert facts_of_banner("no banner") == Facts()


@given(st.binary(max_size=3000))
def test_any_bytes(log: bytes) -> None:
    explain_log(log)
    assert b"".join(w.data[w.begin : w.end] for w in windows(io.BytesIO(log))) == source.without_controls(log)


@given(st.data())
def test_damaged_logs(data: st.DataObject) -> None:
    log = bytearray(
        NOISE[:300] + DUPLICATE + KILLED + b"ld.lld: error: undefined symbol: f\n>>> referenced by x\n"
    )
    for _ in range(data.draw(st.integers(0, 12))):
        log[data.draw(st.integers(0, len(log) - 1))] = data.draw(st.integers(0, 255))
    explain_log(bytes(log))


@given(
    st.lists(
        st.sampled_from([b"\x1b[0m", b"\x1b[01;31m", b"\x1b", b"\r\n", b"\r", b"\n", b"error: ", b"x" * 50])
    ),
    st.integers(1, 40),
)
def test_windows_do_not_depend_on_how_a_log_arrives(parts: list[bytes], step: int) -> None:
    log = b"".join(parts)

    class Slow:
        def __init__(self) -> None:
            self.at = 0

        def read(self, size: int, /) -> bytes:
            self.at += step
            return log[self.at - step : self.at]

    whole = list(windows(io.BytesIO(log)))
    torn = list(windows(Slow()))
    assert b"".join(w.data[w.begin : w.end] for w in torn) == b"".join(w.data[w.begin : w.end] for w in whole)
    assert torn[-1].last_line == whole[-1].last_line


_CONTROLS = [
    *(b"\x1b[0m", b"\x1b[01;31m", b"\x1b[38;2;255;255;255m", b"\x1b[K", b"\x1b[m", b"\x1b[1 q", b"\x1b(B"),
    *(b"\x1b]0;title\x07", b"\x1b[1;2;3;4;5;6;7;8;9m", b"\r\n", b"\r", b"\n", b"error: "),
    *(
        b"\x7f",
        b"\x00",
        b"\x01",
        b"m",
        b"[1m",
        b"\xff\xfe",
        b"\x1b",
        b"\x1b[12",
        b"\x1b]0;x",
        b"\x1b\\",
        b"]0;x",
        b"[",
        b"\x07",
    ),
]


@given(st.lists(st.sampled_from(_CONTROLS)))
def test_many_escapes_go_as_few_do(parts: list[bytes]) -> None:
    log = b"".join(parts)
    few = source.without_controls(log)
    assert log.count(b"\x1b") < source._MANY_ESCAPES
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(source, "_MANY_ESCAPES", 0)
        assert source.without_controls(log) == few


def test_colours_are_looked_for_in_arrays() -> None:
    line = b"\x1b[1mld: \x1b[0;1;31merror: \x1b[0mno\x1b[K\r\n\x1b["
    assert source._in_arrays(line, 0x7F) == b"ld: error: no\n\x1b["
    assert source._in_arrays(line + b"\r", 0x7F) == b"ld: error: no\r\n\x1b[\r"


def test_windows_carry_on_over_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "CHUNK", 1000)
    monkeypatch.setattr(source, "CONTEXT", 700)
    found = explain_log(NOISE + DUPLICATE + NOISE + KILLED + NOISE)
    assert [(one.id, one.lines[0].number) for one in found.explanations] == [
        ("duplicate-symbol", 2001),
        ("killed-link", 4004),
    ]


@given(
    st.lists(st.binary(min_size=7, max_size=12), min_size=1, max_size=5),
    st.lists(st.binary(max_size=9), max_size=30),
    st.data(),
)
def test_literals_are_found_wherever_they_lie(
    words: list[bytes], filler: list[bytes], data: st.DataObject
) -> None:
    text = b"".join(part + data.draw(st.sampled_from(words)) for part in filler)
    wanted = {w: [i for i in range(len(text)) if text.startswith(w, i)] for w in set(words)}
    finder = Literals(sorted(set(words)))
    found = finder.find(text + bytes(8), 0, len(text))
    for number, word in enumerate(finder.literals):
        places = [at for at in found.get(number, ()) if text.startswith(word, int(at))]
        assert places == wanted[word]


# The command.
def test_the_command_text_json_stdin_and_gzip(
    tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    log = tmp_path / "log"
    log.write_bytes(DUPLICATE)
    assert main(["explain", str(log)]) == 0
    assert b"duplicate-symbol, stage vmlinux.o-link" in capsysbinary.readouterr().out
    log.write_bytes(gzip.compress(DUPLICATE))
    assert main(["explain", "--json", str(log)]) == 0
    said = json.loads(capsysbinary.readouterr().out)
    assert said["schema"] == SCHEMA == "klto/explain/1"
    (one,) = said["explanations"]
    for field in (
        "id",
        "title",
        "stage",
        "confidence",
        "culprit",
        "lines",
        "cause",
        "remedies",
        "references",
    ):
        assert one[field], field
    assert said["unexplained"] == []
    piped = subprocess.run(
        [sys.executable, "-m", "klto", "explain", "-"], input=KILLED, capture_output=True, check=True
    )
    assert b"killed-link" in piped.stdout


def test_the_command_reads_a_named_pipe(tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(DUPLICATE,))
    writer.start()
    assert main(["explain", str(pipe)]) == 0
    writer.join()
    assert b"duplicate-symbol" in capsysbinary.readouterr().out


def test_the_command_lists(capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    assert main(["explain", "--list", "--json"]) == 0
    assert len(json.loads(capsysbinary.readouterr().out)["entries"]) >= 60
    assert main(["explain", "--list"]) == 0
    assert b"killed-link" in capsysbinary.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{tmp}/none"], b"cannot read {tmp}/none: No such file"),
        (["{tmp}"], b"Is a directory"),
        (["{tmp}/torn.gz"], b"cannot unpack"),
        (["x", "-b", "{tmp}/none"], b"no build dir"),
        (["-b", "{tmp}"], b"no log of a build by klto"),
    ],
)
def test_the_command_refuses(
    arguments: list[str], message: bytes, tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    (tmp_path / "torn.gz").write_bytes(gzip.compress(DUPLICATE)[:30])
    assert main(["explain", *(a.replace("{tmp}", str(tmp_path)) for a in arguments)]) == 2
    assert message.replace(b"{tmp}", str(tmp_path).encode()) in capsysbinary.readouterr().err


# The build dir.
@pytest.fixture
def build_dir(tmp_path: Path) -> Path:
    """vmlinux.a of three bitcode files: two define one label in assembly, one has a flag of its own."""
    sources = {
        "kernel/fork.c": ('asm("twice: nop"); int fork_it(void) { return 1; }', "-mcmodel=kernel"),
        "mm/gup.c": ('asm("twice: nop"); void bug(void); void gup(void) { bug(); }', "-mcmodel=kernel"),
        "lib/zstd.c": ("int zstd(void) { return 2; }", "-mcmodel=large"),
    }
    objects = []
    for name, (text, model) in sources.items():
        target = tmp_path / name.replace(".c", ".o")
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(compiled(text, 19, "-flto", "-O1").read_bytes())
        relative = name.replace(".c", ".o")
        (target.parent / f".{target.name}.cmd").write_text(
            f"savedcmd_{relative} := clang {model} -flto -c -o {relative} /src/linux/{name}\n\n"
            f"source_{relative} := /src/linux/{name}\n"
        )
        objects.append(relative)
    run(tool("llvm-ar", 19), "rcST", "vmlinux.a", *objects, cwd=tmp_path)
    (tmp_path / ".config").write_text(
        "# Linux/x86 6.12.1 Kernel Configuration\nCONFIG_X86_64=y\nCONFIG_CLANG_VERSION=190107\n"
    )
    return tmp_path


def test_build_dir_names_what_ld_temp_is(build_dir: Path) -> None:
    (one,) = explain_log(
        "ld.lld: error: ld-temp.o <inline asm>:4:1: symbol 'twice' is already defined\n", build_dir
    ).explanations
    assert (
        one.found[0]
        == "ld-temp.o is no file: it is the module that LTO merged of vmlinux's 3 bitcode objects"
    )
    assert (
        one.found[1] == "twice is defined in assembly by kernel/fork.o (kernel/fork.c), mm/gup.o (mm/gup.c)"
    )
    assert "klto build --no-lto kernel/fork.c" in [remedy.command for remedy in one.remedies]


def test_build_dir_names_who_has_the_flag(build_dir: Path) -> None:
    log = "ld.lld: error: linking module flags 'Code Model': "
    log += "IDs have conflicting values in 'lib/zstd.o' and 'ld-temp.o'\n"
    (one,) = explain_log(log, build_dir).explanations
    assert "most objects (2) have -mcmodel=kernel" in one.found
    assert "-mcmodel=large: lib/zstd.o" in one.found
    assert "klto build --no-lto lib/zstd.c" in [remedy.command for remedy in one.remedies]


def test_build_dir_names_the_caller_and_the_member(build_dir: Path) -> None:
    from klto.objects.archive import read_archive

    (gup,) = (m for m in read_archive(build_dir / "vmlinux.a").members if m.name.endswith("gup.o"))
    log = 'ld.lld: error: call to bug marked "dontcall-error": BUILD_BUG failed\n'
    log += f"0.\tRunning pass 'Function Pass Manager' on module 'vmlinux.a(gup.o at {gup.header_offset})'.\n"
    log += "1.\tRunning pass 'Greedy Register Allocator' on function '@gup'\n"
    bug, crash = explain_log(log, build_dir).explanations
    assert bug.found == ("bug is used by mm/gup.o",)
    assert f"vmlinux.a(gup.o at {gup.header_offset}) is mm/gup.o, compiled from mm/gup.c" in crash.found


def test_build_dir_knows_versions(build_dir: Path) -> None:
    (one,) = explain_log("ld.lld: error: undefined symbol: __stack_chk_guard\n", build_dir).explanations
    assert one.confidence == "medium"
    assert "LLVM is 19.1 here, and this was fixed in 14" in one.found


def test_an_empty_build_dir_says_nothing(tmp_path: Path) -> None:
    (one,) = explain_log(DUPLICATE, tmp_path).explanations
    assert one.found == ()


def test_a_failed_build_says_what_is_known(tmp_path: Path) -> None:
    from klto.build.failure import explain_failure
    from klto.build.make import MakeResult
    from klto.process import Usage

    lines = [
        *DUPLICATE.decode().splitlines(),
        "make[2]: *** [scripts/Makefile.vmlinux_o:65: vmlinux.o] Error 1",
    ]
    usage = Usage(0.0, 0.0, 0)
    error = explain_failure(
        MakeResult(2, usage, lines, [], 0, []), tmp_path / ".klto/build.log", "klto build"
    )
    assert error.hint is not None
    said = error.hint.splitlines()
    assert said[0] == "duplicate-symbol (high confidence): dup is defined in two objects"
    assert f"all of it: klto explain -b {tmp_path}" in said
    assert len(said) <= 6
    error = explain_failure(
        MakeResult(2, usage, ["make: *** [Makefile:3: x] Error 1"], [], 0, []), tmp_path / "l", "again"
    )
    assert error.hint == f"log: {tmp_path / 'l'}\nagain: again"
