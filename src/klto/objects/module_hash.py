"""Gives the modules of a bitcode file another hash, and leaves everything else as it is.

A ThinLTO link tells modules apart by the 160-bit hash that clang wrote (MODULE_CODE_HASH): LLVM's cache keys are
made of it, for the module itself and for every module that imports from it (llvm/lib/LTO/LTO.cpp,
computeLTOCacheKey). No reader checks it. Its first two words name promoted locals
(llvm/include/llvm/IR/ModuleSummaryIndex.h, getGlobalNameForLocal), so they stay; the other three carry the salt.
"""

from __future__ import annotations

import hashlib

from klto.objects.bitcode import Bitcode
from klto.objects.errors import MalformedObject

#: MODULE_CODE_HASH of llvm/include/llvm/Bitcode/LLVMBitCodes.h: HASH: [5*i32].
_MODULE_CODE_HASH = 17
_WORDS, _KEPT_WORDS = 5, 2
#: The record is written without an abbreviation (BitcodeWriter.cpp, writeModuleHash): operands are VBR6, chunks
#: of five bits and one that says that more follow (llvm/docs/BitCodeFormat.rst).
_CHUNK, _PAYLOAD = 6, 5


def salted(data: bytes, where: str, salt: bytes) -> bytes:
    """A copy of a bitcode file whose modules' hashes depend on ``salt`` too. Same length, same promoted names.

    :raises MalformedObject: no bitcode, or a module without a hash: LLVM does not cache that one, but would not
        notice when modules that import from it have to change.
    """
    copy = bytearray(data)
    bitcode = Bitcode(data, where)
    for number, module in enumerate(bitcode.modules):
        record = module.hash_record()
        if record is None or not record.unabbreviated:
            raise MalformedObject(where, None, f"expected a hash in module {number}, found none")
        words = record.ops(_WORDS)
        digest = hashlib.sha256(salt + repr(words).encode()).digest()
        _overwrite(copy, 8 * bitcode.base + record.at, digest)
    return bytes(copy)


def _overwrite(data: bytearray, at: int, digest: bytes) -> None:
    """Write ``digest`` into the operands at bit ``at``, all but the kept ones, each in the chunks that it has."""
    for word in range(_WORDS):
        chunks = _chunks(data, at)
        if word >= _KEPT_WORDS:
            value = int.from_bytes(digest[4 * word : 4 * word + 4], "big") & (
                (1 << min(32, _PAYLOAD * chunks)) - 1
            )
            for chunk in range(chunks):
                more = 1 << _PAYLOAD if chunk < chunks - 1 else 0
                payload = value >> (_PAYLOAD * chunk) & ((1 << _PAYLOAD) - 1)
                _put(data, at + _CHUNK * chunk, payload | more)
        at += _CHUNK * chunks


def _chunks(data: bytearray, at: int) -> int:
    """How many chunks the VBR6 operand at bit ``at`` takes."""
    count = 1
    while _get(data, at + _CHUNK * (count - 1)) >> _PAYLOAD:
        count += 1
    return count


def _get(data: bytearray, at: int) -> int:
    """The chunk at bit ``at``. Bits are numbered from the lowest of each byte."""
    pair = int.from_bytes(data[at >> 3 : (at >> 3) + 2], "little")
    return pair >> (at & 7) & ((1 << _CHUNK) - 1)


def _put(data: bytearray, at: int, value: int) -> None:
    first, shift = at >> 3, at & 7
    pair = int.from_bytes(data[first : first + 2], "little")
    pair = pair & ~(((1 << _CHUNK) - 1) << shift) | value << shift
    data[first : first + 2] = pair.to_bytes(2, "little")
