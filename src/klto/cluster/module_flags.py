"""What a bitcode module says about the code that is to be made of it: its triple and its level of PIC.

A relocatable ThinLTO link gives no relocation model of its own: each module's decides
(lld/ELF/LTO.cpp, createConfig: RelocModel; llvm/lib/LTO/LTOBackend.cpp, createTargetMachine: "PIC Level"). clang as
a backend always sets one, so it has to be told.
"""

from __future__ import annotations

from typing import NamedTuple

from klto.objects.bitcode import Bitcode
from klto.objects.bitcode_module import Module
from klto.objects.bitstream import Abbrev, Bitstream, Block, Record
from klto.objects.errors import MalformedObject

# llvm/include/llvm/Bitcode/LLVMBitCodes.h.
_CONSTANTS_BLOCK_ID, _METADATA_BLOCK_ID = 11, 15
_GLOBALS = frozenset((7, 8, 14, 18, 9))  # GLOBALVAR, FUNCTION, ALIAS, IFUNC, ALIAS_OLD
_CST_CODE_SETTYPE, _CST_CODE_NULL, _CST_CODE_INTEGER = 1, 2, 4
_METADATA_VALUE, _METADATA_NODE, _METADATA_NAME = 2, 3, 4
_METADATA_NAMED_NODE, _METADATA_STRINGS = 10, 35
#: Records of the METADATA block that define nothing with a number: NAME, KIND, NAMED_NODE, STRINGS,
#: GLOBAL_DECL_ATTACHMENT, INDEX_OFFSET, INDEX, ARG_LIST.
_UNNUMBERED = frozenset((4, 6, 10, 35, 36, 38, 39, 46))
_ANY = range(1 << 32)
_PIC_LEVEL = b"PIC Level"


class ModuleFlags(NamedTuple):
    """:ivar pic: whether the module was compiled to position-independent code ("PIC Level" above 0)."""

    triple: str
    summary: str | None
    pic: bool


def read_module_flags(data: bytes, where: str) -> ModuleFlags:
    """Read the one module of a bitcode file.

    :raises MalformedObject: when it is broken or holds several (split LTO units).
    """
    bitcode = Bitcode(data, where)
    if len(bitcode.modules) != 1:
        raise MalformedObject(where, None, f"expected one module, found {len(bitcode.modules)}")
    module = bitcode.modules[0]
    properties = module.properties
    # The names of flags lie in a blob, whole bytes: without these there is no need to look for the value.
    pic = _PIC_LEVEL in data and _integer_flags(module).get(_PIC_LEVEL, 0) > 0
    return ModuleFlags(properties.target_triple, properties.summary, pic)


def code_flags(data: bytes, where: str) -> tuple[str, bool]:
    """(triple, pic) of a module that a thin link wrote a shard for, which proves its ThinLTO summary.

    The triple is taken from the symbol table: the module's own records need not be read for it.

    :raises MalformedObject: as :func:`read_module_flags`.
    """
    bitcode = Bitcode(data, where)
    if len(bitcode.modules) != 1:
        raise MalformedObject(where, None, f"expected one module, found {len(bitcode.modules)}")
    table, module = bitcode.symbol_table, bitcode.modules[0]
    triple = table.target_triple if table is not None else module.properties.target_triple
    return triple, _PIC_LEVEL in data and _integer_flags(module).get(_PIC_LEVEL, 0) > 0


def _integer_flags(module: Module) -> dict[bytes, int]:
    """The module flags that are integers, by name."""
    stream, values = module.stream, _Values()
    info: dict[int, list[Abbrev]] = {}
    for item in stream.items(module.block, [], _GLOBALS, info):
        if isinstance(item, Record):
            values.next += 1
        elif item.block_id == _CONSTANTS_BLOCK_ID:
            values.read(stream, item, info)
        elif item.block_id == _METADATA_BLOCK_ID:
            return _flags_of(stream, item, info, values.integers)
    return {}


class _Values:
    """Numbers of a module's values: first its globals, then its constants (ValueEnumerator.cpp)."""

    def __init__(self) -> None:
        self.next = 0
        self.integers: dict[int, int] = {}

    def read(self, stream: Bitstream, block: Block, info: dict[int, list[Abbrev]]) -> None:
        for record in stream.items(block, info.get(_CONSTANTS_BLOCK_ID, []), _ANY, info):
            if not isinstance(record, Record) or record.code == _CST_CODE_SETTYPE:
                continue
            if record.code == _CST_CODE_INTEGER:
                coded = (record.ops(1) or [0])[0]  # The sign is the lowest bit (emitSignedInt64).
                self.integers[self.next] = -(coded >> 1) if coded & 1 else coded >> 1
            elif record.code == _CST_CODE_NULL:
                self.integers[self.next] = 0
            self.next += 1


def _flags_of(
    stream: Bitstream, block: Block, info: dict[int, list[Abbrev]], integers: dict[int, int]
) -> dict[bytes, int]:
    strings: list[bytes] = []
    records: dict[int, Record] = {}
    number, name = 0, b""
    named: list[int] = []
    for record in stream.items(block, info.get(_METADATA_BLOCK_ID, []), _ANY, info):
        if not isinstance(record, Record):
            continue
        if record.code == _METADATA_STRINGS:
            strings = _strings(stream, record)
            number += len(strings)
        elif record.code == _METADATA_NAME:
            name = record.text()
        elif record.code == _METADATA_NAMED_NODE:
            if name == b"llvm.module.flags":
                named = list(record.values())
        elif record.code not in _UNNUMBERED:
            if record.code in (_METADATA_VALUE, _METADATA_NODE):
                records[number] = record
            number += 1
    flags = {}
    for node in named:
        found = records.get(node)
        # NODE: [n x (id of the metadata + 1)]: behaviour, name, value.
        operands = list(found.values()) if found is not None else []
        if len(operands) == 3 and 0 < operands[1] <= len(strings):
            value = records.get(operands[2] - 1)
            if value is not None and value.code == _METADATA_VALUE:  # VALUE: [type, value]
                flags[strings[operands[1] - 1]] = integers.get(value.ops(2)[1], 0)
    return flags


def _strings(stream: Bitstream, record: Record) -> list[bytes]:
    """STRINGS: [count, offset to characters, blob]: the lengths as VBR6, aligned, then the characters."""
    count, offset = record.ops(2)
    begin, size = record.blob()
    lengths = Bitstream(stream.data[begin : begin + offset], stream.where)
    at, place, found = 0, begin + offset, []
    for _ in range(count):
        length, at = lengths.vbr(at, 6)
        if place + length > begin + size:
            raise MalformedObject(
                stream.where, begin, "expected a string in its blob, found one past its end"
            )
        found.append(bytes(stream.data[place : place + length]))
        place += length
    return found
