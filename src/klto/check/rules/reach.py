"""Branches that do not reach."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import numpy as np

from klto.check.finding import Finding, Level
from klto.check.link_inputs import LinkInputs
from klto.check.reaches import Reach, reaches, short_reaches
from klto.check.roles import Role
from klto.check.rule import Rule
from klto.check.subject import Subject, Tables

#: Bytes of code for each byte of bitcode: what the kernels of the tests gave (6.12 x86_64 and arm64, 6.1 x86_64,
#: LLVM 19, thin and full) was 0.13 to 0.25, without debug information. With it bitcode is larger, code is not.
_LEAST_CODE, _MOST_CODE = 0.02, 0.6
#: Direct calls and the image: what arch/x86/include/asm/page_64_types.h, KERNEL_IMAGE_SIZE (6.12, with
#: RANDOMIZE_BASE; else half of it), and a CALL26 allow.
_IMAGE_LIMITS = {62: ("KERNEL_IMAGE_SIZE", 1 << 30), 183: ("R_AARCH64_CALL26", 1 << 27)}
#: Findings of one kind in one file; a broken image would give thousands.
_MOST = 20
_ET_REL = 1


class ShortBranch(Rule):
    """Relocations whose target is, or will be, too far away."""

    slug = "short-branch"
    title = "a branch or address of short range whose target is too far away, before the link and after it"
    what = (
        "Assembly reaches a C function by a conditional branch, or takes its address relative to the "
        "instruction: 1 MiB or less either way. The link fails with 'relocation ... out of range', naming a "
        "source file that has nothing to do with it."
    )
    why = (
        "with LTO the function's code is generated at the link, in a section of its own behind all assembly and "
        "all modules before it, and no longer lies next to the assembly of its folder"
    )
    remedies: ClassVar = (
        (
            "branch without a condition (b, jmp: the linker bridges those), around which the condition jumps; take "
            "the address with adr_l (adrp and add)"
        ),
        "put the function into the assembly's section, or both into one of their own",
        "compile the function's file without LTO: klto build --no-lto PATH",
    )
    references: ClassVar = (
        "https://github.com/ClangBuiltLinux/linux/issues/1317",
        "arch/arm64/kvm/hyp/entry.S (6.12), which reaches hyp_panic by b and adr_l",
        "https://github.com/ClangBuiltLinux/linux/issues/1550",
    )

    def of_link(self, link: LinkInputs) -> Iterator[Finding]:
        """Before the link: from native code into bitcode."""
        for place, subject in link.native:
            tables = subject.tables
            if tables is None or tables.elf.symtab is None:
                continue
            known = short_reaches(tables.machine)
            indexes = tables.of_types(*known)
            outside = indexes[tables.target_section(indexes) == 0]
            for index in outside.tolist():
                name = tables.target_name(index)
                module = link.symbols.defined.get(name) if link.bitcode else None
                if module is not None and name not in link.native_defined:
                    yield self._predicted(link, place, subject, tables, index, module)

    def _predicted(
        self, link: LinkInputs, place: int, subject: Subject, tables: Tables, index: int, module: int
    ) -> Finding:
        kind, section, offset = tables.relocation(index)
        reach, name = short_reaches(tables.machine)[kind], tables.target_name(index)
        least, most = _distance(link, place, subject, section, offset, module)
        holder = tables.symbol_at(int(tables.relocations.section[index]), offset)
        where = f"{holder or section} reaches {name} of {link.bitcode[module].name} by {kind}"
        seen = f"{least} to {most} bytes" if least != most else f"{most} bytes"
        if least > reach.high:
            level, end = Level.ERROR, "it will be out of range"
        elif most > reach.high:
            level, end = Level.WARNING, "it may be out of range"
        else:
            level, end = Level.NOTE, f"it is in range, by {reach.high - most} bytes or more"
        return self.finding(
            subject.name,
            f"{where}, which allows {reach.text}, and will be {seen} away: {end}",
            level,
            symbol=name,
            section=section,
            offset=offset,
            seen=seen,
            allowed=reach.text,
            source=subject.source,
        )

    def of_object(self, subject: Subject) -> Iterator[Finding]:
        """After the link: distances that are known, and the image as a whole."""
        if subject.role not in (Role.VMLINUX_O, Role.VMLINUX) or subject.tables is None:
            return
        tables = subject.tables
        yield from self._distances(subject, tables)
        yield from self._image(subject, tables)

    def _distances(self, subject: Subject, tables: Tables) -> Iterator[Finding]:
        linked = tables.elf.header.e_type != _ET_REL
        for kind, reach in reaches(tables.machine).items():
            indexes = tables.of_types(kind)
            if not len(indexes):
                continue
            entries = tables.relocations.entries
            target = tables.target_section(indexes)
            # In vmlinux the linker script's own symbols have addresses too; in vmlinux.o a distance is known
            # within a section.
            known = target != 0 if linked else target == tables.relocations.section[indexes]
            indexes = indexes[known]
            distance = tables.target_value(indexes) - entries["r_offset"][indexes].view(np.int64)
            margin = np.minimum(distance - reach.low, reach.high - distance)
            near = np.flatnonzero(margin < (reach.high + 1) // 10)
            for place in near[:_MOST].tolist():
                yield self._near(subject, tables, int(indexes[place]), kind, reach, int(distance[place]))

    def _near(
        self, subject: Subject, tables: Tables, index: int, kind: str, reach: Reach, distance: int
    ) -> Finding:
        _, section, offset = tables.relocation(index)
        name = tables.target_name(index)
        outside = not reach.low <= distance <= reach.high
        holder = tables.symbol_at(int(tables.relocations.section[index]), offset)
        end = "out of range" if outside else f"within 10 % of what {kind} allows"
        return self.finding(
            subject.name,
            f"{holder or section} is {distance} bytes from {name}: {end}, {reach.text}",
            Level.ERROR if outside else Level.WARNING,
            symbol=name,
            section=section,
            offset=offset,
            seen=f"{distance} bytes",
            allowed=reach.text,
        )

    def _image(self, subject: Subject, tables: Tables) -> Iterator[Finding]:
        if tables.machine not in _IMAGE_LIMITS:
            return
        what, limit = _IMAGE_LIMITS[tables.machine]
        span = _span(tables, code_only=tables.machine == 183)
        if span <= limit * 9 // 10:
            return
        yield self.finding(
            subject.name,
            f"the {'code' if tables.machine == 183 else 'image'} spans {span} bytes, {what} reaches {limit}",
            # Between sections lld puts thunks: vmlinux.o of an LTO link has a section a function.
            Level.WARNING if tables.machine == 183 or span <= limit else Level.ERROR,
            seen=f"{span} bytes",
            allowed=f"{limit} bytes",
            remedies=(
                "configure less into the kernel: make drivers modules",
                "use ThinLTO with a lower import limit",
            ),
        )


def _span(tables: Tables, *, code_only: bool) -> int:
    """Bytes from the first to the last address; in vmlinux.o the sections' sizes together."""
    rows = tables.elf.sections
    chosen = (tables.executable if code_only else tables.allocated) & (tables.sizes > 0)
    if tables.elf.header.e_type == _ET_REL:
        return int(tables.sizes[chosen].sum())
    chosen &= rows["sh_addr"] > 0  # x86's .data..percpu is linked at 0.
    if not chosen.any():
        return 0
    ends = rows["sh_addr"][chosen] + rows["sh_size"][chosen]
    return int(ends.max()) - int(rows["sh_addr"][chosen].min())


