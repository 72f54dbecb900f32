"""The vmlinux.o link, klto beside ld.lld with the same number of threads.

On the kernel of ``bench build``, which must have run.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from bench.build import FOLDER
from bench.pairs import HEADER, in_turn, quiet
from klto.link import entry
from klto.machine import usable_cpus

PAIRS = 3


def main() -> None:
    """Cold cache, one module changed, nothing changed."""
    build = FOLDER / "klto"
    saved = (build / ".vmlinux.o.cmd").read_text().splitlines()[0].partition(":= ")[2].partition(";")[0]
    linker = Path("/usr/lib/llvm-19/bin/ld.lld")
    words = shlex.split(saved)[1:]
    cache, jobs = FOLDER / "bench-link-cache", usable_cpus()
    at = words.index("-o") + 1
    environment = {**os.environ, "KLTO_CACHE": str(cache), "KLTO_JOBS": str(jobs)}
    environment.pop("KLTO_JOBSERVER", None)
    variants = iter(_variants(build, 2 * PAIRS + 2))

    def klto(env: dict[str, str] = environment) -> None:
        arguments = [*words[:at], str(FOLDER / "by-klto.o"), *words[at + 1 :]]
        parallel = [f"--threads={jobs}", f"--thinlto-jobs={jobs}"]
        quiet([sys.executable, "-I", "-S", entry.__file__, linker, *arguments, *parallel], cwd=build, env=env)

    def plain() -> None:
        arguments = [*words[:at], str(FOLDER / "by-lld.o"), *words[at + 1 :]]
        quiet([linker, *arguments, f"--threads={jobs}", f"--thinlto-jobs={jobs}"], cwd=build)

    def cold() -> None:
        shutil.rmtree(cache, ignore_errors=True)
        klto()

    def changed() -> None:
        (build / "kernel/sys.o").write_bytes(next(variants))
        klto()

    def same() -> None:
        ours, theirs = ((FOLDER / name).read_bytes() for name in ("by-klto.o", "by-lld.o"))
        print(
            f"{'':<4}the last two vmlinux.o are {'identical' if ours == theirs else 'DIFFERENT'}", flush=True
        )

    original = (build / "kernel/sys.o").read_bytes()
    print(HEADER)
    print(in_turn("klto / ld.lld, empty cache", cold, plain, PAIRS, warm_up=False).row(1.03))
    same()
    print(in_turn("klto / ld.lld, one module changed", changed, plain, PAIRS).row(1 / 10))
    same()
    print(in_turn("klto / ld.lld, nothing changed", klto, plain, PAIRS).row(1 / 30))
    same()
    (build / "kernel/sys.o").write_bytes(original)


def _variants(build: Path, wanted: int) -> list[bytes]:
    """kernel/sys.o with one line more, another one each time, by Kbuild's own saved command."""
    saved = (build / "kernel/.sys.o.cmd").read_text().splitlines()[0].partition(":= ")[2]
    found = re.search(r"\S+/kernel/sys\.c", saved)
    assert found is not None
    source = Path(found[0])
    variants = []
    for number in range(wanted):
        changed = FOLDER / "sys.c"
        changed.write_text(source.read_text() + f"int klto_bench_link_{number} = {number + 7};\n")
        out = FOLDER / "sys.o"
        command = saved.replace(str(source), str(changed)).replace("-o kernel/sys.o", f"-o {out}")
        subprocess.run(["sh", "-c", command], cwd=build, check=True)
        variants.append(out.read_bytes())
    return variants


if __name__ == "__main__":
    main()
