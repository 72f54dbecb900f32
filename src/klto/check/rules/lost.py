"""Bitcode where it must not be, and native code where LTO was asked for."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import ClassVar

from klto.check.build_dir import BuildDir
from klto.check.finding import Finding, Level
from klto.check.link_inputs import LinkInputs
from klto.check.roles import FINAL, NATIVE_PARTS, Role
from klto.check.rule import Rule
from klto.check.saved import SavedCommand, read_saved
from klto.check.subject import Subject
from klto.objects.kind import kind_of

#: Sections in which clang embeds bitcode (``-fembed-bitcode``, ``-ffat-lto-objects``):
#: llvm/lib/Bitcode/Writer/BitcodeWriter.cpp, embedBitcodeInModule; llvm/lib/Object/ObjectFile.cpp.
_BITCODE_SECTIONS = frozenset((".llvmbc", ".llvm.lto"))
#: Findings shown one by one; more are one finding.
_MOST = 10
#: Names in one finding.
_SHOWN = 3


class LeftoverBitcode(Rule):
    """Bitcode that nobody will compile any more."""

    slug = "leftover-bitcode"
    title = "bitcode in a finished artifact, or in a link that takes native code only"
    what = (
        "Bitcode in a module, a vdso or the purgatory is no code: the loader refuses it, or the symbols that it "
        "defines are silently gone from a link that drops what it cannot see used."
    )
    why = "a Makefile that links apart from vmlinux must filter CC_FLAGS_LTO out, and this one does not"
    remedies: ClassVar = (
        "filter CC_FLAGS_LTO out of KBUILD_CFLAGS in that folder's Makefile",
        "klto build --no-lto PATH",
        "build the file again: an interrupted link may have left its input behind",
    )
    references: ClassVar = (
        "arch/x86/purgatory/Makefile, arch/arm64/kernel/pi/Makefile, drivers/firmware/efi/libstub/Makefile (6.12)",
        "arch/arm64/kernel/vdso/Makefile, CC_FLAGS_REMOVE_VDSO (6.12)",
    )

    def of_object(self, subject: Subject) -> Iterator[Finding]:
        # The purgatory's link takes bitcode; what comes of that is the business of split-text.
        native = FINAL | NATIVE_PARTS - {Role.PURGATORY_PART}
        if subject.object.bitcode is not None and subject.role in native:
            yield self.finding(
                subject.name,
                f"is LLVM bitcode, but as {subject.role} it must be native code",
                seen="bitcode",
                allowed="ELF",
                source=subject.source,
            )
        elif subject.role in FINAL and subject.tables is not None:
            for name in sorted(_BITCODE_SECTIONS & set(subject.tables.names)):
                yield self.finding(
                    subject.name,
                    "holds bitcode beside its code",
                    section=name,
                    seen=name,
                    allowed="no such section",
                )


class LtoLost(Rule):
    """The kernel was asked to be optimised as a whole, and was not."""

    slug = "lto-lost"
    asks_link = True
    title = "native code where LTO was asked for, and how much of the kernel was optimised across modules"
    what = "The build succeeds, but objects that should meet at the link came to it as native code."
    why = (
        "LTO is a flag of each compilation: what drops it, or turns the object into native code right after it "
        "(a stray 'ld -r'), loses it without a word"
    )
    remedies: ClassVar = (
        (
            "look at the saved command beside the object (.NAME.o.cmd): the last of -flto and -fno-lto counts, and an "
            "'ld -r' behind the compiler turns bitcode into native code"
        ),
        "ask for LTO so that it sticks: klto build --lto thin says which option stands in the way",
    )
    references: ClassVar = (
        (
            "scripts/Makefile.build, cmd_ld_single_m (6.1), cmd_ld_single (6.12); 6.13 rc, 'kbuild: enable objtool for "
            "*.mod.o and additional kernel objects': every object went through ld -r"
        ),
        "scripts/kconfig: LTO_NONE is the choice's default",
    )

    def of_link(self, link: LinkInputs) -> Iterator[Finding]:
        lost = [
            (subject.name, subject.command)
            for _, subject in link.native
            if subject.command is not None
            and subject.command.asks_for_lto
            and subject.name not in link.left_out
        ]
        for name, command in lost[:_MOST]:
            yield self._of_one(name, command)
        if len(lost) > _MOST:
            yield self.finding(
                link.output, f"{len(lost) - _MOST} more objects were asked for bitcode and are native code"
            )
        if link.lto in ("thin", "full") and not link.bitcode and link.native:
            yield self.finding(
                link.output,
                f"the configuration asks for {link.lto} LTO, but none of {len(link.native)} inputs is bitcode",
                seen="0 bitcode modules",
                allowed="1 or more",
            )
        elif link.lto in ("thin", "full") and link.bitcode:
            yield self._share(link)

    def _of_one(self, name: str, command: SavedCommand) -> Finding:
        own = command.own_link
        because = (
            f"its own recipe links it to native code: {own}" if own else "yet its saved command has -flto"
        )
        return self.finding(
            name,
            f"is native code in an LTO link, {because}",
            seen="ELF",
            allowed="bitcode",
            source=command.source,
        )

    def _share(self, link: LinkInputs) -> Finding:
        of_c = [subject for _, subject in link.native if (subject.source or "").endswith(".c")]
        compiled = len(link.bitcode) + len(of_c)
        left_out = sum(subject.name in link.left_out for _, subject in link.native)
        asked = f", {left_out} of the others by --no-lto" if left_out else ""
        # Not all is never 100.0 %.
        share = int(1000 * len(link.bitcode) / compiled) / 10
        native = [subject.name for subject in of_c if subject.name not in link.left_out]
        more = f" and {len(native) - _SHOWN} more" if len(native) > _SHOWN else ""
        named = f"; compiled without: {', '.join(native[:_SHOWN])}{more}" if native else ""
        return self.finding(
            link.output,
            f"{len(link.bitcode)} of {compiled} objects compiled from C ({share:.1f} %) are optimised across "
            f"modules{asked}{named}; {len(link.native) - len(of_c)} are assembly or linked apart",
            Level.NOTE,
            seen=f"{share:.1f} %",
        )

    #: What ``-K`` of ``klto check`` asks for: names without CONFIG_ and their values.
    wanted: Mapping[str, str] = MappingProxyType({})

    def of_build(self, build: BuildDir) -> Iterator[Finding]:
        yield from self._asked(build)
        yield from self._dropped(build)
        for path in build.modules():
            yield from self._of_module(build, path)

    def _asked(self, build: BuildDir) -> Iterator[Finding]:
        """What was asked of klto against what the configuration has."""
        asked = build.record.get("asked")
        wanted = asked.get("lto") if isinstance(asked, dict) else None
        if wanted in ("thin", "full") and build.lto != wanted:
            yield self.finding(
                ".config",
                f"{wanted} LTO was asked for, the configuration has {build.lto}",
                seen=f"CONFIG_LTO: {build.lto}",
                allowed=wanted,
            )

    def _dropped(self, build: BuildDir) -> Iterator[Finding]:
        """Options of a fragment that kconfig did not keep: what drops LTO is an error, the others may be why."""
        for name, value in self.wanted.items():
            got = build.config.get(name, "n")
            if got != value:
                yield self.finding(
                    ".config",
                    f"CONFIG_{name}={value} was asked for, it is {got}",
                    Level.ERROR if name.startswith("LTO_") else Level.WARNING,
                    symbol=f"CONFIG_{name}",
                    seen=got,
                    allowed=value,
                )

    def _of_module(self, build: BuildDir, path: str) -> Iterator[Finding]:
        """A kernel module's objects: those of several are linked from bitcode, one alone over itself."""
        name = path.removesuffix(".ko")
        try:
            parts = (build.path / f"{name}.mod").read_text().split()
        except OSError:
            return
        for part in parts if len(parts) > 1 else ():
            full = os.path.join(build.path, part)
            command = read_saved(full)
            if command is None or not command.asks_for_lto or command.own_link or not os.path.exists(full):
                continue
            if part in build.link.left_out:
                continue
            if kind_of(full) == "elf":
                yield self._of_one(part, command)
