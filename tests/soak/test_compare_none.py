"""No LTO, thin and full of the x86_64 proof kernel: what compare says against llvm-size and bloat-o-meter."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

from tests.real.conftest import ROOT, Kernel, run_klto
from tests.real.conftest import linux_6_12 as linux_6_12
from tests.real.conftest import x86_64_6_12 as x86_64_6_12
from tests.real.conftest import x86_64_6_12_full as x86_64_6_12_full


def test_none_thin_and_full(linux_6_12: Path, x86_64_6_12: Kernel, x86_64_6_12_full: Kernel) -> None:
    without = x86_64_6_12.build_dir.with_name("x86_64-6.12-none")
    options = ("-C", linux_6_12, "-b", without, "-a", "x86_64", "-t", "llvm-19", "-k", "allnoconfig")
    done = run_klto("build", *options, "-K", ROOT / "configs/x86_64-6.12.config", "--lto", "none")
    assert done.status == 0
    builds = [without, x86_64_6_12.build_dir, x86_64_6_12_full.build_dir]
    found = json.loads(run_klto("compare", "--json", *builds).out)
    figures = {row["name"]: row["values"] for row in found["figures"]}
    for index, build in enumerate(builds):
        words = subprocess.run(
            ["llvm-size-19", build / "vmlinux"], capture_output=True, text=True, check=True
        )
        sizes = [int(word) for word in words.stdout.splitlines()[1].split()[:3]]
        assert [figures[name][index] for name in ("text", "data", "bss")] == sizes
    script = linux_6_12 / "scripts/bloat-o-meter"
    for pair, build in zip(found["pairs"], builds[1:], strict=True):
        argv = [sys.executable, script, without / "vmlinux", build / "vmlinux"]
        last = subprocess.run(argv, capture_output=True, text=True, check=True).stdout.splitlines()[-1]
        totals = [int(number) for number in re.findall(r"=(\d+)", last)]
        assert [pair["symbols"]["before"], pair["symbols"]["after"]] == totals
        kinds = [change["change"] for change in pair["symbols"]["changes"]]
        assert kinds.count("inlined") > 100
        assert kinds.count("removed") == 0
