"""Links with worker processes of this machine, on a part of real kernels; hosts of their own are in tests/soak."""

from __future__ import annotations

import datetime
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from klto.cluster.certs import make_certificates
from klto.events import ClusterUse, LinkFinished, read_journal
from klto.objects.kind import kind_of
from tests.conftest import missing
from tests.real.cluster_samples import ALTERING, ring_of_files
from tests.real.conftest import Kernel

pytestmark = pytest.mark.real

#: Modules of a link: more than klto links without a cluster whatever is asked, and a run of several jobs.
_MODULES = 24
_DEADLINE = 120.0
_KLTO = (sys.executable, "-m", "klto")


def until(condition: Callable[[], bool]) -> None:
    """Wait for something to become true."""
    deadline = time.monotonic() + _DEADLINE
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


@dataclass
class Link:
    """A part of a kernel, linked with -r."""

    kernel: Kernel
    linker: Path
    folder: Path
    modules: list[str]

    def expected(self) -> bytes:
        """What the linker makes of it in process."""
        output = self.folder / "expected.o"
        subprocess.run(
            [self.linker, "-r", *self.modules, "-o", output], cwd=self.kernel.build_dir, check=True
        )
        return output.read_bytes()

    def start(self, address: str, **environment: str) -> subprocess.Popen[str]:
        """Link on a cluster, in a session of its own."""
        (self.folder / "events.jsonl").unlink(missing_ok=True)
        return subprocess.Popen(
            [*_KLTO, "ld", f"--cluster={address}", "-r", *self.modules, "-o", self.folder / "out.o"],
            cwd=self.kernel.build_dir, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            start_new_session=True,
            env={**os.environ, "KLTO_CACHE": "", "KLTO_LD": str(self.linker),
                 "KLTO_JOURNAL": str(self.folder / "events.jsonl"), **environment},
        )  # fmt: skip

    def end(self, child: subprocess.Popen[str]) -> tuple[bytes, ClusterUse]:
        """Wait for a link that succeeds: the output, and what it used."""
        _, err = child.communicate(timeout=100)
        print(err)
        assert child.returncode == 0
        assert "Traceback" not in err
        (use,) = [
            e.cluster for e in read_journal(self.folder / "events.jsonl") if isinstance(e, LinkFinished)
        ]
        assert use is not None
        return (self.folder / "out.o").read_bytes(), use


def part_of(kernel: Kernel, llvm_bin: Path, folder: Path) -> Link:
    names = sorted(str(path.relative_to(kernel.build_dir)) for path in kernel.build_dir.glob("kernel/**/*.o"))
    modules = [
        name for name in names if kind_of(kernel.build_dir / name) == "bitcode" and name.count(".") == 1
    ]
    assert len(modules) >= _MODULES
    return Link(kernel, llvm_bin / "ld.lld", folder, modules[:_MODULES])


@pytest.mark.parametrize("name", ["x86_64_6_12", "arm64_6_12"])
def test_part_of_a_kernel_on_two_workers(
    request: pytest.FixtureRequest, llvm_bin: Path, tmp_path: Path, name: str
) -> None:
    link = part_of(request.getfixturevalue(name), llvm_bin, tmp_path)
    expected = link.expected()
    output, use = link.end(link.start("local:2", KLTO_CACHE=str(tmp_path / "cache")))
    assert output == expected
    assert (use.remote, use.local, use.faults) == (_MODULES, 0, [])
    output, use = link.end(link.start("local:2", KLTO_CACHE=str(tmp_path / "cache")))
    assert output == expected
    assert (use.cached, use.bytes_sent) == (_MODULES, 0)


