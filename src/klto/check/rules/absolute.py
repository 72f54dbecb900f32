"""Absolute addresses in code that runs where they are not mapped."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt

from klto.check.finding import Finding
from klto.check.roles import Role
from klto.check.rule import Rule
from klto.check.subject import Indexes, Subject, Tables

_X86_64, _I386, _AARCH64, _RISCV, _LOONGARCH = 62, 3, 183, 243, 258
#: Places shown one by one in one table or section.
_MOST = 5


class Forbidden(NamedTuple):
    """What an artifact's loader does not relocate.

    :ivar types: absolute relocation types that may not be there.
    :ivar in_code: whether code counts too, or only data, as the kernel's own check has it.
    :ivar by: kernel file and version that says so.
    """

    types: tuple[str, ...]
    in_code: bool
    by: str


#: By role and e_machine. What is not here is relocated by its loader, or fails the build by itself.
_FORBIDDEN: dict[tuple[Role, int], Forbidden] = {
    # Objects are linked at the kernel's address, but run before it is mapped there. Since 6.12's relacheck data
    # with ABS64 fails the build; .rodata.prel64 is converted by it; .hyp and patched code do not come here.
    (Role.PI, _AARCH64): Forbidden(("R_AARCH64_ABS64",), False, "arch/arm64/kernel/pi/relacheck.c (6.12)"),
    (Role.PI, _X86_64): Forbidden(
        ("R_X86_64_64", "R_X86_64_32", "R_X86_64_32S"), True, "arch/x86/boot/startup/Makefile (6.16)"
    ),
    (Role.PI, _RISCV): Forbidden(
        ("R_RISCV_64", "R_RISCV_32", "R_RISCV_HI20"), True, "arch/riscv/kernel/pi/Makefile (6.12)"
    ),
    # The stub runs wherever firmware has put it.
    (Role.EFI_STUB, _AARCH64): Forbidden(
        ("R_AARCH64_ABS64", "R_AARCH64_ABS32", "R_AARCH64_ABS16"),
        True,
        "drivers/firmware/efi/libstub/Makefile, STUBCOPY_RELOC-$(CONFIG_ARM64) (6.12)",
    ),
    (Role.EFI_STUB, _RISCV): Forbidden(
        ("R_RISCV_HI20", "R_RISCV_64"),
        True,
        "drivers/firmware/efi/libstub/Makefile, STUBCOPY_RELOC-$(CONFIG_RISCV) (6.12)",
    ),
    (Role.EFI_STUB, _LOONGARCH): Forbidden(
        ("R_LARCH_MARK_LA", "R_LARCH_64"), True, "drivers/firmware/efi/libstub/Makefile (6.12)"
    ),
    # Linked into the decompressor, whose link asserts that .rela.dyn is empty.
    (Role.EFI_STUB, _X86_64): Forbidden(
        ("R_X86_64_64", "R_X86_64_32S"),
        True,
        "arch/x86/boot/compressed/vmlinux.lds.S, ASSERT(.rela.dyn) (6.12)",
    ),
    (Role.DECOMPRESSOR, _X86_64): Forbidden(
        ("R_X86_64_64", "R_X86_64_32S"),
        True,
        "arch/x86/boot/compressed/vmlinux.lds.S, ASSERT(.rela.dyn) (6.12)",
    ),
    # The loader knows R_X86_64_64, 32, 32S, PC32 and PLT32; the rest it refuses at kexec time.
    (Role.PURGATORY, _X86_64): Forbidden(
        ("R_X86_64_16", "R_X86_64_8"),
        True,
        "arch/x86/kernel/machine_kexec_64.c, arch_kexec_apply_relocations_add (6.12)",
    ),
}
#: Sections that are dropped or are no addresses: kCFI's type hashes are absolute 32-bit constants
#: (.kcfi_traps is relative), notes and debug information are not loaded.
_EXEMPT = (".discard", ".debug", ".note", ".comment", ".init.rodata.prel64", ".rodata.prel64", "__kcfi")


class AbsoluteAddress(Rule):
    """Absolute relocations that nobody applies in time."""

    slug = "absolute-address"
    title = "code that runs where kernel addresses are not mapped holds an absolute address"
    what = (
        "Hypervisor code at EL2, position-independent early code, the EFI stub and x86's first instructions run at "
        "other addresses than the ones they are linked at. A table or a literal that holds a linked address sends "
        "them where nothing is mapped: no message, the machine stops."
    )
    why = (
        "LTO generates code with the options of the link, inlines across files, and makes jump tables and constant "
        "pools that the file's own compilation did not have"
    )
    remedies: ClassVar = (
        "compile the file position independent, and without tables: -fpie -fno-jump-tables, no computed goto",
        "compile the file without LTO: klto build --no-lto PATH",
        "make the table relative: .quad target - . in place of .quad target",
    )
    references: ClassVar = (
        "arch/arm64/kvm/hyp/nvhe/gen-hyprel.c (6.12)",
        "arch/arm64/kernel/pi/relacheck.c (6.12)",
        "drivers/firmware/efi/libstub/Makefile (6.12)",
        "arch/x86/kernel/machine_kexec_64.c (6.12)",
    )

    def of_object(self, subject: Subject) -> Iterator[Finding]:
        tables = subject.tables
        if tables is None:
            return
        if subject.role is Role.HYP_NVHE and tables.machine == _AARCH64:
            yield from self._unlisted(subject, tables)
        elif subject.role is Role.VMLINUX_O and tables.machine == _X86_64:
            yield from self._head_tables(subject, tables)
        elif (
            subject.role is not Role.VMLINUX_O
            and tables.machine == _AARCH64
            and tables.named(".hyp.text\0").any()
        ) and subject.role is not Role.HYP_NVHE_PART:
            yield from self._into_hyp_text(subject, tables)
        forbidden = _FORBIDDEN.get((subject.role, tables.machine))
        if forbidden is not None and tables.elf.header.e_type == _ET_REL:
            yield from self._forbidden(subject, tables, forbidden)

    def _forbidden(self, subject: Subject, tables: Tables, forbidden: Forbidden) -> Iterator[Finding]:
        indexes = tables.of_types(*forbidden.types)
        sections = tables.relocations.section[indexes]
        keep = ~tables.named(*_EXEMPT)
        if not forbidden.in_code:
            keep &= ~tables.executable
        yield from self._shown(subject, tables, indexes[keep[sections]], forbidden.by)

    def _unlisted(self, subject: Subject, tables: Tables) -> Iterator[Finding]:
        """nVHE: an ABS64 that .hyp.reloc does not list is not moved to the hypervisor's own addresses."""
        names = tables.names
        if ".hyp.reloc" not in names:
            return  # Before gen-hyprel has run (kvm_nvhe.tmp.o).
        listed_in = names.index(".hyp.reloc")
        entries = tables.relocations
        listed = np.flatnonzero((entries.section == listed_in) & tables.in_memory)
        places = _places(tables.target_section(listed), tables.target_value(listed))
        indexes = tables.of_types("R_AARCH64_ABS64")
        hyp = tables.named(".hyp")
        indexes = indexes[hyp[entries.section[indexes]]]
        offsets = entries.entries["r_offset"][indexes].view(np.int64)
        here = _places(entries.section[indexes].astype(np.int64), offsets)
        missing = indexes[~np.isin(here, places)]
        yield from self._shown(
            subject, tables, missing, "no entry of .hyp.reloc, which gen-hyprel.c makes for each ABS64 (6.12)"
        )

    def _into_hyp_text(self, subject: Subject, tables: Tables) -> Iterator[Finding]:
        """Before nVHE was linked on its own (5.8 and earlier) both hypervisors' code was in .hyp.text."""
        indexes = tables.of_types("R_AARCH64_ABS64")
        hyp = tables.named(".hyp.text\0")
        data = tables.named(".rodata", ".hyp.text\0")
        target = tables.target_section(indexes)
        chosen = hyp[np.maximum(target, 0)] & (target > 0) & data[tables.relocations.section[indexes]]
        yield from self._shown(
            subject,
            tables,
            indexes[chosen],
            "code in .hyp.text runs at EL2 addresses; .rodata holds kernel ones",
        )

    def _head_tables(self, subject: Subject, tables: Tables) -> Iterator[Finding]:
        """x86: .head.text runs from an identity mapping. Its own 32S relocations are differences from _text, made
        so by hand (arch/x86/kernel/head64.c, head_64.S); tables of addresses into it never are."""
        indexes = tables.of_types("R_X86_64_64")
        head = tables.named(".head.text\0")
        data = tables.named(".rodata", ".data.rel.ro")
        target = tables.target_section(indexes)
        chosen = head[np.maximum(target, 0)] & (target > 0) & data[tables.relocations.section[indexes]]
        yield from self._shown(
            subject,
            tables,
            indexes[chosen],
            ".head.text runs before the kernel is mapped (arch/x86/kernel/head64.c)",
        )

    def _shown(self, subject: Subject, tables: Tables, indexes: Indexes, by: str) -> Iterator[Finding]:
        """One finding for each section that holds such places, with the table and what it points to."""
        sections = tables.relocations.section[indexes]
        for section in sorted(set(sections.tolist())):
            mine = indexes[sections == section]
            kind, name, offset = tables.relocation(int(mine[0]))
            targets = list(dict.fromkeys(_target(tables, int(i)) for i in mine[:_MOST]))
            holder = tables.symbol_at(section, offset)
            place = f"{name}+{offset:#x}" + (f" ({holder})" if holder else "")
            user = _user(tables, section, offset)
            used = f", used by {user}" if user and user != holder else ""
            many = f"{len(mine)} absolute addresses" if len(mine) > 1 else "an absolute address"
            yield self.finding(
                subject.name,
                f"{many} ({kind}) from {place}{used}, to {', '.join(targets)}; not relocated before use: {by}",
                symbol=holder or targets[0],
                section=name,
                offset=offset,
                seen=f"{len(mine)} {kind}",
                allowed="0",
                source=subject.source,
            )


_ET_REL = 1


def _places(section: npt.NDArray[np.int64], offset: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Section and offset in one number: both fit, a section is below 2^24 and no object is 2^39 bytes long."""
    return (section << 39) + offset


def _target(tables: Tables, index: int) -> str:
    section, value = tables.target(index)
    at = tables.symbol_at(section, value)
    return f"{at}" if at else tables.target_name(index)


def _user(tables: Tables, section: int, offset: int) -> str | None:
    """A function whose code refers to the table at a place of a data section, nearest before it."""
    if tables.executable[section]:
        return None
    indexes = np.flatnonzero(tables.executable[tables.relocations.section])
    indexes = indexes[tables.target_section(indexes) == section]
    before = indexes[np.abs(tables.target_value(indexes) - offset) <= _TABLE_NEAR]
    if not len(before):
        return None
    nearest = before[np.argmin(np.abs(tables.target_value(before) - offset))]
    place = int(tables.relocations.entries["r_offset"][nearest])
    return tables.symbol_at(int(tables.relocations.section[nearest]), place)


#: x86's PC32 addends are 4 or so bytes beside the place.
_TABLE_NEAR = 8
