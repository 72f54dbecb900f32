"""Files that small writers of ours make, of any shape: what was put in comes out."""

from __future__ import annotations

import itertools
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from klto.objects.archive import Archive
from klto.objects.elf import SHT_CREL, SHT_REL, SHT_RELA, SHT_RELR, Elf
from klto.objects.errors import MalformedObject
from klto.objects.nm import ElfSymbols
from klto.objects.relocations import RelocationReader

FILE_NAMES = st.text(st.sampled_from("abc .-_é/#"), min_size=1, max_size=30).filter(
    lambda name: not name.startswith((" ", "/", "#", ".")) and not name.endswith((" ", "/"))
)


def gnu_archive(members: list[tuple[str, bytes]]) -> bytes:
    """An archive as GNU ar and llvm-ar write it; names of 16 bytes and more, or with a slash, in a table."""
    table = b""
    out = b""
    fields = [(name.encode(), content) for name, content in members]
    long = {name for name, _ in fields if len(name) > 15 or b"/" in name or b" " in name}
    offsets = {}
    for name in sorted(long):
        offsets[name] = len(table)
        table += name + b"/\n"

    def header(name: bytes, size: int) -> bytes:
        return (
            name.ljust(16) + b"0".ljust(12) + b"0".ljust(6) * 2 + b"644".ljust(8) + f"{size:<10}`\n".encode()
        )

    if table:
        out += header(b"//", len(table)) + table + b"\n" * (len(table) % 2)
    for name, content in fields:
        short = f"/{offsets[name]}".encode() if name in long else name + b"/"
        out += header(short, len(content)) + content + b"\n" * (len(content) % 2)
    return b"!<arch>\n" + out


@given(st.lists(st.tuples(FILE_NAMES, st.binary(max_size=20)), max_size=6))
def test_any_archive(members: list[tuple[str, bytes]]) -> None:
    data = gnu_archive(members)
    archive = Archive("x.a", data)
    assert [(member.name, bytes(member.data())) for member in archive.members] == members
    for end in range(8, len(data), 7):
        # Cut off anywhere: its first members, or an error, never something else.
        try:
            found = [(member.name, bytes(member.data())) for member in Archive("x.a", data[:end]).members]
        except MalformedObject:
            continue
        assert found == members[: len(found)]


def make_elf(
    is64: bool, order: str, sections: list[tuple[int, bytes, int, int, int]], machine: int = 62
) -> bytes:
    """An ELF file of (sh_type, content, sh_link, sh_info, sh_entsize) behind the null section; no names."""
    head = 64 if is64 else 52
    contents = [content + bytes(-len(content) % 8) for _, content, *_ in sections]
    offsets = [head + 4 * (not is64) + sum(map(len, contents[:n])) for n in range(len(contents))]
    rows = [(0,) * 10] + [
        (0, kind, 0, 0, offset, len(content), link, info, 8, entsize)
        for (kind, content, link, info, entsize), offset in zip(sections, offsets, strict=True)
    ]
    shoff = head + 4 * (not is64) + sum(map(len, contents))
    sizes = (head, 0, 0, 64 if is64 else 40, len(rows), 0)
    ident = b"\x7fELF" + bytes([2 if is64 else 1, 1 if order == "<" else 2, 1]) + bytes(9)
    word = "Q" if is64 else "I"
    out = ident + struct.pack(f"{order}2HI3{word}I6H", 1, machine, 1, 0, 0, shoff, 0, *sizes)
    layout = order + ("2I4Q2I2Q" if is64 else "10I")
    return (
        out.ljust(head + 4 * (not is64), b"\0")
        + b"".join(contents)
        + b"".join(struct.pack(layout, *r) for r in rows)
    )


ORDERS = st.sampled_from("<>")
SYMBOLS = st.lists(
    st.tuples(
        st.text("abcXYZ_", min_size=0, max_size=9),
        st.integers(0, 255),
        st.integers(0, 255),
        st.integers(0, 3),
    ),
    max_size=9,
)


