"""The stages of a build's and a kernel's life, and which one a line of a log speaks of."""

from __future__ import annotations

import re
from enum import StrEnum


class Stage(StrEnum):
    """Where a failure shows."""

    CONFIG = "config"
    COMPILE = "compile"
    THIN_LINK = "thin-link"
    LTO_CODEGEN = "lto-codegen"
    VMLINUX_O_LINK = "vmlinux.o-link"
    OBJTOOL = "objtool"
    MODPOST = "modpost"
    KALLSYMS = "kallsyms"
    VMLINUX_LINK = "vmlinux-link"
    BTF = "btf"
    MODULE_LINK = "module-link"
    INSTALL = "install"
    BOOT = "boot"
    RUNTIME = "runtime"
    KEXEC = "kexec"
    LIVEPATCH = "livepatch"
    MEMORY = "memory"
    UNKNOWN = "unknown"


#: Target of a failed make rule to stage, first match wins. Targets: Makefile, scripts/Makefile.vmlinux,
#: Makefile.vmlinux_o, Makefile.modpost, Makefile.modfinal of 6.12; scripts/link-vmlinux.sh before 6.1 and in 6.12.
_TARGETS = (
    (Stage.COMPILE, re.compile(r"^(tools|scripts)/")),
    (Stage.CONFIG, re.compile(r"(config|auto\.conf|prepare-compiler-check)$")),
    (Stage.VMLINUX_O_LINK, re.compile(r"(^|/)(vmlinux\.(o|a)|\.tmp_initcalls\.lds)$")),
    (Stage.BTF, re.compile(r"\.btf(\.[a-z.]+)?$")),
    (Stage.KALLSYMS, re.compile(r"(^|/)\.tmp_vmlinux")),
    (Stage.MODPOST, re.compile(r"(^|/)(modpost|Module\.symvers|modules-only\.symvers|__modpost)$")),
    (Stage.MODULE_LINK, re.compile(r"\.(ko|lto\.o|prelink\.o|prelink-symbols)$")),
    (Stage.INSTALL, re.compile(r"(modules_install|depmod|_modinst_post)$")),
    (Stage.VMLINUX_LINK, re.compile(r"(^|/)(vmlinux(\.unstripped)?|bzImage|Image)$")),
    (Stage.COMPILE, re.compile(r"\.(o|s|i|lst|ll|dtb)$")),
)

#: What a line without a target says about its stage, first match wins.
_LINES = (
    (Stage.OBJTOOL, re.compile(r"\bobjtool: ")),
    (Stage.MODPOST, re.compile(r"\bmodpost: ")),
    (Stage.INSTALL, re.compile(r"\bdepmod: |\bstrip: ")),
    (Stage.BTF, re.compile(r"\bpahole: |\bBTFIDS\b|\bresolve_btfids\b|\blibbpf: |\bbtf_encoder")),
    (Stage.MODULE_LINK, re.compile(r"\bld(\.lld)?: .*\.(lto|mod)\.o\b")),
    (Stage.LTO_CODEGEN, re.compile(r"\bLLVM ERROR: |ld-temp\.o|Running pass|<unknown>:0")),
    (Stage.VMLINUX_LINK, re.compile(r"\b(ld(\.lld|\.gold|\.bfd)?|collect2): ")),
    (Stage.COMPILE, re.compile(r"\.[chS]:\d+(:\d+)?: |\b(clang(-\d+)?|gcc|cc1|as): ")),
    (Stage.CONFIG, re.compile(r"\bKconfig\b|Cannot use CONFIG_")),
    (
        Stage.BOOT,
        re.compile(
            r"Kernel panic|Attempted to kill init|Unable to mount root|kernel BUG at|Internal error: "
            r"|general protection fault|unable to handle|WARNING: CPU: |CFI failure|\bOops\b"
        ),
    ),
    (Stage.MEMORY, re.compile(r"\bKilled\b|Out of memory|oom-kill")),
)

#: The innermost report of make that a recipe failed (GNU make's src/job.c, child_error), with a target.
MAKE_FAILED = re.compile(
    r"\bmake(?:\[\d+\])?: \*\*\* (?:\[(?:[^\]\s]+:\d+: )?(?P<target>[^\]\s]+)\] (?P<how>Error \d+|[A-Z][a-z].*))"
)


def stage_of_target(target: str) -> Stage | None:
    """The stage that makes a target of Kbuild, None when it is not one known."""
    return next((stage for stage, pattern in _TARGETS if pattern.search(target)), None)


def stage_of_line(text: str) -> Stage | None:
    """The stage that an error line speaks of, None when it does not say."""
    failed = MAKE_FAILED.search(text)
    if failed:
        return stage_of_target(failed["target"])
    return next((stage for stage, pattern in _LINES if pattern.search(text)), None)
