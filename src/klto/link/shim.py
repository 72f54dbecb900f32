"""Puts the linker shim into a folder that goes first in PATH."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path

from klto.files import make_directory, write_whole
from klto.link import entry


def install_shims(folder: Path, linkers: Mapping[str, Path]) -> Path:
    """Write one shim for each name in ``linkers`` (``ld.lld``, ``ld.lld-19``) that stands for the real linker.

    :returns: ``folder``, which then holds the shims and nothing else.
    :raises UsageError: when the folder cannot be written.
    """
    template = files("klto.link").joinpath("shim.sh").read_text(encoding="utf-8")
    if folder.exists():
        shutil.rmtree(folder)
    make_directory(folder)
    for name, real in linkers.items():
        text = (
            template.replace("@REAL@", shlex.quote(str(real)))
            .replace("@PYTHON@", shlex.quote(sys.executable))
            .replace("@ENTRY@", shlex.quote(entry.__file__))
        )
        write_whole(folder / name, text, mode=0o755)
    return folder
