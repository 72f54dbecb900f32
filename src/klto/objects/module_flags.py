"""The module flags of LLVM bitcode: what a module says about its own code generation.

"Module Flags Metadata" of LLVM's language reference; records as in llvm/include/llvm/Bitcode/LLVMBitCodes.h,
numbered as llvm/lib/Bitcode/Reader/MetadataLoader.cpp and BitcodeReader.cpp number them.
"""

from __future__ import annotations

from typing import NamedTuple

from klto.objects.bitcode import Module
from klto.objects.bitstream import Abbrev, Bitstream, Block, Record

_CONSTANTS_BLOCK_ID, _METADATA_BLOCK_ID = 11, 15
#: MODULE_CODE_GLOBALVAR, FUNCTION, ALIAS_OLD, ALIAS, IFUNC: each is a value, constants come after them.
_VALUES = frozenset((7, 8, 9, 14, 18))
#: ConstantsCodes.
_CST_CODE_SETTYPE, _CST_CODE_NULL, _CST_CODE_INTEGER = 1, 2, 4
# MetadataCodes.
_METADATA_VALUE, _METADATA_NODE, _METADATA_NAME, _METADATA_NAMED_NODE, _METADATA_STRINGS = 2, 3, 4, 10, 35
#: METADATA_NAME, KIND, NAMED_NODE, ATTACHMENT, STRINGS, GLOBAL_DECL_ATTACHMENT, INDEX_OFFSET, INDEX: no
#: metadata of their own.
_UNNUMBERED = frozenset((4, 6, 10, 11, 35, 36, 38, 39))
_ANY = range(1 << 32)
_FLAGS = "llvm.module.flags"


class ModuleFlag(NamedTuple):
    """One flag. ``behavior`` as llvm::Module::ModFlagBehavior has it: 1 Error, 2 Warning, 4 Override, 7 Max and
    so on; ``value``: a number, a string, or None for anything else."""

    behavior: int
    value: int | str | None


#: Two modules that are linked must have the same value.
MUST_AGREE = 1


def module_flags(module: Module) -> dict[str, ModuleFlag]:
    """Name to flag.

    :raises MalformedObject: when the module's records are broken.
    """
    stream, block = module.stream, module.block
    constants: dict[int, int] = {}
    info: dict[int, list[Abbrev]] = {}
    values = 0
    for item in stream.items(block, [], _VALUES, info):
        if isinstance(item, Record):
            values += 1
        elif item.block_id == _CONSTANTS_BLOCK_ID:
            values = _read_constants(stream, item, info, values, constants)
        elif item.block_id == _METADATA_BLOCK_ID:
            return _Metadata(stream, item, info, constants).flags()
    return {}


def _read_constants(
    stream: Bitstream, block: Block, info: dict[int, list[Abbrev]], values: int, found: dict[int, int]
) -> int:
    """Puts integers into ``found`` by value number; the number after the last constant."""
    for item in stream.items(block, info.get(_CONSTANTS_BLOCK_ID, []), _ANY, info):
        if not isinstance(item, Record) or item.code == _CST_CODE_SETTYPE:
            continue
        if item.code == _CST_CODE_NULL:
            found[values] = 0
        elif item.code == _CST_CODE_INTEGER:
            raw = (item.ops(1) or [0])[0]
            found[values] = -(raw >> 1) if raw & 1 else raw >> 1
        values += 1
    return values


class _Metadata:
    """A module's metadata, as far as its flags need it."""

    def __init__(
        self, stream: Bitstream, block: Block, info: dict[int, list[Abbrev]], constants: dict[int, int]
    ) -> None:
        self._stream = stream
        self._constants = constants
        self._strings: list[bytes] = []
        self._values: dict[int, int] = {}
        self._nodes: dict[int, list[int]] = {}
        self._flags: list[int] = []
        number, name = 0, b""
        for item in stream.items(block, info.get(_METADATA_BLOCK_ID, []), _ANY, info):
            if not isinstance(item, Record):
                continue
            if item.code == _METADATA_STRINGS:
                self._strings = self._read_strings(item)
                number = len(self._strings)
            elif item.code == _METADATA_NAME:
                name = item.text()
            elif item.code == _METADATA_NAMED_NODE and name == _FLAGS.encode():
                self._flags = item.ops(1 << 16)
            elif item.code == _METADATA_VALUE:
                self._values[number] = ([*item.ops(2), 0, 0])[1]
            elif item.code == _METADATA_NODE:
                self._nodes[number] = item.ops(4)
            number += item.code not in _UNNUMBERED

    def _read_strings(self, record: Record) -> list[bytes]:
        """STRINGS: [count, offset of the characters, blob of lengths in VBR6 and then the characters]."""
        count, offset = ([*record.ops(2), 0, 0])[:2]
        begin, size = record.blob()
        characters = begin + offset
        end = begin + size
        if offset > size or count > 8 * size:
            raise self._stream.malformed(record.at, "expected metadata strings within their blob")
        data, at, found = self._stream.data, 8 * begin, []
        for _ in range(count):
            length, at = self._stream.vbr(at, 6)
            if characters + length > end:
                raise self._stream.malformed(record.at, "expected a metadata string within its blob")
            found.append(bytes(data[characters : characters + length]))
            characters += length
        return found

    def flags(self) -> dict[str, ModuleFlag]:
        """Each flag is a node {behavior, name, value}; operands count from 1, 0 is null."""
        found = {}
        for number in self._flags:
            operands = self._nodes.get(number, [])
            if len(operands) < 3 or not 0 < operands[1] <= len(self._strings):
                continue
            name = self._strings[operands[1] - 1].decode("utf-8", "surrogateescape")
            behavior = self._value(operands[0])
            found[name] = ModuleFlag(behavior if isinstance(behavior, int) else 0, self._value(operands[2]))
        return found

    def _value(self, operand: int) -> int | str | None:
        number = operand - 1
        if 0 <= number < len(self._strings):
            return self._strings[number].decode("utf-8", "surrogateescape")
        return self._constants.get(self._values.get(number, -1))
