"""What to do about a failure that is not known: the way to what a maintainer needs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from klto.explain.model import Remedy
from klto.explain.stages import Stage

_LINK_STAGES = frozenset(
    (
        Stage.THIN_LINK, Stage.LTO_CODEGEN, Stage.VMLINUX_O_LINK, Stage.KALLSYMS, Stage.VMLINUX_LINK,
        Stage.MODULE_LINK,
    )
)  # fmt: skip
_WHOLE = Remedy(
    "find out whether LTO has a part in it: the same configuration without", "klto build --lto none"
)


def advice(stage: Stage | None, targets: Sequence[str], build_dir: Path | None) -> tuple[Remedy, ...]:
    """How to get a reproducer for a failure at ``stage`` whose first failing target is ``targets[0]``."""
    target = targets[0] if targets else None
    where = f" -b {build_dir}" if build_dir else ""
    if stage is Stage.COMPILE and target:
        return (
            Remedy(
                "the compiler refused one source file; LTO's work begins at the link and has no part in that"
            ),
            Remedy("its command and output alone", f"klto build{where} V=1 {target}"),
            Remedy("if the compiler crashed: it names a preprocessed source and a script in /tmp; keep both"),
        )
    if stage in _LINK_STAGES:
        what = target or "vmlinux.o"
        return (
            _WHOLE,
            Remedy(
                f"a reproducer for LLVM: run the saved command of {what} again with --reproduce=repro.tar, which packs "
                "every input, option and version"
            ),
            Remedy("find the objects that matter", "klto minimize objects"),
        )
    if stage in (Stage.BOOT, Stage.RUNTIME, Stage.KEXEC, Stage.LIVEPATCH):
        return (
            _WHOLE,
            Remedy("the whole console output from 'Linux version' on, with CONFIG_KALLSYMS=y for names"),
            Remedy("if it comes with LTO only: the objects that matter", "klto minimize objects"),
        )
    if stage is Stage.OBJTOOL:
        return (
            _WHOLE,
            Remedy("disassemble what it names: llvm-objdump -dr --disassemble-symbols=FUNCTION vmlinux.o"),
        )
    again = f"klto build{where} V=1" + (f" {target}" if target and "/" in target else "")
    return (Remedy("the command that failed, and its output alone", again), _WHOLE)
