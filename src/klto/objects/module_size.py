"""How large a bitcode file's module is without what stands behind it. Standard library only: the link uses it."""

from __future__ import annotations

#: Bytes of a bitcode file's beginning in which the module's header is, with room: identification blocks have 36.
HEAD_BYTES = 256

#: llvm/include/llvm/Bitcode/LLVMBitCodes.h, and BitCodeEnums.h: blocks, ENTER_SUBBLOCK.
_IDENTIFICATION, _MODULE, _ENTER = 13, 8, 1
_MAGIC = b"BC\xc0\xde"


def module_size(head: bytes) -> int | None:
    """Bytes of the first module with its identification block, as BitcodeModule::getBuffer has them
    (llvm/lib/Bitcode/Reader/BitcodeReader.cpp, getBitcodeFileContents).

    :param head: the file's first bytes, ``HEAD_BYTES`` of them are enough.
    :returns: None when it does not begin as compilers write it.
    """
    if head[:4] != _MAGIC:
        return None
    at = 4
    while at + 8 <= len(head):
        # Two bits of abbreviation, eight of the block's number, four of its width, up to 32; its length in words.
        first, words = (
            int.from_bytes(head[at : at + 4], "little"),
            int.from_bytes(head[at + 4 : at + 8], "little"),
        )
        block = first >> 2 & 0xFF
        at += 8 + 4 * words
        if first & 3 != _ENTER or block not in (_IDENTIFICATION, _MODULE):
            return None
        if block == _MODULE:
            return at - 4
    return None
