"""The index shard of one module (``*.thinlto.bc``), rewritten so that it names modules in its own terms.

A thin link writes for each module a summary index with the paths of the modules that it imports from
(llvm/lib/Bitcode/Writer/BitcodeWriter.cpp, IndexBitcodeWriter::writeModStrings). Paths are of this machine, and for
an archive's members they hold offsets that change whenever a member is added. Nothing in generated code depends on
them, except that LLVM imports from modules in the order of their names (llvm/lib/Transforms/IPO/FunctionImport.cpp,
ImportMapTy / ModuleNameOrderedList). So each module is named by its rank in that order: ``0000``, ``0001``.

The shard then is the same bytes wherever and from whatever archive it was made, and a worker can put the modules
next to each other in one folder.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from klto.objects.bitstream import Bitstream, Block, Record
from klto.objects.errors import MalformedObject
from klto.objects.irsymtab import MODULE_BLOCK_ID, top_level_blocks, unwrap

# llvm/include/llvm/Bitcode/LLVMBitCodes.h.
_MODULE_STRTAB_BLOCK_ID = 19
_MST_CODE_ENTRY, _MST_CODE_HASH = 1, 2
# llvm/include/llvm/Bitstream/BitCodeEnums.h: FixedAbbrevIDs.
_UNABBREV_RECORD = 3


class Shard(NamedTuple):
    """A canonical shard.

    :ivar data: its bytes.
    :ivar modules: what the modules were called before, in the order of their new names.
    """

    data: bytes
    modules: tuple[str, ...]

    def name_of(self, module: str) -> str:
        """The new name of a module.

        :raises ValueError: when the shard does not know it.
        """
        return canonical_name(self.modules.index(module))


def canonical_name(rank: int) -> str:
    """``0000`` for the first; the order of the names is that of the numbers, up to 10,000 imports of a module."""
    return f"{rank:04d}"


def canonical_shard(data: bytes, where: str) -> Shard:
    """Rewrite a shard.

    :raises MalformedObject: when it is no combined index, or imports from 10,000 modules or more.
    """
    raw, base = unwrap(data, where)
    stream = Bitstream(raw, where, base)
    outer, inner = _module_strtab(stream)
    entries = _entries(stream, inner)
    modules = sorted(
        (path for _, path, _ in entries), key=lambda path: path.encode("utf-8", "surrogateescape")
    )
    if len(set(modules)) != len(entries) or len(entries) > 9999:
        raise MalformedObject(
            where, inner.begin // 8, f"expected distinct modules, found {len(entries)} names"
        )
    names = {path: canonical_name(rank) for rank, path in enumerate(modules)}
    block = _block(inner.width, [(number, names[path], digest) for number, path, digest in entries])
    head, begin, end = bytes(raw[: inner.begin // 8 - 4]), inner.begin // 8, inner.end // 8
    result = bytearray(head + (len(block) // 4).to_bytes(4, "little") + block + bytes(raw[end:]))
    words = (outer.end - outer.begin) // 32 + (len(block) - (end - begin)) // 4
    at = outer.begin // 8 - 4
    result[at : at + 4] = words.to_bytes(4, "little")
    return Shard(bytes(result), tuple(modules))


def _module_strtab(stream: Bitstream) -> tuple[Block, Block]:
    """The module block of a combined index and its table of modules."""
    for block_id, width, begin, end in top_level_blocks(stream.data, stream.where, stream.base):
        if block_id == MODULE_BLOCK_ID:
            outer = Block(block_id, width, 8 * begin, 8 * end)
            for item in stream.items(outer, [], (), {}):
                if isinstance(item, Block) and item.block_id == _MODULE_STRTAB_BLOCK_ID:
                    return outer, item
    raise MalformedObject(stream.where, None, "expected a combined index, found none")


def _entries(stream: Bitstream, block: Block) -> list[tuple[int, str, tuple[int, ...]]]:
    """(number, path, hash or nothing) of each module. ENTRY: [modid, namechar x N]; HASH: [5 x i32], behind it."""
    found: list[tuple[int, str, tuple[int, ...]]] = []
    for item in stream.items(block, [], (_MST_CODE_ENTRY, _MST_CODE_HASH), {}):
        if isinstance(item, Record):
            values = item.values()
            if item.code == _MST_CODE_ENTRY:
                path = bytes(value & 255 for value in values[1:]).decode("utf-8", "surrogateescape")
                found.append((values[0], path, ()))
            elif found:
                found[-1] = (*found[-1][:2], tuple(values))
    return found


def _block(width: int, entries: list[tuple[int, str, tuple[int, ...]]]) -> bytes:
    """The content of a MODULE_STRTAB block, all records unabbreviated."""
    bits = size = 0
    for number, name, digest in entries:
        records = [(_MST_CODE_ENTRY, (number, *name.encode()))]
        if digest:
            records.append((_MST_CODE_HASH, digest))
        for code, operands in records:
            more, length = _record(width, code, operands)
            bits |= more << size
            size += length
    size += width  # END_BLOCK is 0.
    size = (size + 31) & ~31
    return bits.to_bytes(size // 8, "little")


@lru_cache(maxsize=65536)
def _record(width: int, code: int, operands: tuple[int, ...]) -> tuple[int, int]:
    bits, size = _UNABBREV_RECORD, width
    for value in (code, len(operands), *operands):
        while True:
            chunk, value = value & 31, value >> 5
            bits |= (chunk | (32 if value else 0)) << size
            size += 6
            if not value:
                break
    return bits, size
