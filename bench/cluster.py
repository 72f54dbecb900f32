"""The vmlinux.o link on ``local:2`` beside the in-process link with two threads, and what goes over the wire.

On copies of the bitcode of the x86_64 kernel that ``make test`` builds.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.pairs import Ratio, in_turn, quiet
from klto.events import ClusterUse, LinkFinished, read_journal
from klto.files import user_cache_dir
from klto.link.includes import included_names, may_include
from klto.link.request import parse_request
from klto.machine import usable_cpus
from klto.objects.archive import read_archive
from klto.objects.kind import kind_of

PAIRS = 2
#: Its figures, for ``bench cluster_model``.
MEASURED = "bench-cluster.json"


class Subject:
    """A kernel's vmlinux.o link in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        build = user_cache_dir() / "test/x86_64-6.12"
        self.folder, self.build = folder / "build", build
        saved = (build / ".vmlinux.o.cmd").read_text().splitlines()[0].partition(":= ")[2].partition(";")[0]
        words = shlex.split(saved)
        self.linker = shutil.which(words[0]) or "/usr/lib/llvm-19/bin/ld.lld"
        at = words.index("-o")
        self.words = [*words[1:at], *words[at + 2 :]]
        copied = "".join(f"{name}\0" for name in _inputs(build, self.words))
        self.folder.mkdir()
        subprocess.run(
            ["cp", "-a", "--parents", "-t", self.folder, *copied.split("\0")[:-1]], cwd=build, check=True
        )

    def plain(self, output: Path) -> None:
        """ld.lld alone."""
        quiet([self.linker, *self.words, "-o", output, "--threads=2", "--thinlto-jobs=2"], cwd=self.folder)

    def klto(self, address: str, cache: str, output: Path) -> ClusterUse:
        """``klto ld --cluster``."""
        with tempfile.NamedTemporaryFile(dir=self.folder.parent) as journal:
            environment = {
                **os.environ,
                "KLTO_CACHE": cache,
                "KLTO_JOURNAL": journal.name,
                "KLTO_LD": self.linker,
            }
            quiet(
                [sys.executable, "-m", "klto", "ld", f"--cluster={address}", *self.words, "-o", output],
                cwd=self.folder, env=environment,
            )  # fmt: skip
            (use,) = [e.cluster for e in read_journal(Path(journal.name)) if isinstance(e, LinkFinished)]
        assert use is not None
        if use.faults:
            print(f"{'':<4}faults: {use.faults}")
        return use

    def change(self) -> None:
        """Compile kernel/sys.c with one line more, as Kbuild has saved it."""
        saved = (self.build / "kernel/.sys.o.cmd").read_text().splitlines()[0].partition(":= ")[2]
        found = re.search(r"\S+/kernel/sys\.c", saved)
        assert found is not None
        changed, out = self.folder.parent / "sys.c", self.folder / "kernel/sys.o"
        changed.write_text(Path(found[0]).read_text() + "int klto_bench_cluster = 7;\n")
        out.unlink()
        command = saved.replace(found[0], str(changed)).replace("-o kernel/sys.o", f"-o {out}")
        # The dependency file that the command writes too is the build dir's own.
        command = re.sub(r"-Wp,-MMD,\S+", "", command).partition(";")[0]
        subprocess.run(["sh", "-c", command], cwd=self.build, check=True)


def _inputs(build: Path, words: list[str]) -> list[str]:
    """The files that the link reads, those among them that assembly includes."""
    found = [".tmp_initcalls.lds"] if (build / ".tmp_initcalls.lds").exists() else []
    for word in parse_request(words).inputs:
        found.append(word)
        if word.endswith(".a"):
            members = [build / word / ".." / member.name for member in read_archive(build / word).members]
            found += [os.path.relpath(member, build) for member in members]
    for name in list(found):
        if kind_of(build / name) == "bitcode":
            data = (build / name).read_bytes()
            found += included_names(data, name) if may_include(data) else []
    return found


@contextmanager
def _workers(folder: Path, count: int) -> Iterator[tuple[str, list[int]]]:
    """A scheduler and workers that outlive a link: their address, and the workers' process ids."""
    place = folder / "address"
    klto = [sys.executable, "-m", "klto", "cluster"]
    running = []
    try:
        running.append(_start([*klto, "scheduler", "tcp://127.0.0.1:0", "--address-file", str(place)]))
        while not place.exists():
            time.sleep(0.05)
        address = place.read_text().strip()
        for _ in range(count):
            running.append(_start([*klto, "worker", address, "-j", "1", "--store", str(folder / "store")]))
        while len(_status(address)) < count:
            time.sleep(0.1)
        yield address, [worker.pid for worker in running[1:]]
    finally:
        for process in reversed(running):
            process.send_signal(signal.SIGTERM)
            process.wait()
        place.unlink(missing_ok=True)
        shutil.rmtree(folder / "store", ignore_errors=True)


