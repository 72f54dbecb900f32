"""Which toolchain a build dir was made with, read from what Kbuild saved there."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class MadeWith:
    """How a build dir was made, read from what Kbuild saved there."""

    #: None when the commands name another compiler than clang.
    spelling: str | None
    #: CONFIG_CC_VERSION_TEXT of what was compiled, else of ``.config``.
    version_text: str | None
    #: Whether kernel objects were compiled, not only the configuration programs.
    compiled: bool


#: Saved commands, cheapest witness first: kernel objects that every build has, then what ``make *config``
#: compiles with HOSTCC, which LLVM= spells like CC.
_WITNESSES = ("init/.main.o.cmd", "scripts/mod/.empty.o.cmd", "kernel/.bounds.s.cmd")
_HOST_WITNESSES = ("scripts/kconfig/.conf.o.cmd", "scripts/basic/.fixdep.cmd")


def made_with(build_dir: Path) -> MadeWith | None:
    """How ``build_dir`` was made, or None when nothing was."""
    for names, compiled in ((_WITNESSES, True), (_HOST_WITNESSES, False)):
        for name in names:
            word = _first_word(build_dir / name)
            if word is not None:
                return MadeWith(_spelling_of(word), _saved_version_text(build_dir), compiled)
    return None


def _first_word(cmd_file: Path) -> str | None:
    """The program of a ``.cmd`` file's command (``savedcmd_`` in 6.12, ``cmd_`` in 6.1)."""
    try:
        with cmd_file.open("rb") as file:
            head = file.read(4096).decode("utf-8", "replace")
    except OSError:
        return None
    found = re.match(r"(?:saved)?cmd_\S+ := (\S+)", head)
    return found[1] if found else None


def _spelling_of(compiler: str) -> str | None:
    folder, name = os.path.split(compiler)
    suffixed = re.fullmatch(r"clang(-\S+)?", name)
    if suffixed is None:
        return None
    if folder:
        # LLVM=/dir/ takes no suffix; a compiler given as CC=/dir/clang-19 cannot be spelled with LLVM=.
        return None if suffixed[1] else f"LLVM={folder}/"
    return f"LLVM={suffixed[1] or '1'}"


def _saved_version_text(build_dir: Path) -> str | None:
    """CONFIG_CC_VERSION_TEXT of the configuration that was compiled, else of the next one."""
    for name in ("include/config/auto.conf", ".config"):
        try:
            with (build_dir / name).open(encoding="utf-8", errors="replace") as file:
                for line in file:
                    if line.startswith("CONFIG_CC_VERSION_TEXT="):
                        return line.split("=", 1)[1].strip().strip('"')
        except OSError:
            continue
    return None
