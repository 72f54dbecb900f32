"""The LLVM bitstream container: blocks, abbreviations, records.

Format: "LLVM Bitcode File Format" in LLVM's documentation, and llvm/include/llvm/Bitstream/BitCodes.h and
BitstreamReader.h, whose names are used here. Blocks are skipped by their length words, and records that nobody
asked for are passed over without being built.
"""

from __future__ import annotations

from array import array

from klto.objects.bits import Bits, characters

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Container, Iterator

# BitCodes.h: FixedAbbrevIDs, StandardBlockIDs, BlockInfoCodes.
END_BLOCK = 0
ENTER_SUBBLOCK = 1
DEFINE_ABBREV = 2
UNABBREV_RECORD = 3
FIRST_APPLICATION_ABBREV = 4
BLOCKINFO_BLOCK_ID = 0
BLOCKINFO_CODE_SETBID = 1

# BitCodes.h: BitCodeAbbrevOp::Encoding; literals get a number of their own.
_LITERAL, _FIXED, _VBR, _ARRAY, _CHAR6, _BLOB = range(6)
#: SimpleBitstreamCursor::MaxChunkSize of a 64-bit reader, and 32 for VBR (BitstreamReader.h).
_MAX_FIXED, _MAX_VBR = 64, 32
#: BitCodeAbbrevOp::DecodeChar6 in BitCodes.h.
_CHAR6_TEXT = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._"
#: LLVM's writer defines fewer than 50 abbreviations a block, of fewer than 50 operands; more cost memory.
_MAX_ABBREV_OPS, _MAX_ABBREVS = 64, 1024
Abbrev = tuple[tuple[int, int], ...]


class Block:
    """A block in the stream: ``block_id``, abbreviation width, first bit of its body, bit after its body."""

    __slots__ = ("begin", "block_id", "end", "width")

    def __init__(self, block_id: int, width: int, begin: int, end: int) -> None:
        self.block_id = block_id
        self.width = width
        self.begin = begin
        self.end = end


class Record:
    """A record: its ``code``, and readers for its operands; valid until the next item is asked for."""

    __slots__ = ("_abbrev", "_count", "_stream", "at", "code")

    def __init__(self, stream: Bitstream, code: int, at: int, count: int, abbrev: Abbrev | None) -> None:
        self._stream = stream
        self.code = code
        self.at = at
        self._count = count
        self._abbrev = abbrev

    @property
    def unabbreviated(self) -> bool:
        """Whether its operands are plain VBR6, from bit ``at`` on."""
        return self._abbrev is None

    def ops(self, most: int) -> list[int]:
        """The first operands, up to ``most``; a blob is no operand."""
        if self._abbrev is None:
            return list(self._stream.vbr6_values(self.at, min(self._count, most)))
        ops: list[int] = []
        self._stream.abbreviated(self.at, self._abbrev, ops, most)
        return ops

    def values(self) -> array[int]:
        """All operands as 32-bit values: for strings, one character each, and what is mixed with them.

        :raises MalformedObject: when one has more than 32 bits.
        """
        if self._abbrev is None:
            return self._stream.vbr6_values(self.at, self._count)
        ops = array("I")
        self._stream.abbreviated(self.at, self._abbrev, ops, 1 << 32)
        return ops

    def text(self) -> bytes:
        """All operands as characters."""
        return characters(self.values())

    def blob(self) -> tuple[int, int]:
        """Where the record's blob lies: first byte and number of bytes, counted from the bitcode's magic.

        :raises MalformedObject: when the record has no blob.
        """
        if self._abbrev is not None:
            found = self._stream.abbreviated(self.at, self._abbrev, [], 0)[1]
            if found is not None:
                return found
        raise self._stream.malformed(self.at, f"expected a blob in record {self.code}, found none")


