"""Links on hosts that fail: whatever happens to a worker, the output is the one of the link without workers."""

from __future__ import annotations

import datetime
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from klto.cluster.certs import make_certificates
from klto.events import ClusterUse, LinkFinished, read_journal
from klto.objects.kind import kind_of
from tests.conftest import missing
from tests.real.cluster_samples import ALTERING
from tests.real.conftest import Kernel
from tests.soak.cluster_hosts import Cluster, Host, cluster_of, namespaces_missing, run, until

pytestmark = pytest.mark.real

#: Modules of the link: enough that something can happen in the midst of it.
_MODULES = 24


@dataclass(frozen=True)
class Program:
    """A part of the kernel, linked with -r: its modules, and what the linker makes of them in process."""

    folder: Path
    modules: list[str]
    expected: bytes


@pytest.fixture(scope="module")
def program(x86_64_6_12: Kernel, llvm_bin: Path, tmp_path_factory: pytest.TempPathFactory) -> Program:
    folder = x86_64_6_12.build_dir
    paths = sorted(folder.glob("kernel/**/*.o"), key=lambda path: path.stat().st_size)
    modules = [
        str(path.relative_to(folder))
        for path in paths
        if kind_of(path) == "bitcode" and path.suffixes == [".o"]
    ]
    modules = sorted(modules[-_MODULES:])
    output = tmp_path_factory.mktemp("expected") / "out.o"
    subprocess.run([llvm_bin / "ld.lld", "-r", "-o", output, *modules], cwd=folder, check=True)
    return Program(folder, modules, output.read_bytes())


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    why = namespaces_missing()
    if why:
        missing(why)
    with cluster_of(tmp_path_factory.mktemp("cluster"), 2) as made:
        yield made


@dataclass(frozen=True)
class Linked:
    """A link that has ended."""

    output: bytes
    use: ClusterUse
    err: str


