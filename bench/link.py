"""The vmlinux.o link, klto beside ld.lld with the same number of threads.

On the kernel of ``bench build``, which must have run, or on that of ``KLTO_BENCH_BUILD_DIR``.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.build import FOLDER
from bench.pairs import HEADER, in_turn, quiet
from klto.events import LinkFinished, read_journal
from klto.kernel.jobserver import Jobserver
from klto.link import entry
from klto.machine import usable_cpus

#: Of the first row more, since it is about a few per cent, and equal links differ by more than that.
PAIRS, COLD_PAIRS = 3, int(os.environ.get("KLTO_BENCH_COLD_PAIRS", "9"))


def _build_dir() -> Path:
    return Path(os.environ.get("KLTO_BENCH_BUILD_DIR") or FOLDER / "klto")


def main() -> None:
    """Cold cache, one module changed, nothing changed."""
    build = _build_dir()
    saved = (build / ".vmlinux.o.cmd").read_text().splitlines()[0].partition(":= ")[2].partition(";")[0]
    linker = Path("/usr/lib/llvm-19/bin/ld.lld")
    words = shlex.split(saved)[1:]
    jobs = usable_cpus()
    caches = FOLDER / "bench-link-caches"
    shutil.rmtree(caches, ignore_errors=True)
    caches.mkdir(parents=True)
    at = words.index("-o") + 1
    # What the linker is, a build remembers for the machine and not in the cache.
    linkers = str(caches / "linkers.json")
    environment = {**os.environ, "KLTO_JOBS": str(jobs), "KLTO_WHOLE_LINKS": "1", "KLTO_LINKERS": linkers}
    variants = iter(_variants(build, 2 * PAIRS + 2))

    def klto(env: dict[str, str] = environment) -> None:
        arguments = [*words[:at], str(FOLDER / "by-klto.o"), *words[at + 1 :]]
        # As in a build: how many threads, it takes from the jobserver.
        quiet([sys.executable, "-I", "-S", entry.__file__, linker, *arguments], cwd=build, env=env)

    def plain() -> None:
        arguments = [*words[:at], str(FOLDER / "by-lld.o"), *words[at + 1 :]]
        quiet([linker, *arguments, f"--threads={jobs}", f"--thinlto-jobs={jobs}"], cwd=build)

    def cold() -> None:
        # A new folder: where a thousand files were just removed ext4 looks for inodes that were not lately deleted
        # (fs/ext4/ialloc.c, recently_deleted), which is nobody's everyday.
        environment["KLTO_CACHE"] = tempfile.mkdtemp(prefix="cache-", dir=caches)
        klto()

    def changed() -> None:
        module.write_bytes(next(variants))
        klto()

    def same() -> None:
        ours, theirs = ((FOLDER / name).read_bytes() for name in ("by-klto.o", "by-lld.o"))
        print(
            f"{'':<4}the last two vmlinux.o are {'identical' if ours == theirs else 'DIFFERENT'}", flush=True
        )

    module = build / "kernel/sys.o"
    original, status = module.read_bytes(), module.stat()
    print(HEADER)
    try:
        with tempfile.TemporaryDirectory() as folder, Jobserver(f"{folder}/fifo", jobs) as server:
            environment |= server.environment()
            found = in_turn("klto / ld.lld, empty cache", cold, plain, COLD_PAIRS, warm_up=False)
            print(found.row(1.03), flush=True)
            least, most = found.interval()
            print(
                f"{'':<4}{COLD_PAIRS} pairs, 95 % interval of their median {least:.3f} to {most:.3f}",
                flush=True,
            )
            same()
            print(in_turn("klto / ld.lld, one module changed", changed, plain, PAIRS).row(1 / 10), flush=True)
            same()
            print(in_turn("klto / ld.lld, nothing changed", klto, plain, PAIRS).row(1 / 30), flush=True)
            same()
    finally:
        module.write_bytes(original)
        os.utime(module, ns=(status.st_atime_ns, status.st_mtime_ns))
        shutil.rmtree(caches)
    budget()


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


#: Fat modules, as many as backends at once, and functions in each, with a loop and a switch. With a single one no
#: budget below its own need could do, however many backends there are.
FAT_MODULES, FAT_FUNCTIONS = 4, 3000

_FAT = """unsigned long klto_fat_{m}_{n}(unsigned long *p, unsigned long n) {{
  unsigned long i, s = {n};
  for (i = 0; i < n; i++)
    switch ((p[i] ^ s) & 7) {{
    case 0: s += p[i] * {a}; break;
    case 1: s ^= p[i] >> 3; break;
    case 2: s -= p[i ^ 1] + {b}; break;
    case 3: p[i] = s * {a}; break;
    case 4: s = s << 5 | s >> 59; break;
    case 5: s += p[n - i - 1]; break;
    default: s *= {b};
    }}
  return s;
}}
"""


def _fat_module(build: Path, number: int) -> Path:
    """A bitcode module of the kernel's own options and no kernel code."""
    saved = (build / "kernel/.sys.o.cmd").read_text().splitlines()[0].partition(":= ")[2]
    found = re.search(r"\S+/kernel/sys\.c", saved)
    assert found is not None
    source, out = FOLDER / f"fat{number}.c", FOLDER / f"fat{number}.o"
    functions = (_FAT.format(m=number, n=n, a=2 * n + 3, b=5 * n + 7) for n in range(FAT_FUNCTIONS))
    source.write_text("".join(functions))
    command = saved.replace(found[0], f"-Wno-missing-prototypes {source}").replace(
        "-o kernel/sys.o", f"-o {out}"
    )
    subprocess.run(["sh", "-c", command], cwd=build, check=True)
    return out


