"""``klto plan`` against cold links of whole kernels."""

from __future__ import annotations

import pytest

from tests.real.conftest import Kernel

pytestmark = pytest.mark.real


@pytest.mark.parametrize("name", ["x86_64_6_12", "arm64_6_12", "x86_64_6_1", "x86_64_6_12_full"])
def test_plan_comes_near_what_is_measured(name: str, request: pytest.FixtureRequest) -> None:
    """Memory within 25 %, CPU time, in reference links on this machine, within 35 %. Not the calibrating kernels."""
    from bench.plan import CLANG, LINKER, measure

    from klto.link.reference import measure_reference
    from klto.report.estimate import estimate, load_calibration

    kernel: Kernel = request.getfixturevalue(name)
    calibration, reference = load_calibration(), measure_reference(CLANG, LINKER)
    found = measure(kernel.build_dir, 1.0, 2)
    guess = estimate(
        found.mode,
        2,
        found.modules,
        reference,
        calibration,
        objtool=found.version if found.objtool_peak else None,
    )
    cpu = calibration.modes[found.mode].cpu_per_byte * sum(found.modules) * reference
    print(name, guess.link.middle / found.peak, cpu / found.cpu, guess.objtool, found.objtool_peak)
    assert guess.link.middle == pytest.approx(found.peak, rel=0.25)
    assert cpu == pytest.approx(found.cpu, rel=0.35)
    if found.objtool_peak is not None:
        assert guess.objtool is not None
        assert guess.objtool.middle == pytest.approx(found.objtool_peak, rel=0.25)