@dataclass
class Workers:
    """A scheduler and workers on loopback."""

    folder: Path
    address: str = ""
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self, *arguments: str, program: tuple[str, ...] = ("-m", "klto")) -> subprocess.Popen[bytes]:
        log = (self.folder / "cluster.log").open("ab")
        self.started.append(
            subprocess.Popen(
                [sys.executable, *program, "cluster", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        )
        return self.started[-1]

    def worker(self, name: str, program: tuple[str, ...] = ("-m", "klto")) -> subprocess.Popen[bytes]:
        return self.start(
            "worker", self.address, "-j", "1", "--store", str(self.folder / name), program=program
        )

    def busy(self, name: str) -> bool:
        """Whether a job is under way on a worker."""
        return any((self.folder / name).glob("klto-work-*/job-*/said"))

    def await_workers(self, count: int) -> None:
        log = self.folder / "cluster.log"
        until(lambda: len(re.findall("Registered to", log.read_text())) >= count)


@pytest.fixture
def workers(tmp_path: Path) -> Iterator[Workers]:
    with _scheduler(tmp_path, "tcp") as found:
        yield found


@contextmanager
def _scheduler(folder: Path, protocol: str) -> Iterator[Workers]:
    found = Workers(folder)
    place = folder / "address"
    try:
        found.start("scheduler", f"{protocol}://127.0.0.1:0", "--address-file", str(place))
        until(place.exists)
        found.address = place.read_text().strip()
        yield found
    finally:
        for process in reversed(found.started):
            process.kill()
            process.wait()


def test_killed_and_altering_workers(
    x86_64_6_12: Kernel, llvm_bin: Path, tmp_path: Path, workers: Workers
) -> None:
    fake = tmp_path / "worker.py"
    fake.write_text(ALTERING)
    workers.worker("altering", program=(str(fake),))
    killed = workers.worker("killed")
    workers.worker("good")
    workers.await_workers(3)
    for process in workers.started:
        assert listening(process.pid) <= {"0100007F", "00000000000000000000000001000000"}
    link = part_of(x86_64_6_12, llvm_bin, tmp_path)
    child = link.start(workers.address)
    until(lambda: workers.busy("killed"))
    killed.send_signal(signal.SIGKILL)
    output, use = link.end(child)
    assert output == link.expected()
    assert use.remote + use.local == _MODULES
    assert any("not what was sent" in fault for fault in use.faults)
    assert any("is gone" in fault for fault in use.faults) or use.lost > 0


def listening(pid: int) -> set[str]:
    """Addresses that a process listens at, as /proc/net/tcp has them (proc(5); state 0A is LISTEN)."""
    sockets = {os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir()}
    lines = [
        line.split()
        for name in ("tcp", "tcp6")
        for line in Path(f"/proc/{pid}/net/{name}").read_text().splitlines()
    ]
    found = {
        fields[1].partition(":")[0]
        for fields in lines
        if fields[3] == "0A" and f"socket:[{fields[9]}]" in sockets
    }
    assert found
    return found


#: When a link on local:2 is interrupted: its scheduler has begun; has an address; a backend has ended.
_MOMENTS = ("klto-cluster-*/log", "klto-cluster-*/address", "klto-cluster-*/store/klto-work-*/job-*/said")


@pytest.mark.parametrize("moment", _MOMENTS)
@pytest.mark.parametrize("times", [1, 2])
def test_interrupt_leaves_nothing_behind(
    x86_64_6_12: Kernel, llvm_bin: Path, tmp_path: Path, moment: str, times: int
) -> None:
    link = part_of(x86_64_6_12, llvm_bin, tmp_path)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    child = link.start("local:2", TMPDIR=str(scratch))
    until(lambda: any(scratch.glob(moment)))
    assert _of_session(child.pid)
    for _ in range(times):
        os.killpg(child.pid, signal.SIGINT)
    _, err = child.communicate(timeout=_DEADLINE)
    assert child.returncode == 130, err
    assert "Traceback" not in err
    assert _of_session(child.pid) == []
    assert list(scratch.iterdir()) == []


def _of_session(session: int) -> list[str]:
    """The programs that run in a session (proc(5), stat: its sixth field)."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, fields = entry.read_text().rpartition(")")
        except OSError:
            continue
        if int(fields.split()[3]) == session and fields.split()[0] != "Z":
            found.append(name)
    return found


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """Certificates, and the address of a scheduler that has them."""
    folder = tmp_path_factory.mktemp("guarded")
    make_certificates(folder / "certs", 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KLTO_CLUSTER_CERTS", str(folder / "certs"))
        with _scheduler(folder, "tls") as found:
            yield folder / "certs", found.address


@pytest.mark.parametrize("case", ["none", "other", "expired", "right"])
def test_certificates(guarded: tuple[Path, str], tmp_path: Path, case: str) -> None:
    there, address = guarded
    here = tmp_path / "here"
    if case == "other":
        make_certificates(here, 1)
    elif case == "expired":
        here.mkdir()
        for name in ("ca.pem", "ca-key.pem"):
            (here / name).write_bytes((there / name).read_bytes())
        make_certificates(here, 1, datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=3))
    elif case == "right":
        here = there
    done = subprocess.run(
        [*_KLTO, "cluster", "status", "--json", address], capture_output=True, text=True, check=False,
        env={**os.environ, "KLTO_CLUSTER_CERTS": str(here)}, timeout=_DEADLINE,
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    if case == "right":
        assert done.returncode == 0
        assert json.loads(done.stdout)["workers"] == []
        return
    assert done.returncode == 2
    assert {"none": "no certificate", "other": "do not trust", "expired": "do not trust"}[case] in done.stderr


def test_module_that_cannot_be_generated_is_named(llvm_bin: Path, tmp_path: Path) -> None:
    """It fails on a worker and then here, and is not tried for ever."""
    names = [f"f{number}" for number in range(_MODULES)]
    for name in names:
        (tmp_path / f"{name}.c").write_text(f"int {name}(int x) {{ return x + 1; }}\n")
    (tmp_path / "f7.c").write_text('int f7(int x) { asm volatile("bogus %0" : "+r"(x)); return x; }\n')
    clang = [llvm_bin / "clang", "-O2", "-flto=thin", "-c", *(f"{name}.c" for name in names)]
    subprocess.run(clang, cwd=tmp_path, check=True)
    done = subprocess.run(
        [*_KLTO, "ld", "--cluster=local:2", "-r", *(f"{name}.o" for name in names), "-o", "out.o"],
        cwd=tmp_path, capture_output=True, text=True, check=False, timeout=_DEADLINE,
        env={**os.environ, "KLTO_CACHE": "", "KLTO_LD": str(llvm_bin / "ld.lld")},
    )  # fmt: skip
    assert done.returncode == 1
    assert "the backend of f7.o failed" in done.stderr
    assert "bogus" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out.o").exists()


def test_distributor_of_llvm_22(tmp_path: Path) -> None:
    """klto as ``--thinlto-distributor`` for a program of as many files: the in-process link's bytes."""
    llvm = Path("/usr/lib/llvm-22/bin")
    if not (llvm / "ld.lld").exists() or not (llvm / "clang").exists():
        missing("LLVM 22 (clang-22, lld-22)")
    names = ring_of_files(tmp_path, _MODULES)
    sources = [f"{name}.c" for name in names]
    inputs = [f"{name}.o" for name in names]
    subprocess.run([llvm / "clang", "-O2", "-flto=thin", "-c", *sources], cwd=tmp_path, check=True)
    subprocess.run([llvm / "ld.lld", "-r", "-o", "expected", *inputs], cwd=tmp_path, check=True)
    distributor = ("dtlto-distributor", "-v", f"--cache-dir={tmp_path / 'cache'}")
    for cached in (0, _MODULES):
        done = subprocess.run(
            [llvm / "ld.lld", "-r", "-o", "out", *inputs, f"--thinlto-remote-compiler={llvm / 'clang'}",
             f"--thinlto-distributor={Path(sys.executable).parent / 'klto'}",
             *(f"--thinlto-distributor-arg={word}" for word in distributor)],
            cwd=tmp_path, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert f"{_MODULES} modules: {cached} from the cache" in done.stderr
        assert (tmp_path / "out").read_bytes() == (tmp_path / "expected").read_bytes()
