"""Which proofs there are, what each needs, and which boots they take together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from klto.boot import (
    proof_cfi,
    proof_config,
    proof_el2,
    proof_initcalls,
    proof_kexec,
    proof_modules,
    proof_names,
    proof_trim,
)
from klto.boot.images import Arch, KernelImage
from klto.boot.proofs import Finding, Heard, NotApplicable, Place, ProofResult, ProofStatus, Step
from klto.boot.qemu import Accelerator
from klto.boot.subject import Subject
from klto.errors import UsageError
from klto.objects.errors import MalformedObject


@dataclass(frozen=True)
class Proof:
    """A proof. ``needs``: options, without ``CONFIG_``, that the kernel must have built in.

    ``prepare`` makes its steps, or raises :class:`NotApplicable`.
    """

    name: str
    summary: str
    needs: tuple[str, ...]
    prepare: Callable[[Subject], tuple[Step, ...]]


#: uname -m of the architectures (UTS_MACHINE, arch/*/Makefile).
_UTS_MACHINE = {Arch.X86_64: "x86_64", Arch.ARM64: "aarch64"}


def _prepare_init(subject: Subject) -> tuple[Step, ...]:
    return (Step("init", lambda heard: _check_init(heard, subject.image)),)


def _check_init(heard: Heard, image: KernelImage) -> Finding:
    """The kernel that runs must be the one that was given."""
    machine, release = heard.facts.get("machine", ""), heard.facts.get("release", "")
    evidence = tuple(f"{key}: {value}" for key, value in heard.facts.items())
    if machine != _UTS_MACHINE[image.arch]:
        return Finding(f"the guest says it is {machine!r}, not {_UTS_MACHINE[image.arch]!r}", evidence)
    if image.release is not None and release != image.release:
        return Finding(f"the guest runs Linux {release!r}, the image is {image.release!r}", evidence)
    return Finding(None, evidence)


#: In the order in which one boot runs them: kexec leaves the kernel that the others need.
_ALL = (
    Proof(
        "init",
        "the kernel starts its first process, and reports no panic, oops, BUG, WARNING or CFI failure",
        (),
        _prepare_init,
    ),
    Proof(
        "initcalls",
        "initcalls run in the order that the objects have, each once",
        ("PRINTK", "KALLSYMS"),
        proof_initcalls.prepare,
    ),
    Proof("config", "/proc/config.gz is the build's .config", ("IKCONFIG_PROC",), proof_config.prepare),
    Proof(
        "livepatch-names",
        "kallsyms has each function of a list exactly once",
        ("KALLSYMS", "PROC_FS"),
        proof_names.prepare,
    ),
    Proof("modules", "every kernel module loads and unloads", ("MODULES",), proof_modules.prepare),
    Proof(
        "trim",
        "exported symbols that modules need are there, and a module that needs a trimmed one is refused",
        ("MODULES", "TRIM_UNUSED_KSYMS"),
        proof_trim.prepare,
    ),
    Proof("el2", "KVM's code at EL2 works in both modes, VHE and nVHE", (), proof_el2.prepare),
    Proof(
        "cfi",
        "a call through a pointer of the wrong type is caught",
        ("CFI_CLANG", "DEBUG_FS"),
        proof_cfi.prepare,
    ),
    Proof("kexec", "kexec_file_load of the image, and a jump into it", ("KEXEC_FILE",), proof_kexec.prepare),
)
PROOFS: dict[str, Proof] = {proof.name: proof for proof in _ALL}


def select_proofs(names: Sequence[str]) -> tuple[Proof, ...]:
    """The named proofs, each once, in the order in which they run; all of them when none is named.

    :raises UsageError: a name that does not exist.
    """
    for name in names:
        if name not in PROOFS:
            raise UsageError(f"no proof is called {name!r}", hint=f"proofs: {', '.join(PROOFS)}")
    return tuple(proof for proof in _ALL if not names or proof.name in names)


#: Options that every proof needs: init is a program in an initramfs.
_INIT_NEEDS = ("BLK_DEV_INITRD", "BINFMT_ELF")

#: Options that give init a way to klto; one of them will do (see ``channels`` in init/channel.h).
_CHANNELS = {
    Arch.X86_64: ("VIRTIO_CONSOLE", "SERIAL_8250"),
    Arch.ARM64: ("VIRTIO_CONSOLE", "SERIAL_AMBA_PL011"),
}


def missing_options(proof: Proof, arch: Arch, config: Mapping[str, str]) -> tuple[str, ...]:
    """What in a ``.config`` (name without ``CONFIG_`` to value) keeps a proof from running, a line each."""
    lines = [f"needs CONFIG_{name}" for name in (*_INIT_NEEDS, *proof.needs) if config.get(name) != "y"]
    if all(config.get(name) != "y" for name in _CHANNELS[arch]):
        names = " or ".join(f"CONFIG_{name}" for name in _CHANNELS[arch])
        lines.append(f"needs {names}: the guest could not report")
    return tuple(lines)


@dataclass(frozen=True)
class BootPlan:
    """One boot: its steps in order. ``tcg``: it needs what only QEMU's translator emulates."""

    place: Place
    steps: tuple[Step, ...]
    cpu: str | None = None
    tcg: bool = False

    @property
    def append(self) -> str:
        """What the steps add to the kernel's command line."""
        return " ".join(dict.fromkeys(step.append for step in self.steps if step.append))


