"""``klto plan``: from bitcode to memory, time and disk."""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest
from objects_helpers import compiled, run, tool
from report_samples import sample_record

from klto import machine
from klto.errors import UsageError
from klto.link import memory, memory_model
from klto.link.inputs import Inputs, Module
from klto.link.memory_model import MemoryModel
from klto.report.estimate import Calibration, Estimate, Subject, estimate, load_calibration
from klto.report.history import summarise
from klto.report.plan import Basis, count_functions, find_basis, make_machine_plan
from tests.conftest import Klto

MIB = 1 << 20
MODEL = MemoryModel(
    {
        "base": 50 * MIB,
        "per_bitcode": 2.0,
        "per_native": 3.0,
        "pool": 4 * MIB,
        "per_backend": 10.0,
        "per_full": 30.0,
        "objtool": {"6.1": [0.0, 20.0], "6.12": [MIB, 40.0]},
    }
)
CALIBRATION = Calibration(
    on="nothing",
    cpu_per_instruction={"thin": 1e-5, "full": 2e-5},
    serial_per_instruction=1e-7,
    link_order_per_pair=1e-8,
    functions_left={"thin": 0.5, "full": 0.4},
    instructions_per_byte=0.1,
    memory_error={"thin": 0.1, "full": 0.5},
    cpu_error={"thin": 0.1, "full": 0.5},
    vmlinux_o_per_byte={"thin": 0.6, "full": 0.7},
    disk_per_byte=4.0,
)
MODULES = [MIB, *[MIB // 10] * 100]
SUBJECT = Subject(MODULES, 7 * MIB, None, "6.18 arm64")


@pytest.fixture(autouse=True)
def _model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Round coefficients instead of the calibrated ones."""
    monkeypatch.setattr(memory_model, "_loaded", [MODEL])


def guess(
    mode: str, jobs: int, reference: float = 1.0, measured: Path | None = None, kernel: str = "6.18 arm64"
) -> Estimate:
    """The estimate of SUBJECT, but for what is given."""
    return estimate(mode, jobs, replace(SUBJECT, kernel=kernel), reference, CALIBRATION, measured=measured)


def test_estimate_adds_up_what_it_is_given() -> None:
    found = guess("thin", 2, 0.5, kernel="6.18 x86_64")
    total = sum(MODULES)
    assert found.link.middle == 75 * MIB + 2 * total + 10 * (MODULES[0] + MODULES[1])
    assert found.finish is not None
    assert found.finish.middle == pytest.approx(MIB + 40 * total)
    assert (found.largest, found.finish_process, found.memory) == ("objtool", "objtool", found.finish)
    assert found.cpu.middle == pytest.approx(total * 1e-6 * 0.5)
    assert found.seconds.middle == pytest.approx(total * 0.5 * (1e-8 + 0.99e-6 / 2))
    assert found.seconds.low == pytest.approx(0.65 * found.seconds.middle)
    assert found.disk.middle == pytest.approx(4 * 0.6 * total + 0.6 * total)


def test_time_is_that_of_the_instructions_where_they_are_known() -> None:
    found = estimate("thin", 1, replace(SUBJECT, instructions=1_000_000), 0.5, CALIBRATION, measured=None)
    assert found.seconds.middle == found.cpu.middle == pytest.approx(10 * 0.5)


def test_objtool_of_a_kernel_with_debug_information_is_not_guessed() -> None:
    found = guess("thin", 1, kernel="6.12 x86_64 debug")
    assert (found.finish, found.largest) == (None, "link")


def test_plan_and_link_expect_the_same() -> None:
    modules = [Module("a", f"{n}.o", f"{n}.o", None, size, lambda: b"") for n, size in enumerate(MODULES)]
    inputs = Inputs(modules, len(modules), 3, 7 * MIB)
    for mode, jobs in (("thin", 1), ("thin", 4), ("full", 1)):
        assert guess(mode, jobs).link.middle == memory.estimate(inputs, mode == "full", jobs)


def test_what_was_measured_here_corrects_the_plan_as_it_does_the_link(tmp_path: Path) -> None:
    measured = tmp_path / "measured.jsonl"
    before = guess("thin", 2, kernel="6.18 x86_64")
    line = {"kind": "thin", "bitcode": 2 * MIB, "jobs": 2, "estimate": 100, "peak": 130}
    memory.append_measured(measured, line)
    memory.remember_finish(measured, "pahole", sum(MODULES), 900 * MIB, "6.18 x86_64", False)
    after = guess("thin", 2, measured=measured, kernel="6.18 x86_64")
    assert after.link.middle == pytest.approx(1.3 * before.link.middle)
    assert (after.largest, after.memory.middle) == ("pahole", 900 * MIB)


@pytest.mark.parametrize(
    ("version", "per_byte", "base"),
    [("6.1.7", 20, 0), ("6.6.0", 20, 0), ("6.12.1-rc1", 40, MIB), ("5.15", 20, 0), ("7.0-rc2", 40, MIB)],
)
def test_objtool_is_that_of_the_kernels_version(version: str, per_byte: int, base: int) -> None:
    found = guess("thin", 1, kernel=memory.kernel_key(version, "x86_64", False))
    assert found.finish is not None
    assert found.finish.middle == pytest.approx(base + per_byte * sum(MODULES), abs=1)


def test_more_backends_take_less_time_until_the_longest_module() -> None:
    times = [guess("thin", n).seconds.middle - sum(MODULES) * 1e-8 for n in (1, 2, 64, 128)]
    assert times == pytest.approx([sum(MODULES) * 0.99e-6 / n for n in (1, 2)] + [MIB * 0.99e-6] * 2)
    most = [guess("thin", n).memory.middle for n in (1, 2, 4)]
    assert most == sorted(most)
    full = guess("full", 1)
    assert (full.finish, full.largest) == (None, "link")
    assert full.memory.high == pytest.approx(1.5 * full.memory.middle)


@pytest.mark.parametrize(("mode", "left"), [("thin", 0.5), ("full", 0.4)])
def test_sections_in_link_order_take_the_square_of_their_number(mode: str, left: float) -> None:
    """lld/ELF/LinkerScript.cpp, addInputSec: no number of backends helps."""
    for jobs in (1, 4):
        plain = guess(mode, jobs)
        more = estimate(mode, jobs, replace(SUBJECT, patchable=40_000), 2.0, CALIBRATION, measured=None)
        twice = guess(mode, jobs, reference=2.0)
        ordering = 1e-8 * (left * 40_000) ** 2 / 2 * 2.0
        assert more.seconds.middle == pytest.approx(twice.seconds.middle + ordering)
        assert more.cpu.middle == pytest.approx(twice.cpu.middle + ordering)
        assert more.memory == plain.memory


@pytest.mark.parametrize(("available", "jobs"), [(64 << 30, 4), (110 * MIB, 2), (50 * MIB, None)])
def test_what_fits_is_recommended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, available: int, jobs: int | None
) -> None:
    monkeypatch.setattr(machine, "memory_bytes", lambda: (available, available))
    monkeypatch.setattr(MODEL, "per_backend", 50.0)
    basis = Basis(tuple(MODULES[1:]), "x")
    plan = make_machine_plan(
        basis, tmp_path / "new", 1.0, CALIBRATION, kernel="6.12 arm64", jobs=4, measured=None
    )
    assert [(e.mode, e.jobs) for e in plan.estimates] == [("thin", 1), ("thin", 2), ("thin", 4), ("full", 1)]
    if jobs is None:
        assert plan.recommended is None
    else:
        assert plan.recommended is not None
        fits = [e.jobs for e in plan.estimates if e.mode == "thin" and plan.fits(e)]
        assert plan.recommended.jobs == max(fits) == jobs


@pytest.mark.parametrize("mode", ["thin", "full"])
@pytest.mark.parametrize("llvm", [14, 19, 22])
def test_instructions_are_those_of_the_summary(llvm: int, mode: str) -> None:
    text = "int f(int x) { return x; } int g(int x) { return f(x) + x * 3; }"
    found = compiled(text, llvm, "-O0", f"-flto={mode}")
    dumped = run(tool("llvm-bcanalyzer", llvm), "--dump", found)
    counts = re.findall(r"<PERMODULE(?:_PROFILE|_RELBF)? .*?op2=(\d+)", dumped)
    assert len(counts) == 2
    assert count_functions(found.read_bytes(), "f") == (2, sum(map(int, counts)))
    assert sum(map(int, counts)) > 5


def test_basis_is_the_bitcode_of_the_archive(tmp_path: Path) -> None:
    bitcode = compiled("int a(void) { return 1; }\nint c(int x) { return x + 1; }", 19, "-O2", "-flto=thin")
    native = compiled("int b(void) { return 1; }", 19)
    run(tool("llvm-ar", 19), "rcT", tmp_path / "vmlinux.a", bitcode, native)
    basis = find_basis(tmp_path, "x86_64", None, [])
    assert basis.instructions == 3  # ret; add, ret.
    assert (basis.modules, basis.native_bytes) == ((bitcode.stat().st_size,), native.stat().st_size)
    assert (basis.error, "1 bitcode objects in" in basis.what) == (0.0, True)
    assert basis.patchable == 0
    saved = bitcode.with_name(f".{bitcode.name}.cmd")
    saved.write_text("savedcmd_a.o := clang -fpatchable-function-entry=16,16 -c -o a.o a.c\n")
    assert find_basis(tmp_path, "x86_64", None, []).patchable == 2


def test_basis_without_an_archive(tmp_path: Path) -> None:
    history = [summarise(sample_record(10), Path("/a")), summarise(sample_record(20), Path("/b"))]
    history[0] = replace(history[0], config_sha256="same")
    same = find_basis(tmp_path, "x86_64", "same", history)
    assert (len(same.modules), same.error) == (10, 0.05)
    other = find_basis(tmp_path, "x86_64", "other", history)
    assert (len(other.modules), other.error) == (20, 0.5)
    assert "a guess" in other.what
    with pytest.raises(UsageError, match="no arm64 kernel is in the history"):
        find_basis(tmp_path, "arm64", "same", history)
    # Objects of a build that has not come to its link go before the history.
    (tmp_path / "kernel").mkdir()
    (tmp_path / "kernel/fork.o").write_bytes(compiled("int a;", 19).read_bytes())
    (tmp_path / "kernel/.fork.o.cmd").write_text("savedcmd_kernel/fork.o := clang\n")
    # What make has built for itself is not of the kernel.
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts/sign.o").write_bytes(compiled("int b;", 19).read_bytes())
    (tmp_path / "scripts/.sign.o.cmd").write_text("savedcmd_scripts/sign.o := gcc\n")
    guess = find_basis(tmp_path, "x86_64", "same", history)
    assert (len(guess.modules), guess.error) == (1, 0.3)
    assert "without LTO" in guess.what


def test_plan_as_a_user_sees_it(tmp_path: Path, klto: Klto) -> None:
    bitcode = compiled("int a(void) { return 1; }", 19, "-flto=thin")
    run(tool("llvm-ar", 19), "rcT", tmp_path / "vmlinux.a", bitcode)
    (tmp_path / ".config").write_text("CONFIG_X86_64=y\nCONFIG_DEBUG_INFO_BTF=y\n")
    done = klto("plan", "-b", tmp_path, "-j", "3")
    assert done.status == 0, done.err
    assert "1 bitcode objects in" in done.out
    assert f"advice    klto build -b {tmp_path} --lto thin -j" in done.out
    assert load_calibration().on in " ".join(done.out.split())
    assert "pahole" in done.out
    assert max(map(len, done.out.splitlines()[2:7])) <= 100
    assert "patchable" not in done.out
    bitcode.with_name(f".{bitcode.name}.cmd").write_text("clang -fpatchable-function-entry=16,16\n")
    assert "note      1 patchable functions: " in klto("plan", "-b", tmp_path).out
    found = json.loads(klto("plan", "-b", tmp_path, "--json").out)
    assert found["schema"] == "klto/plan/1"
    assert {(e["mode"], e["jobs"]) for e in found["estimates"]} >= {("thin", 1), ("full", 1)}
    assert all(e["fits"] in (True, False) for e in found["estimates"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("-b", "nowhere"), "nowhere: no such directory"),
        (("-b", "."), "nothing to estimate from"),
        ((), "is no kernel tree"),
        (("-b", ".", "-j", "0"), "at least one job"),
    ],
)
def test_nothing_to_go_by_is_one_line(
    tmp_path: Path, klto: Klto, arguments: tuple[str, ...], message: str
) -> None:
    done = klto("plan", *arguments, env={"XDG_DATA_HOME": os.fspath(tmp_path / "data")})
    assert (done.status, done.out) == (2, "")
    assert message in done.err
    assert len(done.err.splitlines()) <= 2