@pytest.fixture
def link(
    cluster: Cluster, program: Program, llvm_bin: Path, tmp_path: Path
) -> Iterator[Callable[[Callable[[], None] | None], Linked]]:
    """Link with both hosts' workers; something may happen meanwhile. No results are kept from link to link."""

    def do(meanwhile: Callable[[], None] | None = None) -> Linked:
        journal, output = tmp_path / "events.jsonl", tmp_path / "out.o"
        journal.unlink(missing_ok=True)
        environment = {
            **cluster.environment, "KLTO_CACHE": "", "KLTO_JOURNAL": str(journal), "KLTO_LD": str(llvm_bin / "ld.lld"),
        }  # fmt: skip
        child = subprocess.Popen(
            [sys.executable, "-m", "klto", "ld", f"--cluster={cluster.address}", "-r", "-o", output, *program.modules],
            cwd=program.folder, env=environment, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        if meanwhile is not None:
            meanwhile()
        _, err = child.communicate(timeout=300)
        print(err)
        assert child.returncode == 0
        assert "Traceback" not in err
        (use,) = [event.cluster for event in read_journal(journal) if isinstance(event, LinkFinished)]
        assert use is not None
        return Linked(output.read_bytes(), use, err)

    yield do
    for host in cluster.hosts:
        _end(host)


def _end(host: Host) -> None:
    if host.process is not None:
        host.signal(signal.SIGKILL)
        host.process.wait()
        host.process = None
        for left in host.folder.glob(
            "klto-work-*"
        ):  # Of jobs that died with it: the next worker is not busy yet.
            shutil.rmtree(left)
    run("ip", "link", "set", f"{host.name}-h", "up")


def _both(cluster: Cluster) -> tuple[Host, Host]:
    one, other = cluster.hosts
    for host in (one, other):
        cluster.start_worker(host)
    until(lambda: {host.address for host in (one, other)} <= _present(cluster))
    return one, other


def _present(cluster: Cluster) -> set[str]:
    return {
        worker["address"].rpartition("/")[2].rpartition(":")[0]
        for worker in cluster.status()
        if worker["host"]
    }


Link = Callable[..., Linked]


def test_two_hosts_over_tls(cluster: Cluster, program: Program, link: Link) -> None:
    _both(cluster)
    first = link()
    assert first.output == program.expected
    assert (first.use.remote, first.use.local, first.use.faults) == (_MODULES, 0, [])
    again = link()
    assert again.output == program.expected
    # Bitcode, shards and imports are in the workers' stores now: only jobs travel, and what the other host had.
    assert again.use.bytes_sent < first.use.bytes_sent


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_worker_signalled(cluster: Cluster, program: Program, link: Link, number: int) -> None:
    one, _ = _both(cluster)

    def meanwhile() -> None:
        until(one.busy)
        one.signal(number)

    done = link(meanwhile)
    assert done.output == program.expected
    assert done.use.remote + done.use.local >= _MODULES
    assert done.use.faults or done.use.again


def test_network_cut(cluster: Cluster, program: Program, link: Link) -> None:
    _, other = _both(cluster)

    def meanwhile() -> None:
        until(other.busy)
        other.cut()

    done = link(meanwhile)
    assert done.output == program.expected
    assert done.use.faults or done.use.again


def test_disk_full(cluster: Cluster, program: Program, link: Link, tmp_path: Path) -> None:
    one, other = cluster.hosts
    small = one.folder / "small"
    small.mkdir(exist_ok=True)
    run("mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(small))
    try:
        cluster.start_worker(one, "--store", str(small))
        cluster.start_worker(other)
        until(lambda: {one.address, other.address} <= _present(cluster))
        done = link()
    finally:
        _end(one)
        run("umount", "-l", str(small))
    assert done.output == program.expected
    assert any("No space left" in fault for fault in done.use.faults)


#: A fake worker whose compilers have too little memory.
_POOR = """
import sys
from klto import process
real = process.started
process.started = lambda argv, **more: real(
    ["prlimit", "--as=150000000", *argv] if "-c" in argv else argv, **more)
from klto.cli import main
sys.exit(main())
"""


@pytest.mark.parametrize(("program_text", "said"), [(ALTERING, "not what was sent"), (_POOR, "")])
def test_bad_workers(
    cluster: Cluster, program: Program, link: Link, tmp_path: Path, program_text: str, said: str
) -> None:
    one, other = cluster.hosts
    fake = tmp_path / "worker.py"
    fake.write_text(program_text)
    cluster.start_worker(one, program=(str(fake),))
    cluster.start_worker(other)
    until(lambda: {one.address, other.address} <= _present(cluster))
    done = link()
    assert done.output == program.expected
    assert any(said in fault for fault in done.use.faults)


def test_all_workers_gone(cluster: Cluster, program: Program, link: Link) -> None:
    hosts = _both(cluster)

    def meanwhile() -> None:
        until(lambda: any(host.busy() for host in hosts))
        for host in hosts:
            host.signal(signal.SIGKILL)

    done = link(meanwhile)
    assert done.output == program.expected
    assert done.use.local > 0
    assert "compiled here" in done.err


def test_interrupt_ends_the_compilers_of_workers(
    cluster: Cluster, program: Program, llvm_bin: Path, tmp_path: Path
) -> None:
    hosts = _both(cluster)
    environment = {**cluster.environment, "KLTO_CACHE": "", "KLTO_LD": str(llvm_bin / "ld.lld")}
    child = subprocess.Popen(
        [sys.executable, "-m", "klto", "ld", f"--cluster={cluster.address}", "-r", "-o", tmp_path / "out.o",
         *program.modules],
        cwd=program.folder, env=environment, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    try:
        until(lambda: any(host.busy() for host in hosts))
        os.killpg(child.pid, signal.SIGINT)
        assert child.wait(30) != 0
        until(lambda: not any(host.busy() for host in hosts))
    finally:
        for host in hosts:
            _end(host)


@pytest.mark.parametrize("case", ["none", "other", "expired", "right"])
def test_certificates(cluster: Cluster, tmp_path: Path, case: str) -> None:
    folder = tmp_path / "certs"
    if case == "other":
        make_certificates(folder, 1)
    elif case == "expired":
        folder.mkdir()
        for name in ("ca.pem", "ca-key.pem"):
            (folder / name).write_bytes((cluster.certificates / name).read_bytes())
        make_certificates(folder, 1, datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=3))
    elif case == "right":
        folder = cluster.certificates
    done = subprocess.run(
        [sys.executable, "-m", "klto", "cluster", "status", "--json", cluster.address],
        env={**os.environ, "KLTO_CLUSTER_CERTS": str(folder)}, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    if case == "right":
        assert done.returncode == 0
        assert json.loads(done.stdout)["schema"] == "klto/cluster/1"
        return
    assert done.returncode == 2
    assert {"none": "no certificate", "other": "do not trust", "expired": "do not trust"}[case] in done.stderr
