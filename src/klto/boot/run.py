"""Boot a kernel and judge the proofs: the room's face."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

from klto import process
from klto.boot.accelerator import choose_accelerator, remember
from klto.boot.console import MAX_LOG_BYTES, Console
from klto.boot.guest import Compiler, base_initramfs, boot_archive
from klto.boot.images import Arch, KernelImage
from klto.boot.initramfs import Entry
from klto.boot.proofs import (
    Course,
    Proof,
    ProofResult,
    ProofStatus,
    Transcript,
    judge,
    missing_options,
    select_proofs,
)
from klto.boot.qemu import Accelerator, Machine, find_qemu
from klto.boot.session import Ending, QemuLife, Session, Stopwatch, Wires, wires
from klto.errors import UsageError

#: Seconds that a guest may take, by default. The small kernels of klto's tests need 1 to 3 under TCG, a
#: distribution's kernel on a busy machine some 40.
DEFAULT_TIMEOUT = {Accelerator.KVM: 60.0, Accelerator.TCG: 120.0}


@dataclass(frozen=True)
class BootRequest:
    """What to boot, with what, and what to prove.

    ``log``: where the console log goes. ``cache``: klto's directory in the user's cache. ``config``: the
    kernel's configuration (name without ``CONFIG_`` to value) where it is known: proofs that it rules out are
    not run. ``accelerator`` None: what has proved to work. ``timeout``: seconds. ``append``: more for the
    kernel's command line. ``files``: more for the initramfs.
    """

    image: KernelImage
    compiler: Compiler
    log: Path
    cache: Path
    proofs: tuple[str, ...] = ()
    config: Mapping[str, str] | None = None
    qemu: str | None = None
    accelerator: Accelerator | None = None
    cpu: str | None = None
    timeout: float | None = None
    append: str = ""
    files: tuple[Entry, ...] = ()


@dataclass(frozen=True)
class BootResult:
    """What came of a boot.

    ``seconds``: from the guest's start to its end. ``qemu``: its command line, empty when nothing was booted
    because no proof applies. ``console_tail``: the console's last lines. ``ending``: one line on why the
    guest ended.
    """

    image: Path
    arch: str
    release: str | None
    accelerator: str
    qemu: tuple[str, ...]
    qemu_version: str
    seconds: float
    console_log: Path
    console_tail: tuple[str, ...]
    ending: str
    proofs: tuple[ProofResult, ...]

    @property
    def status(self) -> ProofStatus:
        """The worst of the proofs: failed, unknown, passed; not-applicable when none could run."""
        found = {proof.status for proof in self.proofs}
        for status in (ProofStatus.FAILED, ProofStatus.UNKNOWN, ProofStatus.PASSED):
            if status in found:
                return status
        return ProofStatus.NOT_APPLICABLE


def boot_kernel(request: BootRequest) -> BootResult:
    """Boot the kernel once and run the proofs in it.

    No process, and no file but the console log and the cache, is left behind, whatever ends the call.

    :raises UsageError: an unknown proof, no QEMU, no usable compiler, a log that cannot be written.
    """
    selected = select_proofs(request.proofs)
    qemu = find_qemu(request.image.arch, request.qemu)
    plan, excluded = _applicable(selected, request.image.arch, request.config)
    if not plan:
        return _not_booted(request, excluded)
    initramfs = base_initramfs(request.image.arch, request.compiler, request.cache)
    wanted = request.accelerator or choose_accelerator(request.image.arch, qemu, request.cache)
    attempt = _boot(replace(request, accelerator=wanted), qemu, initramfs, plan)
    if request.accelerator is None and wanted is Accelerator.KVM and attempt.suspect:
        # The probe passed, and yet this looks like a KVM that does not work.
        attempt = _boot(replace(request, accelerator=Accelerator.TCG), qemu, initramfs, plan)
        if not attempt.suspect:
            remember(request.image.arch, qemu, request.cache, works=False)
    order = [proof.name for proof in selected]
    results = sorted((*attempt.result.proofs, *excluded), key=lambda proof: order.index(proof.name))
    return replace(attempt.result, proofs=tuple(results))


def _applicable(
    selected: tuple[Proof, ...], arch: Arch, config: Mapping[str, str] | None
) -> tuple[tuple[Proof, ...], tuple[ProofResult, ...]]:
    plan: list[Proof] = []
    excluded: list[ProofResult] = []
    for proof in selected:
        missing = missing_options(proof, arch, config) if config is not None else ()
        if missing:
            excluded.append(ProofResult(proof.name, ProofStatus.NOT_APPLICABLE, 0.0, missing))
        else:
            plan.append(proof)
    return tuple(plan), tuple(excluded)


def _not_booted(request: BootRequest, excluded: tuple[ProofResult, ...]) -> BootResult:
    image = request.image
    return BootResult(
        image.path, image.arch, image.release, "", (), "", 0.0, request.log, (), "was not booted", excluded
    )


@dataclass(frozen=True)
class _Attempt:
    result: BootResult
    #: Whether the guest said nothing, or QEMU failed.
    suspect: bool


def _boot(request: BootRequest, qemu: Path, initramfs: bytes, plan: tuple[Proof, ...]) -> _Attempt:
    """One run of QEMU."""
    accelerator = request.accelerator or Accelerator.TCG
    timeout = request.timeout or DEFAULT_TIMEOUT[accelerator]
    nonce = secrets.token_hex(16)
    transcript, watch = Transcript(nonce), Stopwatch()
    with _open_log(request.log) as log, _memory_file() as initrd, wires() as ends:
        initrd.write(initramfs + boot_archive(nonce, [proof.name for proof in plan], request.files))
        initrd.flush()
        machine = _machine(request, qemu, accelerator, initrd.fileno(), ends)
        console = Console(log, watch, MAX_LOG_BYTES)
        session = Session(ends, console, transcript, watch, timeout)
        output = ends.descriptor("output")
        inherited = (initrd.fileno(), *(end.fileno() for end in ends.far.values()))
        with process.started(machine.argv(), stdout=output, stderr=output, pass_fds=inherited) as child:
            ends.hand_over()
            try:
                life = session.follow(child)
            except OSError as error:
                raise UsageError(f"cannot write {request.log}: {error.strerror}") from error
    ending = _describe(life, console, timeout)
    course = Course(
        transcript=transcript,
        reports=console.reports,
        ending=ending,
        lost=life.ending.lost,
        seconds=life.seconds,
        notes=_notes(life),
        silent=console.bytes == 0,
    )
    result = BootResult(
        image=request.image.path,
        arch=request.image.arch,
        release=request.image.release,
        accelerator=accelerator,
        qemu=machine.argv(),
        qemu_version=session.qemu_version,
        seconds=life.seconds,
        console_log=request.log,
        console_tail=tuple(console.tail),
        ending=ending,
        proofs=judge(plan, request.image, course),
    )
    return _Attempt(result, suspect=life.ending.lost or not life.heard)


def _machine(request: BootRequest, qemu: Path, accelerator: Accelerator, initrd: int, ends: Wires) -> Machine:
    return Machine(
        qemu,
        request.image.arch,
        accelerator,
        request.image.path.absolute(),
        initrd_fd=initrd,
        console_fd=ends.descriptor("console"),
        uart_fd=ends.descriptor("uart"),
        virtio_fd=ends.descriptor("virtio"),
        qmp_fd=ends.descriptor("qmp"),
        cpu=request.cpu,
        append=request.append,
    )


def _memory_file() -> IO[bytes]:
    """A file that QEMU can open as /proc/self/fd/N, and that needs no disk."""
    return os.fdopen(os.memfd_create("klto-initramfs", os.MFD_CLOEXEC), "wb")


@contextmanager
def _open_log(path: Path) -> Iterator[IO[bytes]]:
    """A new console log, unbuffered. An older one is unlinked: another boot may still be writing it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_file() and not path.is_symlink():  # and no device: --log /dev/null is fine
            path.unlink()
        file = path.open("wb", buffering=0)
    except OSError as error:
        raise UsageError(
            f"cannot write the console log {path}: {error.strerror}",
            hint="name another place with --log FILE",
        ) from error
    with file:
        yield file


def _describe(life: QemuLife, console: Console, timeout: float) -> str:
    """One line on why the guest ended."""
    text = f"the guest {life.ending}"
    match life.ending:
        case Ending.DEADLINE:
            silent = "" if life.heard else ", and it never said anything"
            return f"{text} within {timeout:g} s{silent}"
        case Ending.RESTARTED if not life.heard:
            return f"{text}, and it never said anything"
        case Ending.FLOOD if console.full:
            return f"{text}: the console log reached {MAX_LOG_BYTES >> 20} MiB"
        case Ending.QEMU_DIED if life.returncode is not None:
            return f"{text} ({process.describe_status(life.returncode)})"
        case Ending.QEMU_HUNG if life.seconds == 0:
            return "the guest was lost: QEMU did not start it"
    return text


def _notes(life: QemuLife) -> tuple[str, ...]:
    where = (f"CPU 0 was at {life.where}",) if life.where else ()
    return (*where, *(f"qemu: {line}" for line in life.qemu_lines))
