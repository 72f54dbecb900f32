"""The thin link: the linker looks at all modules' summaries and writes an index shard for each of them.

lld/ELF/Options.td: ``--thinlto-index-only=FILE`` lists the modules that are linked, in the order in which the linker
would take their objects in; ``--thinlto-prefix-replace`` says where the shards go.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from klto import process
from klto.cluster.module_flags import read_module_flags
from klto.cluster.modules import Place, place_of_file
from klto.cluster.options import Undistributable
from klto.objects.archive import read_archive
from klto.objects.errors import MalformedObject
from klto.objects.kind import kind_of

if TYPE_CHECKING:
    from klto.link.request import LinkRequest
    from klto.objects.archive import Member


class Source(NamedTuple):
    """A bitcode module among the inputs: the argument it came by, and the archive's member if it is one."""

    argument: str
    member: Member | None

    @property
    def where(self) -> str:
        """For messages."""
        return self.argument if self.member is None else self.member.where

    @property
    def place(self) -> Place:
        """Where its bitcode lies.

        :raises Undistributable: when that is in an archive within an archive.
        """
        if self.member is None:
            return place_of_file(self.argument)
        if self.member.path is None:
            return Place(self.argument, self.member.offset, self.member.size, False)
        if self.member.where != self.member.path:
            raise Undistributable(f"{self.argument} has a member in another archive, {self.member.where}")
        return place_of_file(self.member.path)


class ThinLink(NamedTuple):
    """:ivar order: the linked modules as the linker calls them, in order. ``shards``: the file of each."""

    order: tuple[str, ...]
    shards: dict[str, Path]
    sources: dict[str, Source]
    usage: process.Usage


def bitcode_sources(request: LinkRequest) -> dict[str, Source]:
    """The bitcode among a link's inputs by the linker's name for it (lld/ELF/InputFiles.cpp, BitcodeFile)."""
    found: dict[str, Source] = {}
    for argument in request.inputs:
        if not os.path.isfile(argument):
            continue  # The linker will say so.
        kind = kind_of(argument)
        if kind == "bitcode":
            found.setdefault(argument, Source(argument, None))
        elif kind in ("archive", "thin-archive"):
            for member in read_archive(argument).members:
                kind = member.kind()
                if kind == "bitcode":
                    name = f"{argument}({os.path.basename(member.name)} at {member.header_offset})"
                    found[name] = Source(argument, member)
                elif kind in ("archive", "thin-archive"):
                    raise Undistributable(f"{argument} holds another archive, {member.name}")
    return found


def thin_link(linker: str, arguments: list[str], request: LinkRequest, scratch: Path) -> ThinLink:
    """Do the thin link.

    :param scratch: an empty folder; shards go below it.
    :raises Undistributable: when a module cannot be compiled by a backend of its own.
    :raises klto.process.CommandFailed: when the linker fails.
    """
    sources = bitcode_sources(request)
    # Shards of modules outside of this folder ("../x.o") must still land in the scratch folder.
    shards = scratch.joinpath("shards", *["d"] * (1 + max((_ups(name) for name in sources), default=0)))
    shards.mkdir(parents=True)
    listed = scratch / "order"
    finished = process.run(
        [linker, *arguments, f"--thinlto-index-only={listed}", f"--thinlto-prefix-replace=;{shards}/"]
    )
    prefix = f"{shards}/"
    order = [line.removeprefix(prefix) for line in listed.read_text(errors="surrogateescape").splitlines()]
    unknown = next((name for name in order if name not in sources), None)
    if unknown is not None:
        raise Undistributable(f"{unknown} is linked, but is not named on the command line")
    for name in sources.keys() - set(order):
        _check_unlinked(request, sources[name])
    return ThinLink(
        tuple(order), {name: Path(f"{prefix}{name}.thinlto.bc") for name in order}, sources, finished.usage
    )


def _ups(name: str) -> int:
    """How many folders upwards a relative path leads."""
    return os.path.normpath(name).split("/").count("..")


def _check_unlinked(request: LinkRequest, source: Source) -> None:
    """A module that no shard was written for is an archive's member that nobody needs, or one without ThinLTO."""
    try:
        summary = read_module_flags(source.place.read(), source.where).summary
    except MalformedObject as error:
        raise Undistributable(str(error)) from error
    if summary != "thin":
        raise Undistributable(f"{source.where} is not a ThinLTO module (summary: {summary or 'none'})")
