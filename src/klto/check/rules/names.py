"""Names that assembly defines or needs, and names that LTO changes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import ClassVar

import numpy as np

from klto.check.build_dir import BuildDir
from klto.check.finding import Finding, Level
from klto.check.link_inputs import LinkInputs
from klto.check.rule import Rule
from klto.check.subject import STT_FUNC
from klto.objects.assembly import labels

#: ModuleSummaryIndex::getGlobalNameForLocal (llvm/include/llvm/IR/ModuleSummaryIndex.h): NAME.llvm.HASH.
_PROMOTED = re.compile(r"\.llvm\.\d+$")
_MOST = 10


class AsmSymbolClash(Rule):
    """Assembly that is fine file by file."""

    slug = "asm-symbol-clash"
    title = "assembly labels that clash in full LTO, or assembly that needs what is static in C"
    what = (
        "Full LTO joins the module-level assembly of all files: a label that two files define is defined twice "
        "('symbol is already defined'). A name that assembly refers to and that is static in another file is "
        "undefined."
    )
    why = (
        "without LTO each file is assembled alone, and labels made of __COUNTER__ and __LINE__ need to be unique in "
        "one file only; static names are renamed when other modules import their users"
    )
    remedies: ClassVar = (
        "make the label from something that is the file's own: KBUILD_MODNAME, __UNIQUE_ID, or a local .L label",
        "declare what assembly refers to __visible, and not static",
        "use ThinLTO, which keeps each file's assembly apart",
    )
    references: ClassVar = (
        "https://github.com/ClangBuiltLinux/linux/issues/1913",
        "include/linux/btf_ids.h, __BTF_ID (6.12)",
    )

    def of_link(self, link: LinkInputs) -> Iterator[Finding]:
        if not link.bitcode:
            return
        if self._is_full(link):
            yield from self._clashes(link)
        undefined = {name for name in link.native_undefined if name not in link.native_defined}
        undefined -= link.symbols.defines(undefined, globally=True)
        local = link.symbols.defines(undefined, globally=False)
        for name, where in link.native_undefined.items():
            if name in local:
                yield self.finding(
                    where,
                    f"refers to {name}, which is static in bitcode and defined nowhere else",
                    symbol=name,
                    seen="local",
                    allowed="global",
                )

    def _clashes(self, link: LinkInputs) -> Iterator[Finding]:
        """Labels that two files define, and ``.set`` symbols to which they give different values: the last one
        would count. Equal ones are fine; kCFI's type hashes are in every file that calls the symbol."""
        shared = {name: numbers for name, numbers in link.symbols.of_asm.items() if len(numbers) > 1}
        texts = {
            number: b"\n".join(module.properties.asm for module in link.bitcode[number].read().modules)
            for number in sorted({number for numbers in shared.values() for number in numbers})
        }
        of_module = {number: labels(text) for number, text in texts.items()}
        clashes: list[tuple[str, list[int], str]] = []
        for name, numbers in sorted(shared.items()):
            labelled = [number for number in numbers if name in of_module[number]]
            if len(labelled) > 1:
                clashes.append((name, labelled, "label"))
            elif len({_value_of(name, texts[number]) for number in numbers}) > 1:
                clashes.append((name, numbers, ".set symbol"))
        for name, numbers, kind in clashes[:_MOST]:
            first, second = (link.bitcode[number].name for number in numbers[:2])
            is_label = kind == "label"
            yield self.finding(
                first,
                f"assembly defines the {kind} {name} here and in {second}: full LTO assembles both as one"
                + ("" if is_label else ", and the last value counts"),
                Level.ERROR if is_label else Level.WARNING,
                symbol=name,
                seen=f"{len(numbers)} definitions",
                allowed="1",
            )
        if len(clashes) > _MOST:
            yield self.finding(link.output, f"{len(clashes) - _MOST} more names clash in assembly")

    def _is_full(self, link: LinkInputs) -> bool:
        if link.lto is not None:
            return link.lto == "full"
        return link.bitcode[0].read().modules[0].properties.summary != "thin"


def _value_of(name: str, text: bytes) -> bytes | None:
    """What ``.set NAME, VALUE`` gives a symbol; the last one counts."""
    found = re.findall(rb"\.(?:set|equ)[ \t]+%s[ \t]*,[ \t]*([^\n;]*)" % re.escape(name.encode()), text)
    return found[-1].strip() if found else None


class PromotedNames(Rule):
    """Static functions that have got a suffix."""

    slug = "promoted-names"
    title = "how many static names ThinLTO has given a suffix, and which of them users may miss"
    what = (
        "A static function that another module needs after inlining is called NAME.llvm.HASH in vmlinux: kprobes, "
        "BPF programs and live patches that ask for NAME do not find it, or find one of several."
    )
    why = "ThinLTO compiles modules apart: what one imports from another must have a name that is unique"
    remedies: ClassVar = (
        "ask for the name that /proc/kallsyms has, or use a tool that knows the suffix",
        "-mllvm -always-rename-promoted-locals=false at the link, where ld.lld knows it (LLVM 22)",
    )
    references: ClassVar = (
        "https://github.com/iovisor/bcc/issues/5007",
        "kernel/kallsyms.c, cleanup_symbol_name (6.1 to 6.5)",
    )

    def of_build(self, build: BuildDir) -> Iterator[Finding]:
        vmlinux = build.subject("vmlinux")
        symtab = vmlinux.elf.symtab if vmlinux is not None and vmlinux.elf is not None else None
        if vmlinux is None or symtab is None:
            return
        kinds = symtab.table["st_info"] & 15
        numbers = symtab.name_column.holding(".llvm.")
        names = list(zip(numbers, symtab.name_column.at(np.array(numbers, np.int64)), strict=True))
        promoted = [(number, name) for number, name in names if _PROMOTED.search(name)]
        if not promoted:
            return
        functions = [name for number, name in promoted if int(kinds[number]) == STT_FUNC]
        plain = {_PROMOTED.sub("", name) for _, name in promoted}
        exported = sorted(plain & self._exported(build))
        counts = [
            f"{what}: {len(functions) if build.config.get(option) == 'y' else f'none, {option} is off'}"
            for what, option in (("traced", "FUNCTION_TRACER"), ("BPF-attachable", "BPF_SYSCALL"))
        ]
        yield self.finding(
            vmlinux.name,
            f"{len(promoted)} static names have a suffix .llvm.HASH, {len(functions)} of them functions; exported: "
            f"{', '.join(exported[:5]) if exported else 'none'}; {'; '.join(counts)}",
            Level.NOTE,
            symbol=functions[0] if functions else None,
            seen=str(len(promoted)),
        )

    def _exported(self, build: BuildDir) -> set[str]:
        try:
            lines = (build.path / "Module.symvers").read_text().splitlines()
        except OSError:
            return set()
        return {fields[1] for line in lines if len(fields := line.split("\t")) > 1}
