"""The link's memory: what is expected, what is allowed, and how a link goes on that was too large."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from klto.events import LinkFinished, LinkStarted, read_journal
from klto.kernel.jobserver import Jobserver
from klto.link import memory
from klto.link.inputs import Inputs, Module
from klto.link.linker import Linker
from klto.link.output import Output
from klto.record import Record, RecordKeeper
from tests.fast.test_link_blame import Modules, _slow
from tests.fast.test_record import a_record

pytestmark = pytest.mark.slow

_MIB = 1 << 20


class FatModules(Modules):
    """Modules whose backends need much more memory than the rest of the link."""

    def __init__(self, folder: Path, llvm: int) -> None:
        super().__init__(folder, llvm)
        for number in range(4):
            text = _slow(700 + number).replace("void slow", f"void fat{number}")
            self.add_unoptimised(f"fat{number}", text)

    def measured(self, jobs: int, **more: str) -> tuple[int, str, list[LinkStarted], list[LinkFinished]]:
        """Link with so many jobs: status, what was said, and the events."""
        with Jobserver(str(self.folder / "fifo"), jobs) as server:
            status, said = self.link(**server.environment(), **more)
        events = read_journal(self.folder / "journal")
        begun = [event for event in events if isinstance(event, LinkStarted)]
        return status, said, begun, [event for event in events if isinstance(event, LinkFinished)]


@pytest.fixture
def fat(tmp_path: Path) -> FatModules:
    return FatModules(tmp_path, 19)


def _peak(ended: list[LinkFinished]) -> int:
    return max(event.peak_bytes for event in ended)


def test_budget_midway_between_cached_and_unconstrained(fat: FatModules) -> None:
    status, _, _, free = fat.measured(4)
    assert status == 0
    expected = (fat.folder / "out.o").read_bytes()
    _, _, _, cached = fat.measured(4)
    assert cached[-1].generated == 0
    assert _peak(free) >= 1.5 * _peak(cached)
    budget = (_peak(free) + _peak(cached)) // 2
    status, said, begun, ended = fat.measured(
        4, KLTO_CACHE=str(fat.folder / "other"), KLTO_MEMORY=str(budget)
    )
    assert status == 0, said
    assert (fat.folder / "out.o").read_bytes() == expected
    assert _peak(ended) <= budget
    assert begun[-1].jobs < 4
    assert begun[-1].memory_budget == budget


def test_too_small_a_budget_ends_with_need_limit_and_the_smallest_setting(fat: FatModules) -> None:
    status, said, begun, ended = fat.measured(2, KLTO_MEMORY=str(75 * _MIB))
    assert status != 0
    assert begun[-1].jobs == 1
    assert [event.cause for event in ended] == ["memory"] * len(ended)
    assert "75 MiB are allowed: the smallest setting that could work is --memory" in said
    setting = int(said.rpartition("--memory ")[2].partition("M")[0])
    status, said, _, ended = fat.measured(2, KLTO_MEMORY=str(2 * setting * _MIB))
    assert status == 0, said


def test_without_the_cache_fewer_backends_are_tried(fat: FatModules) -> None:
    budget = 110 * _MIB
    status, said, begun, _ = fat.measured(4, KLTO_CACHE="", KLTO_MEMORY=str(budget))
    assert status == 0, said
    assert begun[-1].jobs < 4


def test_attempts_are_one_link_in_the_record(tmp_path: Path) -> None:
    keeper = RecordKeeper(tmp_path / "record.json", a_record())
    common = {"output": "vmlinux.o", "directory": "/d", "pid": 1, "native_inputs": 0, "memory_available": 9}
    keeper(LinkStarted(**common, jobs=2, bitcode_inputs=3, bitcode_bytes=4))  # type: ignore[arg-type]
    ended = {"output": "vmlinux.o", "wall_seconds": 1.0, "cpu_seconds": 1.0}
    keeper(LinkFinished(**ended, returncode=-9, peak_bytes=7, cause="memory", again=True))  # type: ignore[arg-type]
    keeper(LinkStarted(**common, jobs=1, bitcode_inputs=3, bitcode_bytes=4, attempt=2))  # type: ignore[arg-type]
    keeper(LinkFinished(**ended, returncode=0, peak_bytes=5))  # type: ignore[arg-type]
    record: Record = keeper.record
    assert record.linked_twice == []
    (link,) = record.links
    assert (link.jobs, link.returncode, link.peak_bytes) == (1, 0, 5)
    assert [(each.jobs, each.cause, each.peak_bytes) for each in link.attempts] == [(2, "memory", 7)]


def _inputs(sizes: list[int]) -> Inputs:
    modules = [Module("a", f"{n}.o", f"{n}.o", None, size, lambda: b"") for n, size in enumerate(sizes)]
    return Inputs(modules, len(modules), 0, 0)


def test_estimate_grows_with_bitcode_and_backends() -> None:
    small, large = _inputs([1_000_000] * 3), _inputs([1_000_000] * 30)
    assert (
        memory.estimate(small, False, 1) < memory.estimate(small, False, 2) < memory.estimate(large, False, 2)
    )
    assert memory.estimate(large, True, 1) > 3 * memory.estimate(large, False, 1)


def test_what_was_measured_corrects_the_estimate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = tmp_path / "measured.jsonl"
    monkeypatch.setenv(memory.ENV_MEASURED, str(measured))
    inputs = _inputs([2_000_000])
    before = memory.estimate(inputs, False, 1)
    for _ in range(3):
        memory.remember(inputs, False, 1, int(1.4 * before))
    with measured.open("a") as stream:
        stream.write('{"kind": "thin", torn')
    assert memory.estimate(inputs, False, 1) == pytest.approx(1.4 * before, rel=0.01)
    assert memory.estimate(inputs, False, 1, corrected=False) == before
    assert memory.estimate(inputs, True, 1) == memory.estimate(inputs, True, 1, corrected=False)


def test_largest_process_after_the_link(tmp_path: Path) -> None:
    measured = tmp_path / "measured.jsonl"
    assert memory.estimate_finish(measured, 10_000_000, objtool=False) is None
    guess = memory.estimate_finish(measured, 10_000_000, objtool=True)
    assert guess is not None
    assert guess[0] == "objtool"
    memory.remember_finish(measured, "pahole", 10_000_000, 900_000_000)
    assert memory.estimate_finish(measured, 20_000_000, objtool=True) == ("pahole", 1_800_000_000)


def test_full_lto_that_cannot_fit_is_refused_before_it_begins() -> None:
    inputs = _inputs([100_000] * 1000)
    budget = memory.Budget(500 * _MIB, 16 << 30)
    budget.jobs_for(inputs, True, 2)
    assert "full LTO needs about" in budget.hopeless
    assert "500 MiB allowed" in budget.hopeless
    assert "--lto thin needs about" in budget.hopeless
    enough = memory.Budget(8 << 30, 16 << 30)
    assert enough.jobs_for(inputs, True, 2) == 2
    assert enough.hopeless == ""


def test_backends_that_fit() -> None:
    inputs = _inputs([10_000_000] * 8)
    need = [memory.estimate(inputs, False, jobs) for jobs in (1, 2, 3, 4)]
    for jobs in (1, 2, 3):
        assert memory.Budget((need[jobs - 1] + need[jobs]) // 2, 1 << 40).jobs_for(inputs, False, 4) == jobs


def test_a_hundred_megabytes_of_words_are_cut_and_the_end_is_shown(tmp_path: Path) -> None:
    heard: list[bytes] = []
    talk = "import sys\nfor i in range(1600): sys.stderr.write('x' * 65535 + '\\n')\nsys.stderr.write('the end\\n')"
    begun = time.monotonic()
    ended = Linker([sys.executable, "-c", talk], str(tmp_path / "stderr"), write=heard.append).wait()
    assert ended.returncode == 0
    text = b"".join(heard)
    assert len(text) < 2 * _MIB
    assert text.endswith(b"the end\n")
    assert b"bytes of the linker's output are left out here" in text
    assert (tmp_path / "stderr").stat().st_size < 64 * _MIB
    assert time.monotonic() - begun < 60


def test_an_error_is_remembered_across_reads(tmp_path: Path) -> None:
    output = Output(str(tmp_path / "stderr"), lambda data: None)
    (tmp_path / "stderr").write_bytes(b"x" * 65533 + b"error: y\n")
    assert output.first_error is None
    output.pump()
    assert output.first_error is not None
    output.close()


def test_linker_that_passes_its_budget_is_ended() -> None:
    """A fake linker that only eats memory."""
    eat = "a = bytearray(400 << 20)\nimport time\ntime.sleep(30)"
    ended = Linker([sys.executable, "-c", eat], budget=200 * _MIB).wait()
    assert (ended.returncode, ended.cause, ended.out_of_memory) == (-9, "memory", True)
    quiet = Linker([sys.executable, "-c", "pass"], budget=200 * _MIB).wait()
    assert (quiet.returncode, quiet.cause, quiet.out_of_memory) == (0, "", False)


def test_memory_option_is_a_size() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "klto", "build", "--memory", "plenty"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "not a size: 'plenty'" in done.stderr