@given(st.booleans(), ORDERS, SYMBOLS)
def test_any_symbols(is64: bool, order: str, symbols: list[tuple[str, int, int, int]]) -> None:
    names = b"\0" + b"".join(name.encode() + b"\0" for name, *_ in symbols)
    places = [0, *itertools.accumulate(len(name) + 1 for name, *_ in symbols)]
    rows = [("", 0, 0, 0), *symbols]
    starts = [0, *(1 + place for place in places[:-1])]
    if is64:
        layout = order + "I2BH2Q"
        table = b"".join(
            struct.pack(layout, s, i, o, x, s + 7, 9) for s, (_, i, o, x) in zip(starts, rows, strict=True)
        )
    else:
        layout = order + "3I2BH"
        table = b"".join(
            struct.pack(layout, s, s + 7, 9, i, o, x) for s, (_, i, o, x) in zip(starts, rows, strict=True)
        )
    data = make_elf(
        is64, order, [(2, table, 2, 1, 24 if is64 else 16), (3, names, 0, 0, 0), (1, b"", 0, 0, 0)]
    )
    assert Elf(data, "x").section_names == [""] * 4
    (found,) = Elf(data, "x").symbol_tables
    assert found.names == [name for name, *_ in rows]
    assert found.table["st_info"].tolist() == [info for _, info, *_ in rows]
    assert found.table["st_other"].tolist() == [other for _, _, other, _ in rows]
    assert found.section.tolist() == [section for *_, section in rows]
    assert found.table["st_value"].tolist() == [start + 7 for start in starts]
    assert set(found.table["st_size"].tolist()) == {9}
    by_hand = [(name, value) for _, name, value in ElfSymbols(data, "x").matching(b"a")]
    assert by_hand == [(name, s + 7) for s, (name, *_) in zip(starts, rows, strict=True) if "a" in name]


OFFSETS = st.integers(0, (1 << 32) - 1)
RELOCATIONS = st.lists(
    st.tuples(
        OFFSETS, st.integers(0, 255), st.integers(0, (1 << 24) - 1), st.integers(-(1 << 31), (1 << 31) - 1)
    ),
    max_size=12,
)


@given(st.booleans(), ORDERS, st.booleans(), st.lists(RELOCATIONS, min_size=1, max_size=3), st.booleans())
def test_any_relocations(
    is64: bool, order: str, rela: bool, tables: list[list[tuple[int, int, int, int]]], many: bool
) -> None:
    addend_code = ("q" if is64 else "i") if rela else ""
    layout = f"{order}{'2Q' if is64 else '2I'}{addend_code}"
    shift = 32 if is64 else 8

    def packed(rows: list[tuple[int, int, int, int]]) -> bytes:
        return b"".join(struct.pack(layout, o, s << shift | k, *([a] if rela else [])) for o, k, s, a in rows)

    # Past some number of tables they are gathered in another way.
    tables = tables * 30 if many else tables
    kind = SHT_RELA if rela else SHT_REL
    entsize = struct.calcsize(layout)
    sections = [(kind, packed(rows), 0, number, entsize) for number, rows in enumerate(tables)]
    reader = RelocationReader(Elf(make_elf(is64, order, sections), "x"))
    wanted = [[(o, k, s, a if rela else 0) for o, k, s, a in rows] for rows in tables]
    assert [reader.of(index).tolist() for index in reader.indexes] == wanted
    assert reader.all.entries.tolist() == [row for rows in wanted for row in rows]
    assert reader.all.section.tolist() == [number for number, rows in enumerate(tables) for _ in rows]
    assert reader.all.table.tolist() == [number + 1 for number, rows in enumerate(tables) for _ in rows]
    assert len(reader.all) == sum(map(len, tables))


