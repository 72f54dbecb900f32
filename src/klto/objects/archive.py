"""Archives: full and thin, as GNU ar and llvm-ar write them, with GNU, SysV or BSD names, and nested ones.

Format: System V ABI chapter 7, "Archive File", with the names of GNU binutils' include/aout/ar.h;
thin archives as in llvm/lib/Object/Archive.cpp and bfd/archive.c. Standard library only, and little of it: a
linker shim reads archives in an interpreter that should start in milliseconds (so no dataclasses here).
"""

from __future__ import annotations

import os

from klto.objects.errors import MalformedObject
from klto.objects.kind import ARCHIVE_MAGIC, MAGIC_SIZE, THIN_ARCHIVE_MAGIC, kind_of, kind_of_bytes
from klto.objects.source import read_whole

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from klto.objects.kind import Kind
    from klto.objects.source import Buffer

#: struct ar_hdr of aout/ar.h: ar_name[16] ar_date[12] ar_uid[6] ar_gid[6] ar_mode[8] ar_size[10] ar_fmag[2].
_HEADER_SIZE = 60
#: ARFMAG of aout/ar.h.
_FMAG = b"`\n"
#: Members that are tables of the archive itself: GNU's symbol tables (32 and 64 bit) and long-name table,
#: and COFF's tables, which LLVM names in Archive.cpp.
_TABLES = frozenset((b"/", b"/SYM64/", b"/<ECSYMBOLS>/", b"/<XFGHASHMAP>/"))
_LONG_NAMES = b"//"
#: BSD's and Darwin's symbol tables; tables only as the first member (Archive.cpp, Archive::Archive).
_BSD_TABLES = frozenset(("__.SYMDEF", "__.SYMDEF SORTED", "__.SYMDEF_64", "__.SYMDEF_64 SORTED"))
#: Archives within archives deeper than this are refused. Kbuild makes none at all.
_MAX_DEPTH = 8


class Member:
    """One file in an archive. Values; do not assign.

    :ivar name: as the archive has it; in a thin archive a path relative to the archive's folder, or absolute,
        and in GNU ar's thin archive of a full archive that archive's path.
    :ivar header_offset: byte offset of its header in the archive.
    :ivar path: where a thin archive's member lies on disk, else None.
    :ivar offset: of a full archive's member: byte offset of its content in the archive.
    :ivar size: bytes; a thin archive's member may have changed its size since.
    """

    __slots__ = ("_archive", "_origin", "header_offset", "name", "offset", "path", "size")

    def __init__(
        self, archive: Archive, name: str, header_offset: int, offset: int, size: int, origin: int | None
    ) -> None:
        self._archive = archive
        self._origin = origin
        self.name = name
        self.header_offset = header_offset
        self.offset = offset
        self.size = size
        self.path = os.path.join(os.path.dirname(archive.path), name) if archive.thin else None

    @property
    def where(self) -> str:
        """How errors and findings name it: ``lib.a(sha1.o)``, or the path of a thin archive's member."""
        if self.path is None:
            return f"{self._archive.path}({self.name})"
        return self.path if self._origin is None else self._nested().where

    def data(self) -> Buffer:
        """Its content; not copied when the archive, or the thin archive's member, is large.

        :raises MalformedObject: when a thin archive's member cannot be read.
        """
        if self.path is None:
            return memoryview(self._archive.data)[self.offset : self.offset + self.size]
        if self._origin is not None:
            return self._nested().data()
        try:
            return read_whole(self.path)
        except MalformedObject as error:
            raise self._missing(error) from error

    def kind(self) -> Kind:
        """What it is, by its first bytes.

        :raises MalformedObject: when a thin archive's member cannot be read.
        """
        if self.path is None:
            return kind_of_bytes(memoryview(self._archive.data)[self.offset : self.offset + self.size])
        if self._origin is not None:
            return self._nested().kind()
        try:
            return kind_of(self.path)
        except MalformedObject as error:
            raise self._missing(error) from error

    def _missing(self, error: MalformedObject) -> MalformedObject:
        return MalformedObject(
            self._archive.path,
            self.header_offset,
            f"expected a member at {self.path}, which {error.problem}",
            "a thin archive has paths only, from its own folder on: use it where it was made, or make it again",
        )

    def _nested(self) -> Member:
        """GNU ar's thin archive of a full archive: the member at ``_origin`` of the archive at ``path``."""
        assert self.path is not None
        inner = self._archive.opened(self.path, self.header_offset)
        for member in inner.members:
            if member.header_offset == self._origin and member.path is None:
                return member
        raise MalformedObject(
            self._archive.path,
            self.header_offset,
            f"expected a member of {self.path} at its offset {self._origin}, found none",
        )