def budget() -> None:
    """A budget midway between the peak of an all-cached link and the unconstrained one, with fat modules."""
    build = _build_dir()
    saved = (build / ".vmlinux.o.cmd").read_text().splitlines()[0].partition(":= ")[2].partition(";")[0]
    fat = [str(_fat_module(build, number)) for number in range(FAT_MODULES)]
    words = [*shlex.split(saved)[1:], *fat]
    words[words.index("-o") + 1] = str(FOLDER / "budget.o")
    linker, jobs = "/usr/lib/llvm-19/bin/ld.lld", FAT_MODULES
    with tempfile.TemporaryDirectory(dir=FOLDER) as folder, Jobserver(f"{folder}/fifo", jobs) as server:

        def link(cache: str, limit: str = "") -> tuple[int, float]:
            journal = Path(folder, f"journal-{time.monotonic_ns()}")
            environment = {
                **os.environ,
                **server.environment(),
                "KLTO_CACHE": f"{folder}/{cache}",
                "KLTO_MEMORY": limit,
                "KLTO_JOURNAL": str(journal),
            }
            argv = [sys.executable, "-I", "-S", entry.__file__, linker, *words]
            begun = time.perf_counter()
            quiet(argv, cwd=build, env=environment)
            ended = [event for event in read_journal(journal) if isinstance(event, LinkFinished)]
            return max(event.peak_bytes for event in ended), time.perf_counter() - begun

        free, free_seconds = link("free")
        cached, _ = link("free")
        allowed = (free + cached) // 2
        print(
            f"peak unconstrained {free >> 20} MiB, all cached {cached >> 20} MiB: {free / cached:.2f} times"
        )
        try:
            peak, seconds = link("tight", str(allowed))
        except subprocess.CalledProcessError:
            print(f"allowed {allowed >> 20} MiB: MISSED, the link did not complete")
            return
        verdict = "within" if peak <= allowed else "MISSED"
        print(
            f"allowed {allowed >> 20} MiB: peak {peak >> 20} MiB, {verdict}; {seconds / free_seconds:.2f} times as long"
        )


if __name__ == "__main__":
    main()