def relr(addresses: list[int], size: int) -> list[int]:
    """SHT_RELR's words for ascending, aligned addresses: gABI chapter 5, "Relative Relocation Table"."""
    words, bits, at = [], size * 8 - 1, 0
    while at < len(addresses):
        words.append(addresses[at])
        base = addresses[at] + size
        at += 1
        while True:
            word = 0
            while at < len(addresses) and addresses[at] < base + bits * size:
                word |= 1 << ((addresses[at] - base) // size)
                at += 1
            if not word:
                break
            words.append(word << 1 | 1)
            base += bits * size
    return words


@given(st.booleans(), ORDERS, st.sets(st.integers(1, 900), max_size=90), st.integers(0, 1 << 20))
def test_any_relr(is64: bool, order: str, places: set[int], start: int) -> None:
    size = 8 if is64 else 4
    addresses = [start * size + place * size for place in sorted(places)]
    content = b"".join(struct.pack(order + ("Q" if is64 else "I"), word) for word in relr(addresses, size))
    # The places that are relocated are in the file too.
    data = make_elf(
        is64, order, [(SHT_RELR, content, 0, 0, size), (1, bytes(size * len(addresses)), 0, 0, 0)]
    )
    reader = RelocationReader(Elf(data, "x"))
    assert reader.relr(1).tolist() == addresses


def test_relr_that_is_none() -> None:
    def of(words: list[int], size: int = 8) -> list[int]:
        content = struct.pack(f"<{len(words)}Q", *words)
        return (
            RelocationReader(Elf(make_elf(True, "<", [(SHT_RELR, content, 0, 0, size)]), "x"))
            .relr(1)
            .tolist()
        )

    assert of([]) == []
    with pytest.raises(MalformedObject, match="expected an address first"):
        of([3])
    with pytest.raises(MalformedObject, match="expected fewer relocations"):
        of([8, *[(1 << 64) - 1] * 60])
    with pytest.raises(MalformedObject, match="expected entries of 8 bytes"):
        of([8], size=4)


def leb(value: int, signed: bool) -> bytes:
    """A LEB128 integer (DWARF 5, 7.6)."""
    out = bytearray()
    while True:
        byte = value & 0x7F
        value >>= 7
        if value == (-1 if signed and byte & 0x40 else 0) and (signed or value == 0):
            return bytes([*out, byte])
        out.append(byte | 0x80)


def crel(rows: list[tuple[int, int, int, int]], addends: bool, shift: int) -> bytes:
    """SHT_CREL's bytes, as MC's ELFObjectWriter encodes them."""
    out = leb(len(rows) << 3 | addends << 2 | shift, False)
    flag_bits = 3 if addends else 2
    last = (0, 0, 0, 0)
    for row in rows:
        offset, kind, symbol, addend = row
        delta = ((offset - last[0]) >> shift) & ((1 << 64) - 1)
        flags = (symbol != last[2]) | (kind != last[1]) << 1 | (addends and addend != last[3]) << 2
        first = (delta << flag_bits & 0x7F) | flags
        rest = delta >> (7 - flag_bits)
        out += bytes([first | 0x80]) + leb(rest, False) if rest else bytes([first])
        for new, old, flag in ((symbol, last[2], 1), (kind, last[1], 2), (addend, last[3], 4)):
            if flags & flag:
                out += leb(new - old, True)
        last = row
    return out


@given(st.booleans(), RELOCATIONS, st.booleans(), st.integers(0, 3))
def test_any_crel(is64: bool, rows: list[tuple[int, int, int, int]], addends: bool, shift: int) -> None:
    rows = sorted((o >> shift << shift, k, s, a if addends else 0) for o, k, s, a in rows)
    data = make_elf(is64, "<", [(SHT_CREL, crel(rows, addends, shift), 0, 3, 1), (1, bytes(999), 0, 0, 0)])
    reader = RelocationReader(Elf(data, "x"))
    assert reader.of(1).tolist() == rows
    assert reader.all.entries.tolist() == rows


def test_crel_that_is_none() -> None:
    def of(content: bytes) -> object:
        return RelocationReader(Elf(make_elf(True, "<", [(SHT_CREL, content, 0, 0, 1)]), "x")).all

    with pytest.raises(MalformedObject, match="expected fewer relocations"):
        of(leb(1 << 30, False))
    with pytest.raises(MalformedObject, match="at offset 0x42: expected more in section 1"):
        of(leb(2 << 3, False) + b"\0")
    with pytest.raises(MalformedObject, match="integers of 64 bits"):
        of(b"\xff" * 30)


@given(st.binary(max_size=200), st.booleans(), ORDERS)
def test_any_bytes_behind_a_header(content: bytes, is64: bool, order: str) -> None:
    """Whatever is in the tables: an error, or tables within the file."""
    data = make_elf(is64, order, [(2, content, 2, 0, 0), (3, content, 0, 0, 0), (SHT_RELA, content, 0, 0, 0)])
    elf = Elf(data, "x")
    for read in (
        lambda: [table.names for table in elf.symbol_tables],
        lambda: [table.section for table in elf.symbol_tables],
        lambda: RelocationReader(elf).all,
        lambda: list(ElfSymbols(data, "x").matching(b"")),
    ):
        problem = None
        try:
            assert read() is not None
        except MalformedObject as error:
            problem = error
        assert problem is None or problem.message.startswith("x: ")


@pytest.mark.parametrize("is64", [False, True])
def test_a_file_of_a_header_alone(is64: bool) -> None:
    elf = Elf(b"\x7fELF" + bytes([2 if is64 else 1, 1, 1]) + bytes(57 if is64 else 45), "x")
    assert (len(elf.sections), len(elf.segments), elf.section_names, elf.symbol_tables) == (0, 0, [], [])
    assert (elf.symtab, elf.producers, list(elf.notes()), len(RelocationReader(elf).all)) == (None, [], [], 0)
