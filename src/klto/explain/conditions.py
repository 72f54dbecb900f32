"""Whether a failure can be here: an entry's conditions against what is known of kernel, LLVM and configuration."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from klto.explain.knowledge import When

#: What tells the architecture in a .config.
_ARCH_OPTIONS = {
    "CONFIG_X86_64": "x86_64",
    "CONFIG_ARM64": "arm64",
    "CONFIG_RISCV": "riscv",
    "CONFIG_LOONGARCH": "loongarch",
    "CONFIG_PPC": "powerpc",
    "CONFIG_S390": "s390",
    "CONFIG_MIPS": "mips",
}
_BANNER = re.compile(r"Linux version (?P<kernel>\d+\.\d+)\S* .{0,200}?clang version (?P<llvm>\d+)")


@dataclass(frozen=True)
class Facts:
    """What is known: versions as numbers, None when unknown; the configuration's lines, empty when unknown."""

    kernel: tuple[int, ...] | None = None
    llvm: tuple[int, ...] | None = None
    arch: str | None = None
    config: frozenset[str] = field(default_factory=frozenset)

    def against(self, when: When) -> Iterator[str]:
        """Each condition that does not hold, as a sentence; unknown ones hold."""
        for name, known, begin, end in (
            ("kernel", self.kernel, when.kernel_from, when.kernel_until),
            ("LLVM", self.llvm, when.llvm_from, when.llvm_until),
        ):
            if known is None:
                continue
            said = ".".join(map(str, known))
            if begin is not None and known < version(begin):
                yield f"{name} is {said} here, and this is known from {begin} on"
            if end is not None and known >= version(end):
                yield f"{name} is {said} here, and this was fixed in {end}"
        if self.arch is not None and when.arch and self.arch not in when.arch:
            yield f"the architecture is {self.arch} here, and this is known on {', '.join(when.arch)}"
        if self.config:
            for line in when.config:
                option = line.removeprefix("!").partition("=")[0]
                is_set = any(known.startswith(f"{option}=") for known in self.config)
                if is_set if line.startswith("!") else line not in self.config:
                    yield f"{option} is {'set' if is_set else 'not set'} in this .config"


def version(text: str) -> tuple[int, ...]:
    """``6.12`` as (6, 12)."""
    return tuple(int(part) for part in re.findall(r"\d+", text)[:3])


def facts_of_banner(text: str) -> Facts:
    """From the kernel's own first line."""
    found = _BANNER.search(text)
    return Facts(version(found["kernel"]), version(found["llvm"])) if found else Facts()


def facts_of_build_dir(build_dir: Path) -> Facts:
    """From ``.config`` and ``include/config/kernel.release``; what is not there is unknown."""
    try:
        config = (build_dir / ".config").read_text("utf-8", "replace")
    except OSError:
        config = ""
    try:
        release = (build_dir / "include/config/kernel.release").read_text("utf-8", "replace")
    except OSError:
        release = next(iter(re.findall(r"^# Linux/\S+ (\S+) Kernel Configuration", config, re.M)), "")
    clang = re.search(r"^CONFIG_CLANG_VERSION=([1-9]\d*)$", config, re.M)
    lines = frozenset(line for line in config.splitlines() if line.startswith("CONFIG_"))
    arch = next((arch for option, arch in _ARCH_OPTIONS.items() if f"{option}=y" in lines), None)
    # CONFIG_CLANG_VERSION: scripts/cc-version.sh prints major * 10000 + minor * 100 + patch level.
    llvm = (int(clang[1]) // 10000, int(clang[1]) // 100 % 100) if clang else None
    return Facts(version(release)[:2] or None, llvm, arch, lines)
