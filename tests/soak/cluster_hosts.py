"""Hosts of our own: network namespaces with veth pairs, a scheduler here, a worker in each of them, TLS between."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from klto.cluster.certs import make_certificates

#: How long anything here may take before a test gives up.
DEADLINE = 120.0


def namespaces_missing() -> str | None:
    """Why network namespaces cannot be had here; None when they can."""
    if shutil.which("ip") is None:
        return "ip (iproute2)"
    tried = subprocess.run(
        ["ip", "netns", "add", f"klto-try-{os.getpid()}"], capture_output=True, text=True, check=False
    )
    if tried.returncode != 0:
        return f"network namespaces (ip netns add: {tried.stderr.strip()})"
    subprocess.run(["ip", "netns", "delete", f"klto-try-{os.getpid()}"], check=True)
    return None


@dataclass
class Host:
    """A worker's host."""

    name: str
    number: int
    folder: Path
    process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"10.213.{self.number}.2"

    @property
    def gateway(self) -> str:
        return f"10.213.{self.number}.1"

    def cut(self) -> None:
        """Its link goes down."""
        run("ip", "link", "set", f"{self.name}-h", "down")

    def signal(self, number: int) -> None:
        """To the worker and to the compilers that it runs."""
        assert self.process is not None
        for pid in (*children_of(self.process.pid), self.process.pid):
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue

    def busy(self) -> bool:
        """Whether a job of it is under way."""
        return any(self.folder.glob("klto-work-*/job-*/said"))


@dataclass
class Cluster:
    """A scheduler and its hosts. ``environment``: what a client here needs."""

    folder: Path
    certificates: Path
    hosts: list[Host] = field(default_factory=list)
    port: int = 0

    @property
    def address(self) -> str:
        return f"tls://{self.hosts[0].gateway}:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "KLTO_CLUSTER_CERTS": str(self.certificates)}

    def start_worker(self, host: Host, *options: str, program: tuple[str, ...] = ("-m", "klto")) -> None:
        log = (self.folder / f"{host.name}.log").open("ab")
        host.process = subprocess.Popen(
            ["ip", "netns", "exec", host.name, sys.executable, *program, "cluster", "worker",
             f"tls://{host.gateway}:{self.port}", "-j", "1", "--store", str(host.folder),
             "--host", host.address, *options],
            env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )  # fmt: skip

    def status(self) -> list[dict[str, Any]]:
        done = subprocess.run(
            [sys.executable, "-m", "klto", "cluster", "status", "--json", self.address],
            env=self.environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        workers: list[dict[str, Any]] = json.loads(done.stdout)["workers"]
        return workers

    def await_workers(self, count: int) -> None:
        until(lambda: sum(bool(worker["host"]) for worker in self.status()) >= count)


def children_of(pid: int) -> list[int]:
    """Its descendants."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid:
            child = int(entry.parent.name)
            found += [*children_of(child), child]
    return found


def until(condition: Callable[[], bool]) -> None:
    """Wait for something to become true."""
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


def run(*argv: str) -> None:
    subprocess.run(argv, check=True, capture_output=True)


@contextmanager
def cluster_of(folder: Path, count: int) -> Iterator[Cluster]:
    """A scheduler and ``count`` hosts without workers yet."""
    certificates = folder / "certs"
    make_certificates(certificates, 1)
    cluster = Cluster(folder, certificates)
    scheduler = None
    try:
        for number in range(1, count + 1):
            host = Host(f"klto{os.getpid() % 100000}w{number}", number, folder / f"host{number}")
            host.folder.mkdir()
            cluster.hosts.append(host)
            _wire(host)
        place = folder / "address"
        log = (folder / "scheduler.log").open("wb")
        scheduler = subprocess.Popen(
            [sys.executable, "-m", "klto", "cluster", "scheduler", "tls://0.0.0.0:0", "--address-file", str(place)],
            env=cluster.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )  # fmt: skip
        until(lambda: place.exists())
        cluster.port = int(place.read_text().strip().rpartition(":")[2])
        yield cluster
    finally:
        for host in cluster.hosts:
            if host.process is not None:
                host.signal(signal.SIGKILL)
                host.process.wait()
            subprocess.run(["ip", "netns", "delete", host.name], check=False, capture_output=True)
            subprocess.run(["ip", "link", "delete", f"{host.name}-h"], check=False, capture_output=True)
        if scheduler is not None:
            scheduler.terminate()
            scheduler.wait(DEADLINE)


def _wire(host: Host) -> None:
    near, far = f"{host.name}-h", "eth0"
    run("ip", "netns", "add", host.name)
    run("ip", "link", "add", near, "type", "veth", "peer", "name", far, "netns", host.name)
    run("ip", "addr", "add", f"{host.gateway}/24", "dev", near)
    run("ip", "link", "set", near, "up")
    run("ip", "-n", host.name, "addr", "add", f"{host.address}/24", "dev", far)
    run("ip", "-n", host.name, "link", "set", far, "up")
    run("ip", "-n", host.name, "link", "set", "lo", "up")
    run("ip", "-n", host.name, "route", "add", "default", "via", host.gateway)
