"""The vmlinux.o link as Kbuild saved it in the build dir (``.vmlinux.o.cmd``, scripts/Kbuild.include)."""

from __future__ import annotations

import shlex
from pathlib import Path

#: Kbuild's saved commands: ``cmd_NAME := ...`` to 6.2, ``savedcmd_NAME := ...`` since.
_ASSIGN = ":= "


def saved_link(build_dir: Path) -> list[str]:
    """The linker's command of the last vmlinux.o link, its name first; empty without one."""
    try:
        lines = (build_dir / ".vmlinux.o.cmd").read_text(errors="replace").splitlines()
    except OSError:
        return []
    command = lines[0].partition(_ASSIGN)[2].partition(";")[0] if lines else ""
    try:
        return shlex.split(command)
    except ValueError:
        return []  # Torn.


def link_inputs(build_dir: Path) -> list[Path]:
    """The archives of the vmlinux.o link, from the saved command; vmlinux.a when there is none.

    All its inputs are archives (scripts/Makefile.vmlinux_o: vmlinux.a and KBUILD_VMLINUX_LIBS).
    """
    archives = [word for word in saved_link(build_dir)[1:] if word.endswith(".a") and word[0] != "-"]
    return [build_dir / name for name in archives] or [build_dir / "vmlinux.a"]