def prepare_steps(
    proofs: Sequence[Proof], subject: Subject
) -> tuple[tuple[Step, ...], tuple[ProofResult, ...]]:
    """The steps of the proofs that apply, and the verdicts on those that do not.

    A damaged object of the build fails the proof that reads it, and no other.

    :raises UsageError: when something that the user has named for a proof is not there.
    """
    steps: list[Step] = []
    excluded: list[ProofResult] = []
    for proof in proofs:
        config = subject.config
        missing = missing_options(proof, subject.image.arch, config) if config is not None else ()
        try:
            if missing:
                raise NotApplicable("; ".join(missing))
            steps += proof.prepare(subject)
        except NotApplicable as error:
            reason = (str(error),)
            excluded.append(ProofResult(proof.name, ProofStatus.NOT_APPLICABLE, 0.0, reason))
        except MalformedObject as error:
            excluded.append(ProofResult(proof.name, ProofStatus.FAILED, 0.0, (error.message,)))
    return tuple(steps), tuple(excluded)


def divide(steps: Sequence[Step], accelerator: Accelerator) -> tuple[BootPlan, ...]:
    """Put the steps into as few boots as will do.

    Under TCG an arm64 guest starts at EL2 on a CPU with VHE, so that this step shares the main boot. Under
    KVM it starts at EL1.
    """
    shared = {Place.VHE} if accelerator is Accelerator.TCG else set()
    plans = []
    for place in Place:
        own = tuple(s for s in steps if (Place.MAIN if s.place in shared else s.place) is place)
        if own:
            cpu = "cortex-a57" if place is Place.NVHE else None
            plans.append(BootPlan(place, own, cpu, tcg=place in (Place.VHE, Place.NVHE)))
    return tuple(plans)


def combine(results: Sequence[ProofResult]) -> tuple[ProofResult, ...]:
    """One verdict for each proof, in the catalogue's order: of several the worst, with the evidence of all."""
    combined = []
    for name in PROOFS:
        own = [result for result in results if result.name == name]
        if len(own) > 1:
            status = worst([result.status for result in own])
            chosen = sorted(own, key=lambda result: result.status is not status)
            evidence = tuple(dict.fromkeys(line for result in chosen for line in result.evidence))
            combined.append(ProofResult(name, status, sum(result.seconds for result in own), evidence))
        else:
            combined += own
    return tuple(combined)


def worst(statuses: Sequence[ProofStatus]) -> ProofStatus:
    """Failed before unknown before passed; not-applicable when nothing else is there."""
    for status in (ProofStatus.FAILED, ProofStatus.UNKNOWN, ProofStatus.PASSED):
        if status in statuses:
            return status
    return ProofStatus.NOT_APPLICABLE
