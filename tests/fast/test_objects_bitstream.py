"""The bitstream reader against a small writer: what is written comes out, whatever way it was packed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from klto.objects.bitcode import Bitcode
from klto.objects.bits import characters
from klto.objects.bitstream import Bitstream, Block, Record
from klto.objects.errors import MalformedObject

CHAR6 = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._"


class Writer:
    """BitstreamWriter of llvm/include/llvm/Bitstream/BitstreamWriter.h, in a few lines."""

    def __init__(self) -> None:
        self.value = 0
        self.size = 0

    def fixed(self, value: int, width: int) -> None:
        self.value |= value << self.size
        self.size += width

    def vbr(self, value: int, width: int) -> None:
        high = 1 << (width - 1)
        while value >= high:
            self.fixed(value & (high - 1) | high, width)
            value >>= width - 1
        self.fixed(value, width)

    def align(self) -> None:
        self.size = (self.size + 31) & ~31

    def record(self, width: int, code: int, ops: list[int]) -> None:
        self.fixed(3, width)
        for value in (code, len(ops), *ops):
            self.vbr(value, 6)

    def define(self, width: int, ops: list[tuple[str, int]]) -> None:
        self.fixed(2, width)
        self.vbr(len(ops), 5)
        for kind, value in ops:
            if kind == "literal":
                self.fixed(1, 1)
                self.vbr(value, 8)
                continue
            self.fixed(0, 1)
            self.fixed(["", "fixed", "vbr", "array", "char6", "blob"].index(kind), 3)
            if kind in ("fixed", "vbr"):
                self.vbr(value, 5)

    def operand(self, kind: str, argument: int, value: int) -> None:
        if kind == "fixed":
            self.fixed(value, argument)
        elif kind == "vbr":
            self.vbr(value, argument)
        elif kind == "char6":
            self.fixed(CHAR6.index(value), 6)

    def data(self) -> bytes:
        self.align()
        return self.value.to_bytes(self.size // 8, "little")


def body(writer: Writer, width: int = 3) -> tuple[Bitstream, Block]:
    """A finished block whose content is what was written."""
    writer.fixed(0, width)
    data = writer.data()
    return Bitstream(data, "x"), Block(8, width, 0, 8 * len(data))


def records(stream: Bitstream, block: Block, codes: range = range(1 << 32)) -> list[Record]:
    return [item for item in stream.items(block, [], codes, {}) if isinstance(item, Record)]


VALUES = st.one_of(st.integers(0, 127), st.integers(0, (1 << 32) - 1))


@given(
    st.lists(st.tuples(st.integers(0, 1 << 20), st.lists(VALUES, max_size=70)), max_size=6), st.integers(2, 9)
)
def test_plain_records(written: list[tuple[int, list[int]]], width: int) -> None:
    writer = Writer()
    for code, ops in written:
        writer.record(width, code, ops)
    stream, block = body(writer, width)
    found = [(record.code, record.values().tolist()) for record in stream_items(stream, block)]
    assert found == written
    assert [(record.code, record.ops(3)) for record in stream_items(stream, block)] == [
        (c, o[:3]) for c, o in written
    ]
    # Nobody asks for them: passed over without a trace, and to the same end.
    assert records(stream, block, range(0)) == []


def stream_items(stream: Bitstream, block: Block) -> list[Record]:
    return records(stream, block)


SCALARS = st.one_of(
    st.tuples(st.just("fixed"), st.integers(1, 32)),
    st.tuples(st.just("vbr"), st.integers(2, 32)),
    st.just(("char6", 0)),
)


@st.composite
def abbreviated(draw: st.DrawFn) -> tuple[list[tuple[str, int]], list[int], list[int], bytes | None]:
    """An abbreviation, the scalars and array elements of a record by it, and its blob."""
    scalars = draw(
        st.lists(st.one_of(SCALARS, st.tuples(st.just("literal"), st.integers(0, 1 << 16))), max_size=4)
    )
    values = [draw(value_of(*scalar)) for scalar in scalars]
    tail = draw(st.sampled_from(["", "array", "blob"]))
    if tail == "array":
        element = draw(SCALARS)
        return (
            [*scalars, ("array", 0), element],
            values,
            draw(st.lists(value_of(*element), max_size=40)),
            None,
        )
    if tail == "blob":
        return [*scalars, ("blob", 0)], values, [], draw(st.binary(max_size=40))
    return scalars, values, [], None


def value_of(kind: str, argument: int) -> st.SearchStrategy[int]:
    if kind == "literal":
        return st.just(argument)
    if kind == "char6":
        return st.sampled_from(list(CHAR6))
    return st.integers(0, (1 << (argument if kind == "fixed" else 32)) - 1)


@given(st.lists(abbreviated(), min_size=1, max_size=4))
def test_abbreviated_records(
    written: list[tuple[list[tuple[str, int]], list[int], list[int], bytes | None]],
) -> None:
    writer = Writer()
    for number, (abbrev, values, elements, blob) in enumerate(written):
        writer.define(5, [("literal", number), *abbrev])
        writer.fixed(4 + number, 5)
        for (kind, argument), value in zip(abbrev, values, strict=False):
            writer.operand(kind, argument, value)
        if blob is not None:
            writer.vbr(len(blob), 6)
            writer.align()
            for byte in blob:
                writer.fixed(byte, 8)
            writer.align()
        elif len(abbrev) > 1 and abbrev[-2][0] == "array":
            writer.vbr(len(elements), 6)
            for value in elements:
                writer.operand(*abbrev[-1], value)
    stream, block = body(writer, 5)
    found = records(stream, block)
    assert [record.code for record in found] == list(range(len(written)))
    for record, (_, values, elements, blob) in zip(found, written, strict=True):
        assert record.values().tolist() == values + elements
        assert record.ops(2) == (values + elements)[:2]
        assert record.text() == bytes(value & 0xFF for value in values + elements)
        if blob is None:
            with pytest.raises(MalformedObject, match="expected a blob"):
                record.blob()
        else:
            begin, size = record.blob()
            assert stream.data[begin : begin + size] == blob


def test_blocks_are_skipped_by_their_length_and_blockinfo_is_kept() -> None:
    inner = Writer()
    inner.record(4, 7, [1, 2, 3])
    inner.fixed(0, 4)
    inner.align()
    info = Writer()
    info.record(2, 1, [11])
    info.define(2, [("literal", 9), ("fixed", 8)])
    info.fixed(0, 2)
    info.align()
    writer = Writer()
    for block_id, width, content in ((12, 4, inner), (0, 2, info)):
        writer.fixed(1, 3)
        writer.vbr(block_id, 8)
        writer.vbr(width, 4)
        writer.align()
        writer.fixed(content.size // 32, 32)
        writer.value |= content.value << writer.size
        writer.size += content.size
    writer.record(3, 5, [])
    stream, block = body(writer)
    abbrevs: dict[int, list[tuple[tuple[int, int], ...]]] = {}
    first, last = stream.items(block, [], range(100), abbrevs)
    assert isinstance(first, Block)
    assert isinstance(last, Record)
    assert (first.block_id, first.width, first.end - first.begin) == (12, 4, inner.size)
    assert last.code == 5
    assert [record.ops(9) for record in records(stream, first)] == [[1, 2, 3]]
    assert list(abbrevs) == [11]
    assert len(abbrevs[11]) == 1


def test_scalars_to_the_last_bit() -> None:
    stream = Bitstream(bytes(range(200, 216)), "x")
    whole = int.from_bytes(stream.data, "little")
    for at in range(128):
        for width in (0, 1, 7, 32, 64):
            if at + width <= 128:
                assert stream.fixed(at, width) == whole >> at & ((1 << width) - 1)
            else:
                with pytest.raises(MalformedObject, match=f"expected {width} bits, found the end"):
                    stream.fixed(at, width)
    writer = Writer()
    writer.vbr((1 << 64) - 1, 6)
    writer.vbr(5, 3)
    stream = Bitstream(writer.data(), "x")
    assert stream.vbr(0, 6) == ((1 << 64) - 1, 13 * 6)
    assert stream.vbr(13 * 6, 3) == (5, 13 * 6 + 6)


def test_a_field_of_64_bits() -> None:
    writer = Writer()
    writer.define(3, [("literal", 1), ("fixed", 64), ("vbr", 32)])
    writer.fixed(4, 3)
    writer.fixed((1 << 64) - 1, 64)
    writer.vbr(7, 32)
    stream, block = body(writer)
    (record,) = records(stream, block)
    assert record.ops(2) == [(1 << 64) - 1, 7]
    with pytest.raises(MalformedObject, match="a value of at most 32 bits"):
        record.values()


def enclosed(writer: Writer, width: int, block_id: int, inner: Writer, inner_width: int) -> None:
    """A block with what another writer wrote."""
    inner.fixed(0, inner_width)
    inner.align()
    writer.fixed(1, width)
    writer.vbr(block_id, 8)
    writer.vbr(inner_width, 4)
    writer.align()
    writer.fixed(inner.size // 32, 32)
    writer.value |= inner.value << writer.size
    writer.size += inner.size


def bitcode_with(constants: list[tuple[int, list[int]]], before: int = 1) -> bytes:
    """A module whose one function has records among its constants: MODULE 8, FUNCTION 12, CONSTANTS 11."""
    records, function, module, stream = Writer(), Writer(), Writer(), Writer()
    for code, ops in constants:
        records.record(4, code, ops)
    function.record(4, before, [1])
    enclosed(function, 4, 11, records, 4)
    function.record(4, 10, [])
    module.record(3, 1, [2])
    enclosed(module, 3, 12, function, 4)
    stream.fixed(int.from_bytes(b"BC\xc0\xde", "little"), 32)
    enclosed(stream, 2, 8, module, 3)
    return stream.data()


def text_of(text: bytes) -> list[int]:
    return [len(text), *text]


def test_inline_assembly_of_every_age() -> None:
    """CST_CODE_INLINEASM_OLD, _OLD2 and _OLD3 of LLVM 1 to 13 have no function type in front."""
    old = [(code, [1, *text_of(b"old"), *text_of(b"r,%d" % code)]) for code in (18, 23, 28)]
    new = (30, [700, 1, *text_of(b"call f\n\tnop"), *text_of(b"")])
    bitcode = Bitcode(bitcode_with([(1, [5]), *old, (4, [9]), new]), "x")
    (module,) = bitcode.modules
    found = [(inline.text, inline.constraints) for inline in module.inline_asm()]
    assert found == [(b"old", b"r,18"), (b"old", b"r,23"), (b"old", b"r,28"), (b"call f\n\tnop", b"")]
    assert bitcode.names_in_inline_asm() == {"f"}
    assert (module.producer, module.epoch) == (None, None)
    properties = module.properties
    assert (properties.version, properties.target_triple, properties.asm, properties.hash) == (
        2,
        "",
        b"",
        None,
    )


@pytest.mark.parametrize(
    "ops", [[], [1], [1, 0], [1, 0, 9, 65], [1, 0, 1, 65], [1, 0, 1, 65, 1], [1, 0, 1, 65, 2, 66]]
)
def test_inline_assembly_that_is_cut_short(ops: list[int]) -> None:
    (module,) = Bitcode(bitcode_with([(30, ops)]), "x").modules
    with pytest.raises(MalformedObject, match="expected two strings in inline assembly"):
        list(module.inline_asm())


def test_constants_come_before_instructions() -> None:
    """Behind an instruction nothing is looked at: LLVM writes no constants there."""
    for before, count in ((1, 1), (2, 0)):
        (module,) = Bitcode(bitcode_with([(30, [7, 0, *text_of(b"a"), *text_of(b"")])], before), "x").modules
        assert len(list(module.inline_asm())) == count


def test_characters_are_cut_to_eight_bits() -> None:
    writer = Writer()
    writer.record(3, 1, [65, 256 + 66, 0xFFFFFF43])
    stream, block = body(writer)
    (record,) = records(stream, block)
    assert record.text() == characters(record.values()) == b"ABC"


def broken(write: str) -> Writer:
    writer = Writer()
    if write == "past the end":
        writer.fixed(3, 3)
        for value in (1, 1 << 20):
            writer.vbr(value, 6)
    elif write == "endless integer":
        writer.fixed(3, 3)
        for _ in range(40):
            writer.fixed(63, 6)
    elif write == "33 bits":
        writer.record(3, 1, [1, 2, 1 << 32])
    elif write == "no such abbreviation":
        writer.fixed(7, 3)
    elif write == "array of arrays":
        writer.define(3, [("literal", 1), ("array", 0), ("array", 0)])
    elif write == "blob first":
        writer.define(3, [("blob", 0), ("fixed", 3)])
    elif write == "array of nothing":
        writer.define(3, [("literal", 1), ("array", 0), ("fixed", 0)])
    elif write == "too wide":
        writer.define(3, [("fixed", 65)])
    elif write == "65 operands":
        writer.define(3, [("char6", 0)] * 65)
    elif write == "empty abbreviation":
        writer.define(3, [])
    elif write == "long array":
        writer.define(3, [("literal", 1), ("array", 0), ("fixed", 8)])
        writer.fixed(4, 3)
        writer.vbr(1 << 30, 6)
    elif write == "long blob":
        writer.define(3, [("literal", 1), ("blob", 0)])
        writer.fixed(4, 3)
        writer.vbr(1 << 30, 6)
    elif write == "block past its parent":
        writer.fixed(1, 3)
        writer.vbr(12, 8)
        writer.vbr(3, 4)
        writer.align()
        writer.fixed(1 << 20, 32)
    return writer


@pytest.mark.parametrize(
    ("write", "problem"),
    [
        ("past the end", "more operands of at most 64 bits, found the end"),
        ("endless integer", "an integer of at most 64 bits"),
        ("33 bits", "values of at most 32 bits"),
        ("no such abbreviation", "one of 0 abbreviations, found number 7"),
        ("array of arrays", "an array and its scalar element"),
        ("blob first", "a blob to end an abbreviation"),
        ("array of nothing", "an array and its scalar element"),
        ("too wide", "a field of at most 64 bits, found 65"),
        ("65 operands", "at most 64 operands, found 65"),
        ("empty abbreviation", "found an empty one"),
        ("long array", "an array of 1073741824 elements"),
        ("long blob", "a blob of 1073741824 bytes"),
        ("block past its parent", "a block of 1048576 words"),
    ],
)
def test_what_is_broken_is_said_and_ends(write: str, problem: str) -> None:
    stream, block = body(broken(write))
    with pytest.raises(MalformedObject, match=problem):
        [record.values() for record in records(stream, block)]


def test_a_block_ends_where_it_says() -> None:
    writer = Writer()
    writer.record(3, 1, [1])
    stream, block = body(writer)
    for end in (block.end - 32, block.end + 32):
        longer = Bitstream(bytes(stream.data) + bytes(4), "x", base=100)
        with pytest.raises(MalformedObject, match=r"x: at offset 0x6.: expected"):
            records(longer, Block(8, 3, 0, end))
