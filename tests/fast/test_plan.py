"""``klto plan``: from bitcode to memory, time and disk."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from objects_helpers import compiled, run, tool
from report_samples import sample_record

from klto import machine
from klto.errors import UsageError
from klto.report.estimate import AfterLink, Calibration, Coefficients, Objtool, estimate, load_calibration
from klto.report.history import summarise
from klto.report.plan import Basis, find_basis, make_machine_plan
from tests.conftest import Klto

MIB = 1 << 20
CALIBRATION = Calibration(
    on="nothing",
    modes={
        "thin": Coefficients(
            base=50 * MIB,
            per_byte=2.0,
            per_backend_byte=10.0,
            cpu_per_byte=1e-6,
            memory_error=0.1,
            cpu_error=0.1,
        ),
        "full": Coefficients(
            base=50 * MIB,
            per_byte=30.0,
            per_backend_byte=0.0,
            cpu_per_byte=2e-6,
            memory_error=0.5,
            cpu_error=0.5,
        ),
    },
    after=AfterLink(
        vmlinux_o_per_byte={"thin": 0.6, "full": 0.7},
        objtool={"6.1": Objtool(base=0.0, per_byte=20.0), "6.12": Objtool(base=0.0, per_byte=40.0)},
        disk_per_byte=4.0,
        cache_per_byte=0.6,
    ),
)
MODULES = [MIB, *[MIB // 10] * 100]


def test_estimate_adds_up_what_it_is_given() -> None:
    found = estimate("thin", 2, MODULES, 0.5, CALIBRATION, objtool="6.18.1")
    total = sum(MODULES)
    assert found.link.middle == 50 * MIB + 2 * total + 10 * (MODULES[0] + MODULES[1])
    assert found.objtool is not None
    assert found.objtool.middle == pytest.approx(40 * 0.6 * total)
    assert (found.largest, found.memory) == ("objtool", found.objtool)
    assert found.seconds.middle == pytest.approx(total * 1e-6 * 0.5 / 2)
    assert found.seconds.low == pytest.approx(0.65 * found.seconds.middle)
    assert found.disk.middle == pytest.approx(4 * 0.6 * total + 0.6 * total)


@pytest.mark.parametrize(
    ("version", "per_byte"), [("6.1.7", 20), ("6.6.0", 20), ("6.12.1", 40), ("5.15", 20)]
)
def test_objtool_is_that_of_the_kernels_version(version: str, per_byte: int) -> None:
    found = estimate("thin", 1, MODULES, 1.0, CALIBRATION, objtool=version)
    assert found.objtool is not None
    assert found.objtool.middle == pytest.approx(per_byte * 0.6 * sum(MODULES))


def test_more_backends_take_less_time_until_the_longest_module() -> None:
    times = [
        estimate("thin", n, MODULES, 1.0, CALIBRATION, objtool=None).seconds.middle for n in (1, 2, 64, 128)
    ]
    assert times[0] == 2 * times[1] > times[2] == times[3] == pytest.approx(MIB * 1e-6)
    memory = [estimate("thin", n, MODULES, 1.0, CALIBRATION, objtool=None).memory.middle for n in (1, 2, 4)]
    assert memory == sorted(memory)
    full = estimate("full", 1, MODULES, 1.0, CALIBRATION, objtool=None)
    assert (full.objtool, full.largest) == (None, "link")
    assert full.memory.high == pytest.approx(1.5 * full.memory.middle)


@pytest.mark.parametrize(("available", "jobs"), [(64 << 30, 4), (250 * MIB, 2), (50 * MIB, None)])
def test_what_fits_is_recommended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, available: int, jobs: int | None
) -> None:
    monkeypatch.setattr(machine, "memory_bytes", lambda: (available, available))
    steep = replace_thin(per_backend_byte=50.0)
    plan = make_machine_plan(
        Basis(tuple(MODULES[1:]), "x"), tmp_path / "new", 1.0, steep, objtool=None, jobs=4
    )
    assert [(e.mode, e.jobs) for e in plan.estimates] == [("thin", 1), ("thin", 2), ("thin", 4), ("full", 1)]
    if jobs is None:
        assert plan.recommended is None
    else:
        assert plan.recommended is not None
        fits = [e.jobs for e in plan.estimates if e.mode == "thin" and plan.fits(e)]
        assert plan.recommended.jobs == max(fits)


def replace_thin(**fields: float) -> Calibration:
    """The calibration with other coefficients of ThinLTO."""
    import msgspec

    thin = msgspec.structs.replace(CALIBRATION.modes["thin"], **fields)
    return msgspec.structs.replace(CALIBRATION, modes={**CALIBRATION.modes, "thin": thin})


def test_basis_is_the_bitcode_of_the_archive(tmp_path: Path) -> None:
    bitcode = compiled("int a(void) { return 1; }", 19, "-flto=thin")
    native = compiled("int b(void) { return 1; }", 19)
    run(tool("llvm-ar", 19), "rcT", tmp_path / "vmlinux.a", bitcode, native)
    basis = find_basis(tmp_path, "x86_64", None, [])
    assert basis.modules == (bitcode.stat().st_size,)
    assert (basis.error, "1 bitcode objects in" in basis.what) == (0.0, True)


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
