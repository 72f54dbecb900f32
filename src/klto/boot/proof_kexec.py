"""The proof ``kexec``: kexec_file_load of the same image, and a jump into it that ends in its init.

Any complaint on the way fails it, that about an unusual purgatory among them, though the jump may work.
"""

from __future__ import annotations

from klto.boot.initramfs import regular
from klto.boot.proof_modules import error_name
from klto.boot.proofs import Finding, Heard, Step
from klto.boot.qemu import command_line
from klto.boot.subject import Subject

#: Number of the second kernel's first record: far behind those of the first.
SECOND_SEQUENCE = 1_000_000

#: Where they are in the first kernel's initramfs.
KERNEL, INITRD = "klto/kernel", "klto/second"


def prepare(subject: Subject) -> tuple[Step, ...]:
    """The image and the second initramfs go into the first; the latter is made with the boot's nonce."""
    image = subject.image
    plan = (f"kernel /{KERNEL}", f"initrd /{INITRD}", f"cmdline {command_line(image.arch, '')}")
    files = (regular(KERNEL, image.path.read_bytes()),)
    successor = (f"sequence {SECOND_SEQUENCE}", "proof kexec-end")
    return (Step("kexec", check, plan=plan, files=files, successor=successor),)


def check(heard: Heard) -> Finding:
    """Whether it was the second kernel that reported."""
    loaded = int(heard.facts.get("kexec_file_load", "0"))
    if loaded < 0:
        return Finding(f"kexec_file_load refused the image: {error_name(loaded)}")
    if heard.facts.get("second") != "reached init":
        return Finding("no second kernel has reported")
    return Finding(None, ("kexec_file_load took the image", "the second kernel reached init"))
