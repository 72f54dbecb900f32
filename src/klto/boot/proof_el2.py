"""The proof ``el2``: the hypervisor code of an arm64 kernel, in both of its modes.

QEMU's virt machine with ``virtualization=on`` enters the kernel at EL2. A CPU with the Virtualization Host
Extensions (``-cpu max``) makes KVM use them; one without (``cortex-a57``) makes it install its own code at EL2
(nVHE). In both init runs a guest of a few instructions, so that ``__guest_enter`` is really crossed.
"""

from __future__ import annotations

import re

from klto.boot.images import Arch
from klto.boot.proofs import Finding, Heard, NotApplicable, Place, Step
from klto.boot.subject import Subject

#: arch/arm64/kernel/smp.c, hyp_mode_check.
_AT_EL2 = "CPU: All CPU(s) started at EL2"
#: arch/arm64/kvm/arm.c: kvm_arm_init (6.12), and init_subsystems' caller in 6.1, whose nVHE is "Hyp mode".
_VHE = re.compile(r"kvm \[\d+\]: VHE mode initialized successfully")
_NVHE = re.compile(r"kvm \[\d+\]: (?:Hyp|Protected) (?:[nh]VHE )?mode initialized successfully")


def prepare(subject: Subject) -> tuple[Step, ...]:
    """One step for each mode.

    :raises NotApplicable: for other architectures.
    """
    if subject.image.arch is not Arch.ARM64:
        raise NotApplicable("needs arm64")
    if subject.config is not None and not subject.has("KVM"):
        raise NotApplicable("needs CONFIG_KVM")
    return (Step("el2", _check_vhe, Place.VHE), Step("el2", _check_nvhe, Place.NVHE))


def _check_vhe(heard: Heard) -> Finding:
    return _check(heard, _VHE, "VHE")


def _check_nvhe(heard: Heard) -> Finding:
    return _check(heard, _NVHE, "nVHE")


def _check(heard: Heard, said: re.Pattern[str], mode: str) -> Finding:
    if _AT_EL2 not in heard.console:
        return Finding(f"{mode}: the console does not say {_AT_EL2!r}")
    line = said.search(heard.console)
    if line is None:
        return Finding(f"{mode}: the console does not say that KVM was initialised in this mode")
    return Finding(None, (f"{mode}: {line[0]}", f"{mode}: a guest {heard.facts.get('guest', 'did not run')}"))
