"""How long ``klto boot init`` takes on the test kernels, as a whole process.

Seconds, not a ratio: what is asked is that a build can end with a proof. On kernels that ``make test`` has built.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time

from klto.files import user_cache_dir

KERNELS = ("x86_64-6.12", "arm64-6.12", "x86_64-6.1")
RUNS, TARGET = 3, 10.0


def main() -> None:
    """The median of three boots of each."""
    for name in KERNELS:
        build = user_cache_dir() / "test" / name
        if not (build / "vmlinux").exists():
            print(f"{name}: not measured, make test builds it")
            continue
        command = [sys.executable, "-m", "klto", "boot", "-b", str(build), "init", "--json"]
        times = []
        for _ in range(RUNS):
            begun = time.perf_counter()
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            times.append(time.perf_counter() - begun)
        accelerator, seconds = json.loads(done.stdout)["accelerator"], statistics.median(times)
        verdict = "met" if seconds <= TARGET else "MISSED"
        print(f"{name:<14} {accelerator:<5} {seconds:6.1f} s  <= {TARGET:g} s  {verdict}")


if __name__ == "__main__":
    main()
