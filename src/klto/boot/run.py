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
from klto.boot.catalog import BootPlan, combine, divide, prepare_steps, select_proofs, worst
from klto.boot.console import MAX_LOG_BYTES, Console
from klto.boot.guest import Compiler, base_initramfs, boot_archive
from klto.boot.images import KernelImage
from klto.boot.initramfs import Entry, directory, regular
from klto.boot.proof_kexec import INITRD
from klto.boot.proofs import Course, Place, ProofResult, ProofStatus, Transcript, judge
from klto.boot.qemu import MEMORY_MIB, Accelerator, Machine, find_qemu
from klto.boot.reservation import reserved
from klto.boot.session import Ending, QemuLife, Session, Stopwatch, Wires, wires
from klto.boot.subject import Subject
from klto.errors import UsageError

#: Seconds that a guest may take, by default. The small kernels of klto's tests need 1 to 3 under TCG, a
#: distribution's kernel on a busy machine some 40.
DEFAULT_TIMEOUT = {Accelerator.KVM: 60.0, Accelerator.TCG: 120.0}


@dataclass(frozen=True)
class BootRequest:
    """What to boot, with what, and what to prove.

    ``log``: where the console log goes; further boots put their names before its suffix. ``cache``: klto's
    directory in the user's cache. ``proofs``: names; none means all that the configuration
    allows, or ``init`` where it is unknown. ``build_dir``, ``config``,
    ``modules``, ``names``: see :class:`Subject`. ``accelerator`` None: what has proved to work. ``timeout``:
    seconds, for each boot. ``append``: more for the kernel's command line. ``files``: more for the initramfs.
    """

    image: KernelImage
    compiler: Compiler
    log: Path
    cache: Path
    proofs: tuple[str, ...] = ()
    config: Mapping[str, str] | None = None
    build_dir: Path | None = None
    modules: tuple[str, ...] = ()
    names: Path | None = None
    qemu: str | None = None
    accelerator: Accelerator | None = None
    cpu: str | None = None
    timeout: float | None = None
    append: str = ""
    files: tuple[Entry, ...] = ()

    @property
    def subject(self) -> Subject:
        """The kernel, for the proofs."""
        return Subject(
            self.image, self.compiler, self.build_dir, self.config, modules=self.modules, names=self.names
        )


@dataclass(frozen=True)
class BootRun:
    """One boot of several. ``place``: its name. ``complained``: whether the kernel reported a panic, an oops or
    the like. Otherwise as in :class:`BootResult`.
    """

    place: Place
    accelerator: str
    qemu: tuple[str, ...]
    qemu_version: str
    seconds: float
    console_log: Path
    console_tail: tuple[str, ...]
    ending: str
    proofs: tuple[ProofResult, ...]
    complained: bool = False

    @property
    def status(self) -> ProofStatus:
        """The worst of its proofs."""
        return worst([proof.status for proof in self.proofs])


