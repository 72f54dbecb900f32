"""Objects that ``klto build --no-lto`` has left out of LTO, by what it keeps in the build dir.

``overrides.json``: output to ``{"override": ..., "stamp": [inode, size, nanoseconds]}``; ``overrides.log``: outputs of
the run under way, one a line.
"""

from __future__ import annotations

import json
import os

_NO_LTO = "no-lto"


def left_out_of_lto(build_dir: str) -> frozenset[str]:
    """Those objects, relative to the build dir, as far as they are still the ones that klto made."""
    folder = os.path.join(build_dir, ".klto")
    found = {name for name, stamp in _made(folder) if stamp == _stamp(os.path.join(build_dir, name))}
    try:
        with open(os.path.join(folder, "overrides.log"), errors="surrogateescape") as stream:
            found.update(stream.read().splitlines())
    except OSError:
        return frozenset(found)  # No such run is under way.
    return frozenset(found)


def _made(folder: str) -> list[tuple[str, object]]:
    try:
        with open(os.path.join(folder, "overrides.json"), "rb") as stream:
            made = json.load(stream)
    except (OSError, ValueError):
        return []
    items = made.items() if isinstance(made, dict) else ()
    return [
        (name, item.get("stamp"))
        for name, item in items
        if isinstance(item, dict) and item.get("override") == _NO_LTO
    ]


def _stamp(path: str) -> list[int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return [status.st_ino, status.st_size, status.st_mtime_ns]
