"""Relocations that what comes after the link does not know."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from klto.check.finding import Finding, Level
from klto.check.roles import Role
from klto.check.rule import Rule
from klto.check.subject import Subject, Tables

_X86_64, _AARCH64 = 62, 183
_ET_REL = 1

#: What the module loader applies: arch/x86/kernel/module.c and arch/arm64/kernel/module.c (6.1 and 6.12).
_MODULE_X86 = frozenset(f"R_X86_64_{name}" for name in ("NONE", "64", "32", "32S", "PC32", "PLT32", "PC64"))
_MODULE_ARM64 = frozenset(
    f"R_AARCH64_{name}"
    for name in """
    NONE ABS64 ABS32 ABS16 PREL64 PREL32 PREL16 MOVW_UABS_G0_NC MOVW_UABS_G0 MOVW_UABS_G1_NC MOVW_UABS_G1
    MOVW_UABS_G2_NC MOVW_UABS_G2 MOVW_UABS_G3 MOVW_SABS_G0 MOVW_SABS_G1 MOVW_SABS_G2 MOVW_PREL_G0_NC MOVW_PREL_G0
    MOVW_PREL_G1_NC MOVW_PREL_G1 MOVW_PREL_G2_NC MOVW_PREL_G2 MOVW_PREL_G3 LD_PREL_LO19 ADR_PREL_LO21
    ADR_PREL_PG_HI21_NC ADR_PREL_PG_HI21 ADD_ABS_LO12_NC LDST8_ABS_LO12_NC LDST16_ABS_LO12_NC LDST32_ABS_LO12_NC
    LDST64_ABS_LO12_NC LDST128_ABS_LO12_NC TSTBR14 CONDBR19 JUMP26 CALL26
    """.split()  # noqa: SIM905
)
#: What the relocs tool takes: arch/x86/tools/relocs.c, do_reloc64 (6.1 and 6.12); vmlinux.o may have more that
#: the final link resolves, so only what needs a GOT or run-time relocation counts.
_GOT_X86 = frozenset(
    f"R_X86_64_{name}"
    for name in (
        "GOT32",
        "GOTPCREL",
        "GOTPCREL64",
        "GOT64",
        "GOTOFF64",
        "GOTPC32",
        "GOTPC64",
        "GOTPLT64",
        "PLTOFF64",
    )
)
#: The purgatory's loader: arch/x86/kernel/machine_kexec_64.c, arch_kexec_apply_relocations_add (6.12).
_PURGATORY_X86 = frozenset(f"R_X86_64_{name}" for name in ("NONE", "64", "32", "32S", "PC32", "PLT32"))
#: arch/x86/tools/relocs.c, do_reloc_real (6.12).
_REALMODE = frozenset(f"R_386_{name}" for name in ("NONE", "PC32", "PC16", "PC8", "PLT32", "16", "32"))
#: Run-time relocations of vmlinux: arch/arm64/kernel/pi/relocate.c applies RELATIVE and skips the rest (6.12).
_DYNAMIC_ARM64 = frozenset(("R_AARCH64_NONE", "R_AARCH64_RELATIVE"))
#: Sections that must be empty in vmlinux, and the sizes that .got.plt's header may have:
#: arch/x86/kernel/vmlinux.lds.S and arch/arm64/kernel/vmlinux.lds.S, ASSERT(SIZEOF(...)) (6.1 and 6.12).
_EMPTY = {_X86_64: (".got", ".plt", ".rela.dyn"), _AARCH64: (".plt", ".data.rel.ro")}


#: st_info >> 4 (System V ABI, gABI 4.19).
_STB_WEAK = 2
#: R_AARCH64_GLOB_DAT (ELF for the Arm 64-bit Architecture, 5.7.12).
_GLOB_DAT_ARM64 = 1025


def _of_undefined_weak(tables: Tables) -> npt.NDArray[np.bool_]:
    """Which of an image's run-time relocations are of weak symbols that nobody defines: to skip them leaves the 0 that
    they are.

    arm64's vmlinux is linked with -Bsymbolic and --no-undefined (Makefile and arch/arm64/Makefile, 6.1 and 6.12), so
    that no others are looked up by name. Which symbol it is ld.lld does not say: .dynsym is discarded (vmlinux.lds.S),
    the number is 0; where it is kept, undefined symbols come first in it (lld/ELF/SyntheticSections.cpp,
    GnuHashTableSection::addSymbols). Each has one entry in the GOT: of more some are others'.
    """
    entries = tables.relocations.entries
    symtab = tables.elf.symtab
    nothing = np.zeros(len(entries), np.bool_)
    if symtab is None:
        return nothing
    # The first entry is none (gABI 4.18).
    undefined = tables.symbol_section[1:] == 0
    weak = undefined & (symtab.table["st_info"][1:] >> 4 == _STB_WEAK)
    count = int(weak.sum())
    in_got = int((entries["r_type"] == _GLOB_DAT_ARM64).sum())
    if count == 0 or in_got > count or not np.array_equal(weak, undefined):
        return nothing
    found: npt.NDArray[np.bool_] = (entries["r_sym"] <= count) & (entries["r_addend"] == 0)
    return found


class UnexpectedReloc(Rule):
    """GOT, PLT and run-time relocations, and types that a loader refuses."""

    slug = "unexpected-reloc"
    title = "GOT, PLT or run-time relocations in vmlinux, or types that a loader does not know"
    what = (
        "vmlinux has no GOT and nobody fills one: its linker script asserts that. Modules and the purgatory are "
        "relocated by the kernel, which knows some types and refuses the others when it is too late."
    )
    why = (
        "at the link code is generated with the linker's idea of position independence and visibility, not with "
        "the -fno-pic and -fvisibility=hidden of each compilation"
    )
    remedies: ClassVar = (
        "compile all objects of the link with the kernel's own -fno-pic, -mcmodel= and -fvisibility=hidden",
        "name the module that refers to the symbol: it lacks include/linux/hidden.h or its flags",
    )
    references: ClassVar = (
        "https://github.com/ClangBuiltLinux/linux/issues/1214",
        "arch/x86/kernel/vmlinux.lds.S, arch/x86/tools/relocs.c, arch/x86/kernel/module.c (6.12)",
    )

    def of_object(self, subject: Subject) -> Iterator[Finding]:
        tables = subject.tables
        if tables is None:
            return
        if subject.role is Role.VMLINUX:
            yield from self._image(subject, tables)
        elif subject.role is Role.VMLINUX_O and tables.machine == _X86_64:
            yield from self._types(subject, tables, lambda kind: kind in _GOT_X86, "no GOT: vmlinux.lds.S")
        elif subject.role is Role.MODULE and tables.machine in (_X86_64, _AARCH64):
            known = _MODULE_X86 if tables.machine == _X86_64 else _MODULE_ARM64
            yield from self._types(subject, tables, lambda kind: kind not in known, "arch/*/kernel/module.c")
        elif subject.role is Role.PURGATORY and tables.machine == _X86_64:
            yield from self._types(
                subject, tables, lambda kind: kind not in _PURGATORY_X86, "arch/x86/kernel/machine_kexec_64.c"
            )
        elif subject.role is Role.REALMODE and tables.machine == 3 and tables.elf.header.e_type != _ET_REL:
            yield from self._types(
                subject, tables, lambda kind: kind not in _REALMODE, "arch/x86/tools/relocs.c, do_reloc_real"
            )

    def _types(self, subject: Subject, tables: Tables, refused: object, by: str) -> Iterator[Finding]:
        assert callable(refused)
        for kind, count in tables.type_counts.items():
            if refused(kind):
                first = int(tables.of_types(kind)[0]) if len(tables.of_types(kind)) else None
                _, section, offset = tables.relocation(first) if first is not None else (kind, None, None)
                name = tables.target_name(first) if first is not None else None
                yield self.finding(
                    subject.name,
                    f"{count} {kind}, the first in {section} to {name}: not known to {by}",
                    symbol=name,
                    section=section,
                    offset=offset,
                    seen=f"{count} {kind}",
                    allowed="0",
                )

    def _image(self, subject: Subject, tables: Tables) -> Iterator[Finding]:
        for name in _EMPTY.get(tables.machine, ()):
            size = sum(int(tables.sizes[i]) for i, found in enumerate(tables.names) if found == name)
            if size:
                yield self.finding(
                    subject.name,
                    f"{name} has {size} bytes",
                    section=name,
                    seen=f"{size} bytes",
                    allowed="0 bytes",
                )
        if tables.machine != _AARCH64 or ".rela.dyn" not in tables.names:
            return
        dynamic = tables.relocations.table == tables.names.index(".rela.dyn")
        dynamic &= ~_of_undefined_weak(tables)
        types = np.unique(tables.types[dynamic]).tolist()
        from klto.objects.relocation_types import relocation_name

        for number in types:
            kind = relocation_name(tables.machine, number)
            if kind not in _DYNAMIC_ARM64:
                count = int((tables.types[dynamic] == number).sum())
                yield self.finding(
                    subject.name,
                    f"{count} run-time relocations {kind} in .rela.dyn, which arch/arm64/kernel/pi/relocate.c skips",
                    Level.WARNING if kind.endswith("ABS64") else Level.ERROR,
                    section=".rela.dyn",
                    seen=f"{count} {kind}",
                    allowed="R_AARCH64_RELATIVE alone",
                )
