"""Puts salted copies of some modules into a link's command line, in the place of the modules themselves.

A module given by its path is replaced by the copy's path. A member of an archive needs another archive: a copy of
the same bytes, so that members keep their offsets and with them their names in the link, in a folder where the
member's path leads to the salted copy (thin archive) or with the salted bytes in it (full archive).
"""

from __future__ import annotations

import os

from klto.link.includes import Uncacheable
from klto.objects.archive import Archive, read_archive

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    #: The salted bytes of a module: (its bytes, its name for messages) to bytes.
    Salt = Callable[[bytes, str], bytes]


class Substitutes:
    """The replaced arguments of one link: ``of[input]`` is what to say instead."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self.of: dict[str, str] = {}

    def module(self, path: str, salted: bytes) -> None:
        """Replace a module that the command line names by its path."""
        copy = os.path.join(self._next(), os.path.basename(path))
        _write(copy, salted)
        self.of[path] = copy

    def archive(self, path: str, salted: dict[str, bytes]) -> None:
        """Replace an archive some of whose members are salted.

        :param salted: the members' bytes by their ``where``.
        :raises Uncacheable: for archives that cannot be copied this way.
        """
        archive = read_archive(path)
        folder = self._next()
        copy = os.path.join(folder, os.path.basename(path))
        data = bytearray(archive.data)
        if archive.thin:
            _shadow(archive, folder, salted)
        else:
            for member in archive.members:
                if member.where in salted:
                    data[member.offset : member.offset + member.size] = salted[member.where]
        _write(copy, bytes(data))
        self.of[path] = copy

    def _next(self) -> str:
        folder = os.path.join(self._folder, str(len(self.of)))
        os.makedirs(folder)
        return folder


def _shadow(archive: Archive, folder: str, salted: dict[str, bytes]) -> None:
    """Make ``folder`` look to a thin archive's relative members as its own folder does, but for the salted ones.

    A directory without a salted member below it is one link; a kernel has a thousand members, a few of them salted.
    """
    base = os.path.dirname(os.path.abspath(archive.path))
    real = {""}
    for member in archive.members:
        if member.path is None or os.path.isabs(member.name) or ".." in member.name.split("/"):
            raise Uncacheable(f"{archive.path} has a member outside of its folder: {member.name}")
        if member.where in salted:
            parent = os.path.dirname(member.name)
            while parent not in real:
                real.add(parent)
                parent = os.path.dirname(parent)
    made = set()
    for member in archive.members:
        name = member.name
        while os.path.dirname(name) not in real:
            name = os.path.dirname(name)
        if name in made:
            continue
        made.add(name)
        place = os.path.join(folder, name)
        os.makedirs(os.path.dirname(place), exist_ok=True)
        if member.where in salted:
            _write(place, salted[member.where])
        else:
            os.symlink(os.path.join(base, name), place)


def _write(path: str, data: bytes) -> None:
    with open(path, "xb") as stream:
        stream.write(data)