class Archive:
    """An archive that has been read. ``members`` are in file order, tables left out."""

    __slots__ = ("_opened", "data", "members", "path", "thin")

    def __init__(self, path: str, data: Buffer) -> None:
        self.path = path
        self.data = data
        magic = bytes(data[:MAGIC_SIZE])
        if magic not in (ARCHIVE_MAGIC, THIN_ARCHIVE_MAGIC):
            raise MalformedObject(path, 0, f"expected the magic of an archive, found {magic!r}")
        self.thin = magic == THIN_ARCHIVE_MAGIC
        self._opened: dict[str, Archive] = {}
        self.members: list[Member] = _read_members(self)

    def opened(self, path: str, offset: int) -> Archive:
        """The full archive at ``path`` that the member at ``offset`` of this thin one lies in, read once."""
        if path not in self._opened:
            inner = read_archive(path)
            if inner.thin:
                raise MalformedObject(
                    self.path, offset, f"expected a full archive at {path}, found a thin one"
                )
            self._opened[path] = inner
        return self._opened[path]


def read_archive(path: str | os.PathLike[str]) -> Archive:
    """Read a full or thin archive; members' contents stay where they are until asked for.

    :raises MalformedObject: not an archive, or a broken one.
    """
    return Archive(os.fspath(path), read_whole(path))


def leaves(archive: Archive) -> Iterator[Member]:
    """The members of an archive in order, members that are archives replaced by theirs.

    :raises MalformedObject: on a broken nested archive, one that holds itself, or nesting past
        :data:`_MAX_DEPTH`; the members before it have been given then.
    """
    return _leaves(archive, _MAX_DEPTH, {os.path.realpath(archive.path)})


def _leaves(archive: Archive, depth: int, seen: set[str]) -> Iterator[Member]:
    for member in archive.members:
        if member.kind() not in ("archive", "thin-archive"):
            yield member
            continue
        if depth == 0:
            raise MalformedObject(
                archive.path,
                member.header_offset,
                f"expected archives nested to a depth of {_MAX_DEPTH}, found more",
            )
        if member.path is not None:
            # Each file once: what names itself, or one file over and over, would never end.
            real = os.path.realpath(member.path)
            if real in seen:
                raise MalformedObject(
                    archive.path, member.header_offset, f"nested archive {real} is met again"
                )
            seen.add(real)
        yield from _leaves(Archive(member.where, member.data()), depth - 1, seen)


def _read_members(archive: Archive) -> list[Member]:
    data, where, end = archive.data, archive.path, len(archive.data)
    members: list[Member] = []
    long_names: bytes | None = None
    names: dict[int, str] = {}
    offset = MAGIC_SIZE
    while offset < end:
        if offset + _HEADER_SIZE > end:
            raise MalformedObject(where, offset, f"expected a member header, found the end at {end:#x}")
        header = bytes(data[offset : offset + _HEADER_SIZE])
        if header[58:60] != _FMAG:
            raise MalformedObject(
                where, offset + 58, f"expected {_FMAG!r} to end a header, found {header[58:60]!r}"
            )
        size = _decimal(where, offset + 48, header[48:58], "the member's size")
        raw = _raw_name(header)
        content = offset + _HEADER_SIZE
        is_table = raw in _TABLES or raw == _LONG_NAMES
        inside = is_table or not archive.thin
        if inside and content + size > end:
            raise MalformedObject(
                where, offset + 48, f"expected {size} bytes of content, found {end - content}"
            )
        if raw == _LONG_NAMES:
            long_names = bytes(data[content : content + size])
            names = {}
        elif not is_table:
            member = _member(archive, raw, offset, size, long_names, names)
            if members or offset != MAGIC_SIZE or member.name not in _BSD_TABLES:
                members.append(member)
        # Contents are padded to an even offset (aout/ar.h); the last pad byte may be missing.
        offset = content + (size + (size & 1) if inside else 0)
    return members