def _distance(
    link: LinkInputs, place: int, subject: Subject, section: str, offset: int, module: int
) -> tuple[int, int]:
    """At least and at most how many bytes lie between a place in native code and a function in bitcode.

    lld puts what it has generated behind all native inputs (lld/ELF/Driver.cpp: compileBitcodeFiles appends to
    ctx.objectFiles), module after module; sections of one name stay together. So between a place in a native
    ``.text`` and the function there is the rest of that ``.text``, then what the modules before give.
    """
    rest = 0
    if section == ".text":
        rest = -offset
        for number, other in link.native:
            tables = other.tables
            if tables is None or number < place:
                continue
            mine = [i for i, name in enumerate(tables.names) if name == ".text"]
            rest += sum(int(tables.sizes[i]) for i in mine)
    before = sum(item.size for item in link.bitcode[:module])
    least = max(0, rest) + int(before * _LEAST_CODE)
    # Placed elsewhere (.init.text, .entry.text): all code may lie between.
    upto = before + link.bitcode[module].size
    if section != ".text":
        upto = sum(item.size for item in link.bitcode)
        rest = sum(
            int(t.sizes[t.executable].sum()) for _, other in link.native if (t := other.tables) is not None
        )
        least = 0
    return least, max(0, rest) + int(upto * _MOST_CODE)
