"""``klto history``: what is kept of every build, and what is made of it."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from report_samples import sample_record, write_record

from klto.cli import main
from klto.errors import UsageError
from klto.events import Tick
from klto.record import MOST_SAMPLES, Record, RecordKeeper, read_record
from klto.report.history import METRICS, Run, append, find_jumps, history_path, read_history, summarise
from klto.report.side import open_side
from tests.conftest import Klto
from tests.fake_kernel import make_fake_kernel, thin_config


@pytest.fixture(autouse=True)
def _data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))


def _runs(sizes: Sequence[int], **fields: object) -> list[Run]:
    record = sample_record(10, **fields)
    runs = []
    for number, size in enumerate(sizes):
        artifacts = [msgspec.structs.replace(record.artifacts[0], bytes=size)]
        later = msgspec.structs.replace(record, started=record.started + 3600 * number, artifacts=artifacts)
        runs.append(summarise(later, Path("/build")))
    return runs


def test_runs_come_back_in_order_and_once() -> None:
    runs = _runs([100, 200, 300])
    for run in [*reversed(runs), runs[0]]:
        append(run)
    assert read_history() == runs
    assert history_path().parent.name == "klto"


def test_summary_has_what_the_record_says() -> None:
    record = sample_record(10)
    run = summarise(record, Path("/build"))
    link = record.links[1]
    assert (run.link_seconds, run.link_peak_bytes, run.link_jobs) == (link.wall_seconds, link.peak_bytes, 2)
    assert (run.generated, run.bitcode_modules, run.lto, run.arch) == (9, 10, "thin", "x86_64")
    assert (run.vmlinux_bytes, run.bss_bytes) == (record.artifacts[0].bytes, 4096)
    bare = Record(
        schema="",
        klto_version="",
        status="failed",
        started=1.0,
        pid=1,
        asked=record.asked,
        machine=record.machine,
    )
    assert summarise(bare, Path("b")).vmlinux_bytes is None


def test_a_jump_is_pointed_out_once() -> None:
    found = find_jumps(_runs([1000, 1002, 1001, 1003, 1100, 1101, 1099, 1102]))
    assert [(j.metric.name, j.before, j.after) for j in found] == [("vmlinux_bytes", 1001.5, 1100)]


def test_noise_and_failed_builds_are_no_jumps() -> None:
    assert find_jumps(_runs([1000, 1005, 999, 1006])) == []
    assert find_jumps([*_runs([1000, 1000]), *_runs([0, 0, 5000], status="failed")[2:]]) == []


def test_time_and_memory_of_an_incremental_link_are_not_compared() -> None:
    (run,) = _runs([1])
    assert run.generated != run.bitcode_modules
    values = {metric.name: metric.of(run) for metric in METRICS}
    assert (values["link_seconds"], values["link_peak_bytes"], values["vmlinux_bytes"]) == (None, None, 1)


def test_a_few_bytes_are_plotted_as_none(capsys: pytest.CaptureFixture[str]) -> None:
    for run in _runs([1 << 20, (1 << 20) + 50, (1 << 20) + 100]):
        append(run)
    assert main(["history", "--all"]) == 0
    plotted = [line for line in capsys.readouterr().out.splitlines() if "•" in line]
    assert len(plotted) <= 2  # A slope takes a line for each row of the plot.


def test_a_jump_against_runs_that_are_not_shown(capsys: pytest.CaptureFixture[str]) -> None:
    for run in _runs([1 << 20, 1 << 20, 3 << 19]):
        append(run)
    assert main(["history", "--all", "--limit", "1"]) == 0
    assert "jump: vmlinux" in capsys.readouterr().out


def test_list_plot_and_jump(capsys: pytest.CaptureFixture[str]) -> None:
    for run in _runs([1 << 20, 1 << 20, 1 << 20, 3 << 19]):
        append(run)
    assert main(["history", "--all"]) == 0
    out = capsys.readouterr().out
    assert "/build: x86_64, thin LTO" in out
    assert out.count("6.12.117") == 4
    assert "vmlinux, MiB, by run" in out
    assert "\x1b" not in out
    assert "jump: vmlinux 1.0 MiB -> 1.5 MiB (+50.0%)" in out
    assert main(["history", "-b", "/build", "--json", "--limit", "2"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["schema"] == "klto/history/1"
    assert [run["vmlinux_bytes"] for run in found["runs"]] == [1 << 20, 3 << 19]
    assert main(["history", "-C", "/somewhere/else"]) == 0
    assert "no builds on record" in capsys.readouterr().out


def test_damaged_or_later_history_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    path = history_path()
    path.parent.mkdir(parents=True)
    path.write_bytes(b"no database at all" * 100)
    assert main(["history"]) == 2
    assert f"cannot use the history {path}" in capsys.readouterr().err
    with pytest.raises(UsageError):
        append(_runs([1])[0])
    path.unlink()
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    assert main(["history"]) == 2
    assert "later klto" in capsys.readouterr().err


def test_memory_curve_keeps_its_peak_however_long_the_run(tmp_path: Path) -> None:
    keeper = RecordKeeper(tmp_path / "record.json", sample_record(3))
    for number in range(10_000):
        keeper(Tick(time=float(number), process="ld.lld", resident_bytes=10**9 if number == 7777 else number))
    keeper.save()
    samples = keeper.record.memory
    assert MOST_SAMPLES // 2 <= len(samples) <= MOST_SAMPLES
    assert max(s.bytes for s in samples) == 10**9
    assert [s.time for s in samples] == sorted(s.time for s in samples)


def test_a_run_that_linked_nothing_says_how_long_its_last_whole_link_took(tmp_path: Path) -> None:
    build, content = tmp_path / "build", b"no image"
    record = sample_record(10)
    vmlinux = msgspec.structs.replace(
        record.artifacts[0], path="vmlinux", bytes=len(content), sha256=hashlib.sha256(content).hexdigest()
    )
    write_record(build, msgspec.structs.replace(record, links=[], artifacts=[vmlinux]))
    (build / "vmlinux").write_bytes(content)
    assert open_side(build).notes == ["its last run linked nothing: the link's time and memory are not known"]
    (run,) = _runs([1])
    whole = replace(run, build_dir=str(build), generated=run.bitcode_modules, link_seconds=24.4)
    append(whole)
    append(replace(whole, started=run.started + 1, generated=1, link_seconds=1.0))
    append(replace(whole, started=run.started + 2, config_sha256="other", link_seconds=2.0))
    (note,) = open_side(build).notes
    assert note == "its last run linked nothing: its last whole link took 0:24, 210 MiB"
    history_path().write_bytes(b"no database" * 500)
    assert "not known" in open_side(build).notes[0]


def test_every_build_is_added_and_a_damaged_history_stops_none(
    tmp_path: Path, klto: Klto, llvm_bin: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = make_fake_kernel(tmp_path / "linux")
    build_dir = tmp_path / "build"
    build_dir.mkdir()
    (build_dir / ".config").write_text(thin_config(llvm_bin))
    assert klto("build", "-q", "-C", tree, "-b", build_dir, "--time-trace").status == 0
    trace = tmp_path / "trace.json"
    assert klto("report", "-q", "-b", build_dir, "--trace", trace).status == 0
    assert any(e.get("cat") == "linker" for e in json.loads(trace.read_text())["traceEvents"])
    (run,) = read_history()
    assert (run.build_dir, run.status, run.lto, run.bitcode_modules) == (str(build_dir), "done", "thin", 6)
    assert run.vmlinux_bytes == (build_dir / "vmlinux").stat().st_size
    assert run.text_bytes
    record = read_record(build_dir / ".klto/record.json")
    assert record.sizes is not None
    assert {row.path for row in record.sizes.objects} & {"init/main.o"}
    assert record.memory
    assert "thin LTO" in klto("history", "-C", tree).out
    assert klto("compare", build_dir, build_dir).status == 0
    history_path().write_bytes(b"no database" * 500)
    assert klto("build", "-q", "-C", tree, "-b", build_dir).status == 0
    record = read_record(build_dir / ".klto/record.json")
    assert any("not in the history" in note for note in record.notes)
    assert record.sizes is not None  # Taken over from the run before: vmlinux is the same.