class Bitstream(Bits):
    """The blocks and records of one bitcode file."""

    __slots__ = ()

    def block(self, at: int) -> Block:
        """The block whose ENTER_SUBBLOCK was just read: vbr8 ID, vbr4 width, align 32, length in words."""
        block_id, at = self.vbr(at, 8)
        width, at = self.vbr(at, 4)
        at = (at + 31) & ~31
        words = self.fixed(at, 32)
        begin = at + 32
        if not 2 <= width <= 32:
            raise self.malformed(at, f"expected an abbreviation width of 2 to 32 bits, found {width}")
        if begin + 32 * words > self.limit:
            raise self.malformed(at, f"expected a block of {words} words, found {(self.limit - begin) // 32}")
        return Block(block_id, width, begin, begin + 32 * words)

    def items(
        self, block: Block, abbrevs: list[Abbrev], codes: Container[int], info: dict[int, list[Abbrev]] | None
    ) -> Iterator[Block | Record]:
        """What a block holds, in order: its blocks, not entered, and the records whose code is in ``codes``.

        :param abbrevs: those that a BLOCKINFO gave this block's kind; the block's own are added to a copy.
        :param info: where the abbreviations of a BLOCKINFO block met on the way are kept, by block ID; None
            passes over it, for those who enter no other block.
        :raises MalformedObject: when the block is not what it says.
        """
        abbrevs = list(abbrevs)
        at, end, width = block.begin, block.end, block.width
        while at < end:
            entry = self.fixed(at, width)
            at += width
            if entry == END_BLOCK:
                if (at + 31) & ~31 != end:
                    raise self.malformed(
                        at, "expected a block to end where its length says, found END_BLOCK before"
                    )
                return
            if entry == ENTER_SUBBLOCK:
                inner = self.block(at)
                if inner.end > end:
                    raise self.malformed(
                        at, "expected a block within its parent, found one that runs past it"
                    )
                if inner.block_id != BLOCKINFO_BLOCK_ID:
                    yield inner
                elif info is not None:
                    self._read_blockinfo(inner, info)
                at = inner.end
            elif entry == DEFINE_ABBREV:
                abbrev, at = self._define_abbrev(at)
                abbrevs.append(abbrev)
                self._check_number(at, len(abbrevs))
            else:
                record, at = self._record(at, entry, abbrevs, codes)
                if at > end:
                    raise self.malformed(
                        at, "expected a record within its block, found one that runs past it"
                    )
                if record is not None:
                    yield record
        raise self.malformed(end, "expected END_BLOCK, found the end of the block")

    def _record(
        self, at: int, entry: int, abbrevs: list[Abbrev], codes: Container[int]
    ) -> tuple[Record | None, int]:
        if entry == UNABBREV_RECORD:
            first = at >> 3
            word = int.from_bytes(self.data[first : first + 4], "little") >> (at & 7)
            if not word & 0x820 and at + 12 <= self.limit:
                code, count = word & 31, word >> 6 & 31
                at += 12
            else:
                code, at = self.vbr(at, 6)
                count, at = self.vbr(at, 6)
            after = self.pass_vbr6(at, count)
            return (Record(self, code, at, count, None) if code in codes else None), after
        index = entry - FIRST_APPLICATION_ABBREV
        if index >= len(abbrevs):
            raise self.malformed(at, f"expected one of {len(abbrevs)} abbreviations, found number {entry}")
        abbrev = abbrevs[index]
        kind, value = abbrev[0]
        if kind == _LITERAL:
            code = value
        elif kind == _FIXED:
            code = self.fixed(at, value)
            at += value
        elif kind == _VBR:
            code, at = self.vbr(at, value)
        else:
            # BitstreamReader.cpp, readRecord: an array or blob cannot be a code, and no writer uses char6.
            raise self.malformed(at, "expected a record's code, found an array, blob or char6")
        after, _ = self.abbreviated(at, abbrev[1:], [], 0)
        return (Record(self, code, at, 0, abbrev[1:]) if code in codes else None), after

    def _read_blockinfo(self, block: Block, info: dict[int, list[Abbrev]]) -> None:
        """BLOCKINFO: SETBID says whose abbreviations the DEFINE_ABBREVs after it are."""
        at, end, target = block.begin, block.end, None
        while at < end:
            entry = self.fixed(at, block.width)
            at += block.width
            if entry == END_BLOCK:
                return
            if entry == DEFINE_ABBREV:
                abbrev, at = self._define_abbrev(at)
                if target is None:
                    raise self.malformed(
                        at, "expected SETBID before an abbreviation of BLOCKINFO, found none"
                    )
                info.setdefault(target, []).append(abbrev)
                self._check_number(at, sum(map(len, info.values())))
            elif entry == UNABBREV_RECORD:
                record, at = self._record(at, entry, [], (BLOCKINFO_CODE_SETBID,))
                if record is not None:
                    ops = record.ops(1)
                    if not ops:
                        raise self.malformed(at, "expected a block ID in SETBID, found nothing")
                    target = ops[0]
            else:
                raise self.malformed(at, f"expected a record of BLOCKINFO, found abbreviation {entry}")
        raise self.malformed(end, "expected the end of BLOCKINFO, found the end of its words")

    def _define_abbrev(self, at: int) -> tuple[Abbrev, int]:
        count, at = self.vbr(at, 5)
        if count > _MAX_ABBREV_OPS:
            raise self.malformed(
                at, f"expected an abbreviation of at most {_MAX_ABBREV_OPS} operands, found {count}"
            )
        ops: list[tuple[int, int]] = []
        for _ in range(count):
            if self.fixed(at, 1):
                value, at = self.vbr(at + 1, 8)
                ops.append((_LITERAL, value))
                continue
            encoding = self.fixed(at + 1, 3)
            at += 4
            value = 0
            if encoding in (_FIXED, _VBR):
                value, at = self.vbr(at, 5)
                if value > (_MAX_FIXED if encoding == _FIXED else _MAX_VBR):
                    raise self.malformed(at, f"expected a field of at most 64 bits, found {value}")
                if value == 0 or (encoding == _VBR and value == 1):
                    # Width 0 stands for a literal 0 (BitstreamReader.cpp); a 1-bit VBR could not end.
                    if value:
                        raise self.malformed(at, "expected a VBR of 2 bits or more, found 1")
                    encoding = _LITERAL
            elif encoding not in (_ARRAY, _CHAR6, _BLOB):
                raise self.malformed(at, f"expected an encoding of 1 to 5, found {encoding}")
            ops.append((encoding, value))
        self._check_abbrev(at, ops)
        return tuple(ops), at

    def _check_number(self, at: int, abbrevs: int) -> None:
        if abbrevs > _MAX_ABBREVS:
            raise self.malformed(at, f"expected at most {_MAX_ABBREVS} abbreviations, found more")

    def _check_abbrev(self, at: int, ops: list[tuple[int, int]]) -> None:
        """An array comes last but one, before its element; a blob comes last ("DEFINE_ABBREV Encoding")."""
        kinds = [kind for kind, _ in ops]
        if not kinds:
            raise self.malformed(at, "expected an abbreviation with operands, found an empty one")
        if _ARRAY in kinds:
            if kinds.index(_ARRAY) != len(kinds) - 2 or kinds[-1] in (_LITERAL, _ARRAY, _BLOB):
                raise self.malformed(at, "expected an array and its scalar element to end an abbreviation")
        elif _BLOB in kinds[:-1]:
            raise self.malformed(at, "expected a blob to end an abbreviation, found more after it")

    # Operands.

    def abbreviated(
        self, at: int, abbrev: Abbrev, ops: list[int] | array[int], most: int
    ) -> tuple[int, tuple[int, int] | None]:
        """Read operands as ``abbrev`` has them: append the first ``most`` to ``ops``, pass over the others.

        :returns: the position after them, and the blob's first byte and size, if there is one.
        """
        for index, (kind, value) in enumerate(abbrev):
            field = value
            if kind == _FIXED:
                field = self.fixed(at, value)
                at += value
            elif kind == _VBR:
                field, at = self.vbr(at, value)
            elif kind == _CHAR6:
                field = _CHAR6_TEXT[self.fixed(at, 6)]
                at += 6
            elif kind == _ARRAY:
                return self._array(at, abbrev[index + 1], ops, most), None
            elif kind == _BLOB:
                size, at = self.vbr(at, 6)
                at = (at + 31) & ~31
                if at + 8 * size > self.limit:
                    raise self.malformed(at, f"expected a blob of {size} bytes, found the end")
                return (at + 8 * size + 31) & ~31, (at >> 3, size)
            if len(ops) < most:
                self._append(at, ops, field)
        return at, None

    def _append(self, at: int, ops: list[int] | array[int], value: int) -> None:
        try:
            ops.append(value)
        except OverflowError:
            raise self.malformed(at, f"expected a value of at most 32 bits, found {value:#x}") from None

    def _array(self, at: int, element: tuple[int, int], ops: list[int] | array[int], most: int) -> int:
        kind, width = element
        count, at = self.vbr(at, 6)
        width = 6 if kind == _CHAR6 else width
        if count * width > self.limit - at:
            raise self.malformed(at, f"expected an array of {count} elements, found the end")
        wanted = min(count, max(0, most - len(ops)))
        if kind == _VBR:
            for index in range(count):
                value, at = self.vbr(at, width)
                if index < wanted:
                    self._append(at, ops, value)
            return at
        for index in range(wanted):
            value = self.fixed(at + index * width, width)
            self._append(at, ops, _CHAR6_TEXT[value] if kind == _CHAR6 else value)
        return at + count * width