@dataclass(frozen=True)
class BootResult:
    """What came of the boots.

    ``seconds``: of all of them, each from the guest's start to its end. ``accelerator``, ``qemu`` (its command
    line), ``qemu_version``, ``console_log``, ``console_tail`` (the last lines) and ``ending`` (one line on why
    the guest ended) are of the first boot that did not pass, or of the first; ``qemu`` is empty when nothing
    was booted because no proof applies.
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
    runs: tuple[BootRun, ...] = ()

    @property
    def status(self) -> ProofStatus:
        """The worst of the proofs: failed, unknown, passed; not-applicable when none could run."""
        return worst([proof.status for proof in self.proofs])


def boot_kernel(request: BootRequest) -> BootResult:
    """Boot the kernel as often as the proofs need it, and run them.

    No process, and no file but the console logs and the cache, is left behind, whatever ends the call.

    :raises UsageError: an unknown proof, no QEMU, no usable compiler, a log that cannot be written.
    :raises MalformedObject: when an object of the build that a proof reads is damaged.
    """
    # Of a lone image nobody knows what its configuration allows.
    selected = select_proofs(request.proofs or (() if request.config is not None else ("init",)))
    qemu = find_qemu(request.image.arch, request.qemu)
    steps, excluded = prepare_steps(selected, request.subject)
    if not steps:
        return _result(request, (), excluded)
    initramfs = base_initramfs(request.image.arch, request.compiler, request.cache)
    wanted = request.accelerator or choose_accelerator(request.image.arch, qemu, request.cache)
    runs: list[BootRun] = []
    for plan in divide(steps, wanted):
        if runs and _hopeless(runs[0]):
            excluded += tuple(_skipped(step.name) for step in plan.steps)
            continue
        runs.append(_attempts(request, qemu, initramfs, plan, wanted))
    return _result(request, tuple(runs), excluded)


def _hopeless(first: BootRun) -> bool:
    """Whether another boot of the kernel would only take its deadline again: init was never reached."""
    return any(p.name == "init" and p.status in ("failed", "unknown") for p in first.proofs)


def _skipped(name: str) -> ProofResult:
    return ProofResult(name, ProofStatus.UNKNOWN, 0.0, ("not run: init did not pass",))


def _result(request: BootRequest, runs: tuple[BootRun, ...], excluded: tuple[ProofResult, ...]) -> BootResult:
    image = request.image
    results = combine([*(proof for run in runs for proof in run.proofs), *excluded])
    if not runs:
        return BootResult(
            image.path, image.arch, image.release, "", (), "", 0.0, request.log, (), "was not booted", results
        )
    shown = next((run for run in runs if run.status is not ProofStatus.PASSED), runs[0])
    return BootResult(
        image=image.path,
        arch=image.arch,
        release=image.release,
        accelerator=shown.accelerator,
        qemu=shown.qemu,
        qemu_version=shown.qemu_version,
        seconds=sum(run.seconds for run in runs),
        console_log=shown.console_log,
        console_tail=shown.console_tail,
        ending=shown.ending,
        proofs=results,
        runs=runs,
    )


def _attempts(
    request: BootRequest, qemu: Path, initramfs: bytes, plan: BootPlan, wanted: Accelerator
) -> BootRun:
    """One boot; a second one when it looks like a KVM that passed the probe and yet does not work."""
    accelerator = Accelerator.TCG if plan.tcg else wanted
    attempt = _boot(replace(request, accelerator=accelerator), qemu, initramfs, plan)
    if request.accelerator is None and accelerator is Accelerator.KVM and attempt.suspect:
        attempt = _boot(replace(request, accelerator=Accelerator.TCG), qemu, initramfs, plan)
        if not attempt.suspect:
            remember(request.image.arch, qemu, request.cache, works=False)
    return attempt.run


@dataclass(frozen=True)
class _Attempt:
    run: BootRun
    #: Whether the guest said nothing, or QEMU failed.
    suspect: bool


def _boot(request: BootRequest, qemu: Path, initramfs: bytes, plan: BootPlan) -> _Attempt:
    """One run of QEMU."""
    accelerator = request.accelerator or Accelerator.TCG
    timeout = request.timeout or DEFAULT_TIMEOUT[accelerator]
    nonce = secrets.token_hex(16)
    transcript, watch = Transcript(nonce), Stopwatch()
    path = _log_of(request.log, plan.place)
    content = initramfs + _own_archive(initramfs, nonce, plan, request.files)
    memory = memory_for(len(content))
    with _open_log(path) as log, _memory_file() as initrd, wires() as ends:
        initrd.write(content)
        initrd.flush()
        machine = replace(
            _machine(request, qemu, accelerator, initrd.fileno(), ends),
            cpu=plan.cpu or request.cpu,
            append=f"{plan.append} {request.append}".strip(),
            memory_mib=memory,
        )
        console = Console(log, watch, MAX_LOG_BYTES)
        session = Session(ends, console, transcript, watch, timeout)
        with reserved(request.cache, memory << 20):
            life = _follow(machine, initrd, ends, session, path)
    ending = _describe(life, console, timeout)
    course = Course(
        transcript=transcript,
        reports=console.reports,
        ending=ending,
        lost=life.ending.lost,
        seconds=life.seconds,
        notes=_notes(life),
        silent=console.bytes == 0,
        console=console.text,
    )
    run = BootRun(
        place=plan.place,
        accelerator=accelerator,
        qemu=machine.argv(),
        qemu_version=session.qemu_version,
        seconds=life.seconds,
        console_log=path,
        console_tail=tuple(console.tail),
        ending=ending,
        proofs=judge(plan.steps, course),
        complained=bool(console.reports),
    )
    return _Attempt(run, suspect=life.ending.lost or not life.heard)


def _follow(machine: Machine, initrd: IO[bytes], ends: Wires, session: Session, log: Path) -> QemuLife:
    """Start QEMU and watch it to its end."""
    output = ends.far["output"]
    inherited = (initrd.fileno(), *ends.far.values())
    argv = machine.argv()
    with process.started(argv, stdout=output, stderr=output, pass_fds=inherited) as child:
        ends.hand_over()
        try:
            return session.follow(child)
        except OSError as error:
            raise UsageError(f"cannot write {log}: {error.strerror}") from error


def _own_archive(initramfs: bytes, nonce: str, plan: BootPlan, files: tuple[Entry, ...]) -> bytes:
    """What this boot has for itself: the plan, the files of its steps, the initramfs of a second kernel."""
    entries = [file for step in plan.steps for file in step.files]
    for step in plan.steps:
        if step.successor is not None:
            entries.append(regular(INITRD, initramfs + boot_archive(nonce, step.successor)))
    folders = dict.fromkeys(entry.name.rpartition("/")[0] for entry in entries)
    lines = [line for step in plan.steps for line in (f"proof {step.name}", *step.plan)]
    return boot_archive(nonce, lines, (*(directory(name) for name in folders if name), *entries, *files))


def memory_for(initramfs: int) -> int:
    """MiB for a guest with an initramfs of so many bytes: it is there twice while it is unpacked, and what is
    loaded from it once more."""
    return MEMORY_MIB + 4 * (initramfs >> 20)


def _log_of(log: Path, place: Place) -> Path:
    """The main boot's log has the name that was given; ``console-cfi.log`` is another's."""
    if place is Place.MAIN or (log.exists() and not log.is_file()):
        return log
    return log.with_name(f"{log.stem}-{place}{log.suffix}")


def _machine(request: BootRequest, qemu: Path, accelerator: Accelerator, initrd: int, ends: Wires) -> Machine:
    return Machine(
        qemu,
        request.image.arch,
        accelerator,
        request.image.path.absolute(),
        initrd_fd=initrd,
        console_fd=ends.far["console"],
        uart_fd=ends.far["uart"],
        virtio_fd=ends.far["virtio"],
        qmp_fd=ends.far["qmp"],
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
