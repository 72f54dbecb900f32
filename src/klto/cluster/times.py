"""How long each module's backend took last time, so that the longest can come first."""

from __future__ import annotations

import json
from pathlib import Path

from klto.cluster.job import digest_of
from klto.files import write_whole

#: CPU seconds of a backend for which no time is known: starting clang, and for each byte of bitcode. From the 690
#: and 924 modules of arm64 and x86_64 6.12 kernels; only the order that it gives matters.
_START, _PER_BYTE = 0.04, 2e-6


def expected_of(size: int) -> float:
    """CPU seconds that a module of ``size`` bytes of bitcode is expected to take when nothing else is known."""
    return _START + _PER_BYTE * size


class Times:
    """Seconds by module name, of the last links at ``place``: text that tells links apart. Two that share it only
    have their jobs ordered less well."""

    def __init__(self, cache: Path | None, place: str) -> None:
        self._path: Path | None = None
        self._seconds: dict[str, float] = {}
        self._fresh = False
        if cache is not None:
            self._path = cache / "times" / f"{digest_of(place.encode('utf-8', 'surrogateescape'))}.json"
            self._load(self._path)

    def _load(self, path: Path) -> None:
        try:
            known = json.loads(path.read_text())
        except (OSError, ValueError):
            return  # The first link.
        if isinstance(known, dict):
            self._seconds = {name: seconds for name, seconds in known.items() if isinstance(seconds, float)}

    def expected(self, name: str, size: int) -> float:
        """CPU seconds that a module of ``size`` bytes of bitcode is expected to take."""
        return self._seconds.get(name, expected_of(size))

    def took(self, name: str, seconds: float) -> None:
        """A module's backend has ended."""
        self._seconds[name] = float(seconds)
        self._fresh = True

    def save(self) -> None:
        """Remember for the next link."""
        if self._path is not None and self._fresh:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(self._path, json.dumps(self._seconds))
