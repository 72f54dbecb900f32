"""Puts klto's shims for the linker into a folder that goes first in PATH."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from klto import process
from klto.files import make_directory, write_whole
from klto.link import entry

#: Shells that may take a path as an alias's name (dash does, bash does not).
_SHELLS = ("/bin/sh", "/bin/dash", "/usr/bin/dash")


@dataclass(frozen=True)
class Shims:
    """The folder to put first in PATH, and the shell that make must run, None for its own."""

    folder: Path
    shell: Path | None = None


def install_shims(
    folder: Path, linker_name: str, real: Path, others: Mapping[str, str] | None = None
) -> Shims:
    """Write the shim for a linker that Kbuild calls by ``linker_name`` and that is ``real``.

    :param linker_name: ``ld.lld``, ``ld.lld-19``, or an absolute path: then make's shell is a shim too.
    :param others: scripts that stand for further programs, by the names that Kbuild calls.
    :returns: the folder, which then holds the shims and nothing else.
    :raises UsageError: when the folder cannot be written.
    """
    if folder.exists():
        shutil.rmtree(folder)
    make_directory(folder)
    shim = folder / Path(linker_name).name
    write_whole(shim, _filled("shim.sh", REAL=real, PYTHON=sys.executable, ENTRY=entry.__file__), mode=0o755)
    scripts = {linker_name: shim}
    for name, text in (others or {}).items():
        scripts[name] = folder / Path(name).name
        write_whole(scripts[name], text, mode=0o755)
    if "/" not in linker_name:
        return Shims(folder)
    shell = _shell_with_path_aliases()
    if shell is None:
        return Shims(folder)
    aliases = "\n".join(f"alias {name}={shlex.quote(str(script))}" for name, script in scripts.items())
    write_whole(folder / "sh", _filled("shell_shim.sh", SHELL=shell, ALIAS=aliases), mode=0o755)
    return Shims(folder, folder / "sh")


def _filled(template: str, **values: str | Path) -> str:
    text = files("klto.link").joinpath(template).read_text(encoding="utf-8")
    for name, value in values.items():
        text = text.replace(f"@{name}@", shlex.quote(str(value)))
    return text


def _shell_with_path_aliases() -> str | None:
    """A shell of this machine that lets an alias stand for an absolute path; found by asking."""
    for shell in _SHELLS:
        if Path(shell).exists():
            asked = process.run([shell, "-c", "alias /klto/x=echo\n/klto/x yes"], check=False)
            if asked.stdout == "yes\n":
                return shell
    return None