def _cpu_of(processes: list[int]) -> float:
    """CPU seconds of some processes so far, without their children: utime and stime of proc(5)."""
    fields = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in processes]
    return sum(int(field) for found in fields for field in found[11:13]) / os.sysconf("SC_CLK_TCK")


def _start(argv: list[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def _status(address: str) -> list[dict[str, object]]:
    done = subprocess.run(
        [sys.executable, "-m", "klto", "cluster", "status", "--json", address],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return [worker for worker in json.loads(done.stdout)["workers"] if worker["host"]]


def main() -> None:
    """Overhead for each module, bytes for each link, seconds with one worker and two."""
    build = user_cache_dir() / "test/x86_64-6.12"
    if not (build / ".vmlinux.o.cmd").exists():
        print("not measured: make test builds the kernel for it")
        return
    with tempfile.TemporaryDirectory(prefix="klto-bench-") as name:
        folder = Path(name)
        subject = Subject(folder)
        ours, theirs = folder / "ours.o", folder / "theirs.o"
        uses: list[ClusterUse] = []
        ratio = in_turn(
            "local:2 / in process, no cache", lambda: uses.append(subject.klto("local:2", "", ours)),
            lambda: subject.plain(theirs), PAIRS, warm_up=False,
        )  # fmt: skip
        _same(ours, theirs)
        _per_module(ratio, uses[-1])
        standing = _standing(subject, folder, lambda: _same(ours, theirs), ours, theirs)
        (seconds,) = (json.loads(file.read_text()) for file in (folder / "cache-1/times").glob("*.json"))
        found = {"cpus": usable_cpus(), "seconds": list(seconds.values()), "runs": standing}
        (user_cache_dir() / MEASURED).write_text(json.dumps(found))


def _per_module(ratio: Ratio, use: ClusterUse) -> None:
    extra = statistics.median(a - b for a, b in zip(ratio.a, ratio.b, strict=True)) / use.modules
    print(
        f"{ratio.name}: {statistics.median(ratio.a):.1f} s, {statistics.median(ratio.b):.1f} s, {ratio.median:.2f}; "
        f"{extra * 1000:.1f} ms more for each of {use.modules} modules, the cluster's start among it"
    )


def _standing(
    subject: Subject, folder: Path, compare: Callable[[], None], ours: Path, theirs: Path
) -> dict[str, dict[str, object]]:
    """One worker, then two, that were there before: what a cold link took and used."""
    found = {}
    for count in (1, 2):
        cache = str(folder / f"cache-{count}")
        with _workers(folder, count) as (address, workers):
            before, begun = _cpu_of(workers), time.perf_counter()
            first = subject.klto(address, cache, ours)
            wall, cpu = time.perf_counter() - begun, _cpu_of(workers) - before
            found[str(count)] = _plain(first) | {"wall_seconds": wall, "worker_cpu_seconds": cpu}
            print(f"{'':<4}{count} worker{'s' * (count > 1)}: {wall:.1f} s; {_account(first, cpu)}")
            compare()
            if count == 2:
                subject.change()
                second = subject.klto(address, cache, ours)
                subject.plain(theirs)
                compare()
                _moved(first, second)
    return found


def _account(use: ClusterUse, workers: float) -> str:
    each = 1000 / use.modules
    return (
        f"thin link {use.thin_link_seconds:.2f} s, backends {use.backend_seconds:.1f} s "
        f"({use.backend_cpu_seconds:.1f} s of CPU), final link {use.final_link_seconds:.2f} s; CPU for each module: "
        f"link {use.client_cpu_seconds * each:.2f} ms, "
        f"looking at it and packing {use.helper_cpu_seconds * each:.2f} ms, "
        f"scheduler {use.scheduler_cpu_seconds * each:.2f} ms, workers {workers * each:.2f} ms"
    )


def _moved(first: ClusterUse, second: ClusterUse) -> None:
    print(f"{'':<4}one line changed: {second.remote} of {second.modules} modules on workers")
    moved = [
        (use.bytes_sent + use.bytes_received, use.bytes_sent_raw + use.bytes_received_raw)
        for use in (first, second)
    ]
    for what, a, b in zip(("there and back, compressed", "of it files, uncompressed"), *moved, strict=True):
        verdict = "met" if b <= 0.05 * a else "MISSED"
        print(
            f"{'':<4}{what}: first {a / 1e6:.1f} MB, second {b / 1e6:.2f} MB, {b / a:.1%}  <= 5.0%  {verdict}"
        )


def _same(ours: Path, theirs: Path) -> None:
    same = ours.read_bytes() == theirs.read_bytes()
    print(f"{'':<4}the two vmlinux.o are {'identical' if same else 'DIFFERENT'}", flush=True)


def _plain(use: ClusterUse) -> dict[str, object]:
    return {name: getattr(use, name) for name in use.__struct_fields__}


if __name__ == "__main__":
    main()
