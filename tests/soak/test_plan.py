"""``klto plan`` against cold links of whole kernels."""

from __future__ import annotations

import pytest

from tests.real.conftest import Kernel

pytestmark = pytest.mark.real


KERNELS = [
    *("x86_64_6_12", "arm64_6_12", "x86_64_6_1", "x86_64_6_12_full"),
    *("x86_64_6_12_defconfig", "arm64_6_12_defconfig"),
]


@pytest.mark.parametrize("name", KERNELS)
def test_plan_comes_near_what_is_measured(name: str, request: pytest.FixtureRequest) -> None:
    """Memory within 25 %, CPU time, in reference links on this machine, within 35 %. Not the calibrating kernels."""
    from bench.plan import CLANG, LINKER, measure, predict, print_link, print_row

    from klto.link.reference import measure_reference
    from klto.report.estimate import load_calibration

    kernel: Kernel = request.getfixturevalue(name)
    jobs = 1 if name.endswith("full") else 2
    found = measure(kernel.build_dir, 1.0, jobs, measure_reference(CLANG, LINKER))
    guess = predict(found, load_calibration())
    print_link(found)
    print_row(found, guess)
    assert guess.link.middle == pytest.approx(found.peak, rel=0.25)
    assert guess.cpu.middle == pytest.approx(found.cpu, rel=0.35)
    if found.objtool_peak is not None:
        assert guess.finish is not None
        assert guess.finish.middle == pytest.approx(found.objtool_peak, rel=0.25)
