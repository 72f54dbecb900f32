"""Runs one backend: clang on a module's bitcode with its index shard, in a folder of its own.

The same function on a worker and on the machine of the link.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import msgspec

from klto import process
from klto.cluster.job import Outcome, digest_of
from klto.objects.elf import Elf
from klto.objects.errors import MalformedObject

if TYPE_CHECKING:
    from collections.abc import Callable

    from klto.cluster.job import Job
    from klto.cluster.modules import Place
    from klto.cluster.toolchain import Compiler

#: Seconds between looks at whether a job is still wanted.
_POLL = 0.2
#: Bytes of a compiler's messages that are kept.
_MOST_TEXT = 8000
#: e_machine (System V ABI, gABI 4.3) of the triples that a result is checked against.
_MACHINES = {"x86_64": 62, "aarch64": 183, "i386": 3, "i686": 3, "riscv64": 243, "armv7": 40, "arm": 40}
_ET_REL = 1
#: Statuses that clang ends with when it crashed rather than judged: a signal, or what its driver makes of one
#: (clang/tools/driver/driver.cpp: 70 is EX_SOFTWARE).
_CRASHED = (70, 128 + signal.SIGKILL, 128 + signal.SIGTERM, 128 + signal.SIGBUS)


class Files(Protocol):
    """Where a job's files come from."""

    def place(self, sha256: str, path: Path) -> None:
        """Make the content appear at ``path``.

        :raises KeyError: when it is not to be had.
        """


def run_backend(
    job: Job, compiler: Compiler, files: Files, work: Path, wanted: Callable[[], bool] = lambda: True
) -> Outcome:
    """Run a job to its end.

    :param work: a folder in which the job's own is made.
    :param wanted: asked now and then; the compiler is stopped when it says no.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="job-", dir=work) as name:
            return _run(job, compiler, files, Path(name), wanted)
    except OSError as error:
        return Outcome(status="lost", text=f"{error.strerror or error} ({error.filename or work})")


def _run(job: Job, compiler: Compiler, files: Files, folder: Path, wanted: Callable[[], bool]) -> Outcome:
    inputs, result = folder / "in", folder / "out.o"
    lacking = []
    for blob in job.files:
        path = inputs / blob.path
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            files.place(blob.sha256, path)
        except KeyError:
            lacking.append(blob.sha256)
    if lacking:
        return Outcome(status="lacking", lacking=tuple(lacking))
    argv = [
        compiler.path,
        "--no-default-config",
        *job.options.clang_arguments(),
        *("-Wno-override-module", "-c", f"-fthinlto-index={job.index}", "-x", "ir", job.module),
        *("-o", str(result)),
    ]
    with (folder / "said").open("w+b") as said:
        environment = process.child_environment(drop=("CCC_OVERRIDE_OPTIONS", "COMPILER_PATH", "CPATH"))
        environment["TMPDIR"] = str(folder)
        with process.started(argv, cwd=inputs, env=environment, stdout=said, stderr=said) as child:
            while child.alive():
                if not wanted():
                    return Outcome(status="cancelled")
                try:
                    child.wait(timeout=_POLL)
                except process.CommandTimeout:
                    continue
            usage = child.wait()
        said.seek(0)
        text = said.read(_MOST_TEXT).decode("utf-8", "replace")
    spent = Outcome(
        status="done",
        wall_seconds=usage.wall_seconds,
        cpu_seconds=usage.cpu_seconds,
        peak_bytes=usage.peak_bytes,
    )
    status = child.returncode or 0
    if status != 0:
        verdict = "lost" if status < 0 or status in _CRASHED or _lost_by(text) else "failed"
        text = f"{process.describe_status(status)}\n{text}"
        return msgspec.structs.replace(spent, status=verdict, text=text)
    data = result.read_bytes()
    return msgspec.structs.replace(spent, object=data, sha256=digest_of(data), text=text)


def _lost_by(text: str) -> bool:
    """Whether the machine failed and not the module: what clang prints for ENOSPC, ENOMEM and the like."""
    return any(
        sign in text
        for sign in (
            "No space left on device",
            "out of memory",
            "Cannot allocate memory",
            "Input/output error",
        )
    )


def check_object(data: bytes, sha256: str, triple: str, where: str) -> str | None:
    """What is wrong with a returned object; None when nothing is."""
    if digest_of(data) != sha256:
        return "its content is not what was sent"
    try:
        elf = Elf(data, where)
        sections = elf.sections
    except MalformedObject as error:
        return str(error)
    machine = _MACHINES.get(triple.partition("-")[0])
    if elf.header.e_type != _ET_REL:
        return f"expected a relocatable object, found e_type {elf.header.e_type}"
    if machine is not None and elf.header.e_machine != machine:
        return f"expected code for {triple}, found e_machine {elf.header.e_machine}"
    if len(sections) < 2:
        return "expected sections, found none"
    return None


class LocalFiles:
    """Files of this machine, by their content: places and bytes."""

    def __init__(self) -> None:
        self._places: dict[str, Place] = {}
        self._bytes: dict[str, bytes] = {}

    def add_place(self, sha256: str, place: Place) -> None:
        """A file that holds this content for as long as the link runs."""
        self._places[sha256] = place._replace(path=os.path.abspath(place.path))

    def add_bytes(self, sha256: str, data: bytes) -> None:
        """Content that is in no file of its own."""
        self._bytes[sha256] = data

    def read(self, sha256: str) -> bytes:
        """The content.

        :raises KeyError: when it is not here.
        :raises OSError: when its file cannot be read.
        """
        if sha256 in self._bytes:
            return self._bytes[sha256]
        return self._places[sha256].read()

    def size(self, sha256: str) -> int:
        """Bytes of the content."""
        return len(self._bytes[sha256]) if sha256 in self._bytes else self._places[sha256].size

    def place(self, sha256: str, path: Path) -> None:
        """As in :class:`Files`."""
        if sha256 in self._places and self._places[sha256].whole:
            os.symlink(self._places[sha256].path, path)
        else:
            path.write_bytes(self.read(sha256))


def make_work_folder(base: Path | None = None) -> Path:
    """A folder for jobs; what killed runs have left behind for a day is removed."""
    base = base or Path(tempfile.gettempdir())
    for old in base.glob("klto-work-*"):
        try:
            if time.time() - old.stat().st_mtime > 86_400 and old.stat().st_uid == os.getuid():
                shutil.rmtree(old, ignore_errors=True)
        except OSError:
            continue  # Another process was faster.
    return Path(tempfile.mkdtemp(prefix="klto-work-", dir=base))
