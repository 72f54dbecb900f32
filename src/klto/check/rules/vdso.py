"""What a vdso promises."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from klto.check.build_dir import BuildDir
from klto.check.finding import Finding
from klto.check.roles import Role
from klto.check.rule import Rule
from klto.objects.elf import SHT_DYNSYM

#: ``VERSION { LINUX_2.6.39 { global: a; b; local: *; }; }`` of a preprocessed linker script.
_GLOBALS = re.compile(r"global\s*:(.*?)(?:local\s*:|\})", re.DOTALL)


class VdsoExports(Rule):
    """Symbols that the version script names and the vdso does not have."""

    slug = "vdso-exports"
    title = "vdso symbols that the version script promises and that are not there"
    what = "The C library asks the vdso for its clock and finds none: no error, every clock_gettime is a system call."
    why = "compiled as bitcode, the vdso's functions have no user that LTO can see, and are removed"
    remedies: ClassVar = (
        "filter CC_FLAGS_LTO out of the vdso's KBUILD_CFLAGS",
        "klto build --no-lto arch/x86/entry/vdso",
    )
    references: ClassVar = (
        "arch/x86/entry/vdso/Makefile, arch/arm64/kernel/vdso/Makefile (6.12)",
        "the linux-riscv thread on vdso symbols lost with LTO",
    )

    def of_build(self, build: BuildDir) -> Iterator[Finding]:
        for subject in build.subjects(Role.VDSO):
            if subject.elf is None:
                continue
            script = _script(build.path / subject.name)
            promised = _promised(script) if script is not None else []
            tables = [
                table
                for table in subject.elf.symbol_tables
                if subject.elf.sections["sh_type"][table.index] == SHT_DYNSYM
            ]
            there: set[str] = set()
            for table in tables:
                defined = (table.table["st_shndx"] != 0).tolist()
                there |= {name for name, is_defined in zip(table.names, defined, strict=True) if is_defined}
            for name in promised:
                if name not in there:
                    yield self.finding(
                        subject.name,
                        f"{name} is promised by {script.name if script else 'its script'} and is not there",
                        symbol=name,
                        section=".dynsym",
                        seen="undefined",
                        allowed="defined",
                    )


def _script(vdso: Path) -> Path | None:
    """The linker script beside vdso64.so.dbg: vdso64.lds, or vdso.lds."""
    name = vdso.name.partition(".")[0]
    candidates = (f"{name}.lds", f"{name}/{name}.lds", "vdso.lds")
    return next((vdso.parent / c for c in candidates if (vdso.parent / c).is_file()), None)


def _promised(script: Path) -> list[str]:
    text = re.sub(r"/\*.*?\*/", "", script.read_text("utf-8", "replace"), flags=re.DOTALL)
    begin = text.find("VERSION")
    if begin < 0:
        return []
    names = [name.strip() for block in _GLOBALS.findall(text[begin:]) for name in block.split(";")]
    return [name for name in dict.fromkeys(names) if name and "*" not in name]