def _raw_name(header: bytes) -> bytes:
    """ar_name without its padding.

    A "/N" ends at the first blank: where GNU ar has put an offset over a name of 15 characters, it leaves a
    "/" behind in the last byte.
    """
    raw = header[:16]
    return raw.split(b" ", 1)[0] if raw.startswith(b"/") else raw.rstrip(b" ")


def _member(
    archive: Archive, raw: bytes, offset: int, size: int, long_names: bytes | None, names: dict[int, str]
) -> Member:
    where, content = archive.path, offset + _HEADER_SIZE
    if raw.startswith(b"/"):
        # GNU: "/N", N an offset in the long names; GNU thin archives add ":M", see Member._nested.
        index, colon, origin = raw[1:].partition(b":")
        at = _decimal(where, offset, index, "an offset in the long names")
        if at not in names:
            names[at] = _long_name(where, offset, at, long_names)
        nested = _decimal(where, offset, origin, "an offset in a nested archive") if colon else None
        if nested is not None and not archive.thin:
            raise MalformedObject(
                where, offset, f"expected a name, found {raw!r} (of thin archives) in a full one"
            )
        return Member(archive, names[at], offset, content, size, nested)
    if raw.startswith(b"#1/"):
        # BSD: the name is the content's first N bytes, padded with NUL (Archive.cpp, getName).
        length = _decimal(where, offset, raw[3:], "the length of a name")
        if length > size or archive.thin:
            raise MalformedObject(
                where, offset, f"expected a name of {length} bytes in the member, which has {size}"
            )
        name = bytes(archive.data[content : content + length]).rstrip(b"\0")
        return Member(archive, os.fsdecode(name), offset, content + length, size - length, None)
    # GNU ends a short name with "/"; SysV and BSD pad it with blanks only.
    short = raw.split(b"/", 1)[0]
    if not short or b"\0" in short:
        raise MalformedObject(where, offset, f"expected a name, found {raw!r}")
    return Member(archive, os.fsdecode(short), offset, content, size, None)


def _long_name(where: str, offset: int, at: int, long_names: bytes | None) -> str:
    """The entry at ``at``, which GNU ar and llvm-ar end with "/\\n".

    An entry has to begin where another ended: else a small archive could give each of its members a name as
    long as the whole table.
    """
    if long_names is None:
        raise MalformedObject(where, offset, "expected a table of long names before this member, found none")
    if at >= len(long_names) or (at and long_names[at - 1] != 0x0A):
        raise MalformedObject(
            where, offset, f"expected a long name at {at} of the table, found no entry there"
        )
    stop = long_names.find(b"\n", at)
    if stop <= at or long_names[stop - 1] != 0x2F:
        raise MalformedObject(
            where, offset, f"expected a long name ended by '/' and newline at {at} of the table"
        )
    name = long_names[at : stop - 1]
    if not name or b"\0" in name:
        raise MalformedObject(where, offset, f"expected a file name at {at} of the table of long names")
    return os.fsdecode(name)


def _decimal(where: str, offset: int, field: bytes, what: str) -> int:
    text = field.rstrip(b" ")
    if not text.isdigit() or len(text) > 15:
        raise MalformedObject(where, offset, f"expected {what} in decimal digits, found {field!r}")
    return int(text)
