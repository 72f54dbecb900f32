"""What the files of a kernel build are for, told by their paths."""

from __future__ import annotations

import re
from enum import StrEnum


class Role(StrEnum):
    """What an object is for; what its loader can do follows from it."""

    #: The program between two kernels: kernel/kexec_file.c loads it (6.12: x86, powerpc, riscv, s390).
    PURGATORY = "purgatory"
    #: An object that is linked into the purgatory.
    PURGATORY_PART = "purgatory part"
    #: arm64's EL2 code, linked on its own: arch/arm64/kvm/hyp/nvhe/Makefile.
    HYP_NVHE = "nVHE hypervisor"
    #: An object that is linked into it.
    HYP_NVHE_PART = "nVHE hypervisor part"
    #: Position-independent early code: arch/*/kernel/pi/Makefile, since 6.16 arch/x86/boot/startup/Makefile.
    PI = "position-independent early code"
    #: drivers/firmware/efi/libstub/Makefile.
    EFI_STUB = "EFI stub"
    #: The decompressor: arch/x86/boot/compressed/Makefile.
    DECOMPRESSOR = "decompressor"
    #: The 16-bit start: arch/x86/boot/Makefile, and the way back to it: arch/x86/realmode/rm/Makefile.
    REALMODE = "real mode code"
    #: A vdso that is linked: arch/x86/entry/vdso/Makefile, arch/arm64/kernel/vdso/Makefile and the others.
    VDSO = "vdso"
    #: An object that is linked into a vdso.
    VDSO_PART = "vdso part"
    VMLINUX_O = "vmlinux.o"
    VMLINUX = "vmlinux"
    #: ``*.ko``.
    MODULE = "kernel module"
    #: Anything else that a linker takes.
    OBJECT = "object"


#: First match wins. Paths are relative to a build dir, or end like those.
_PATTERNS = [
    (re.compile(pattern), role)
    for pattern, role in (
        (r"(^|/)purgatory(\.chk|\.ro)$", Role.PURGATORY),
        (r"(^|/)arch/\w+/purgatory/(?!kexec-purgatory)[^/]*\.o$", Role.PURGATORY_PART),
        (r"(^|/)kvm_nvhe(\.tmp|\.rel)?\.o$", Role.HYP_NVHE),
        (r"\.nvhe\.o$", Role.HYP_NVHE_PART),
        (r"\.pi\.o$", Role.PI),
        (r"(^|/)arch/\w+/kernel/pi/[^/]*\.o$", Role.PI),
        (r"\.stub\.o$|(^|/)drivers/firmware/efi/libstub/[^/]*\.o$", Role.EFI_STUB),
        (r"(^|/)boot/compressed/([^/]*\.o|vmlinux)$", Role.DECOMPRESSOR),
        (r"(^|/)realmode/rm/[^/]*\.(o|elf)$|(^|/)arch/x86/boot/(setup\.elf|[^/]*\.o)$", Role.REALMODE),
        (r"(^|/)vdso[^/]*\.so(\.dbg|\.raw)?$", Role.VDSO),
        (r"(^|/)vdso(32|64|x32|-[^/]*)?/[^/]*\.o$", Role.VDSO_PART),
        (r"(^|/)vmlinux\.o$", Role.VMLINUX_O),
        (r"(^|/)vmlinux(\.unstripped)?$", Role.VMLINUX),
        (r"\.ko$", Role.MODULE),
    )
]
#: In a vdso's folder, but linked into the kernel: arch/x86/entry/vdso/Makefile (vdso-image-*, vma, extable),
#: arch/arm64/kernel/vdso/Makefile and vdso32's wrapper (6.1 and 6.12).
_VDSO_BUT_KERNEL = re.compile(r"/(vdso-image-\w+|vma|extable|vdso\w*-wrap|vdso|vdso32-setup|note-\w+)\.o$")

#: What may never be bitcode when it is linked: its Makefile filters CC_FLAGS_LTO out, and its link is no LTO link.
NATIVE_PARTS = frozenset(
    (Role.PURGATORY_PART, Role.PI, Role.EFI_STUB, Role.DECOMPRESSOR, Role.REALMODE, Role.VDSO_PART)
)
#: Finished: nothing is linked or generated any more.
FINAL = frozenset((Role.PURGATORY, Role.VDSO, Role.VMLINUX, Role.MODULE, Role.HYP_NVHE))


def role_of(path: str) -> Role:
    """What the file at ``path`` is for; :attr:`Role.OBJECT` when its path does not tell."""
    for pattern, role in _PATTERNS:
        if pattern.search(path):
            if role is Role.VDSO_PART and _VDSO_BUT_KERNEL.search(path):
                return Role.OBJECT
            return role
    return Role.OBJECT
