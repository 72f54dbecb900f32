"""The links of a finished build dir, done once more: by the linker alone and by klto."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from klto.events import LinkFinished, read_journal
from klto.link import entry
from klto.link.inputs import read_inputs
from klto.link.request import parse_request


def lto_links(build_dir: Path) -> Iterator[tuple[str, list[str]]]:
    """(output, the linker's arguments) of every relocatable link with bitcode, from Kbuild's saved commands.

    Inputs and response files are named from the build dir, which must be the working directory."""
    for path in sorted(build_dir.rglob(".*.cmd")):
        line = path.read_text(errors="replace").partition("\n")[0]
        command = line.partition(":= ")[2].partition(";")[0]
        if not command.startswith("ld.lld"):
            continue
        arguments = shlex.split(command)[1:]
        request = parse_request(arguments)
        if request.relocatable and read_inputs(request).bitcode:
            yield request.output, arguments


class Relink:
    """Does links in a build dir, into a folder of its own, with a cache of its own."""

    def __init__(self, build_dir: Path, folder: Path, linker: Path) -> None:
        self._build_dir, self._folder, self._linker = build_dir, folder, linker
        self._journal = folder / "journal"

    def by_lld(self, arguments: list[str]) -> bytes:
        """The bytes that the linker alone links."""
        return self._run([str(self._linker)], arguments, dict(os.environ))

    def by_klto(self, arguments: list[str]) -> tuple[bytes, LinkFinished]:
        """The bytes that klto links, and what it says of the link."""
        environment = {
            **os.environ,
            "KLTO_CACHE": str(self._folder / "cache"),
            "KLTO_WHOLE_LINKS": "1",
            "KLTO_JOBS": "2",
            "KLTO_JOURNAL": str(self._journal),
        }
        command = [sys.executable, "-I", "-S", entry.__file__, str(self._linker)]
        linked = self._run(command, arguments, environment)
        ended = read_journal(self._journal)[-1]
        assert isinstance(ended, LinkFinished)
        return linked, ended

    def forget_whole_links(self) -> None:
        """The next link is put together from cached modules."""
        for path in (self._folder / "cache/partitions/links").iterdir():
            path.unlink()

    def _run(self, command: list[str], arguments: list[str], environment: dict[str, str]) -> bytes:
        out = self._folder / "out.o"
        out.unlink(missing_ok=True)
        words = list(arguments)
        words[words.index("-o") + 1] = str(out)
        subprocess.run([*command, *words], cwd=self._build_dir, env=environment, check=True)
        return out.read_bytes()
