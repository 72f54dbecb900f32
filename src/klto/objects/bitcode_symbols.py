"""Symbols of bitcode: as the symbol table has them, or made of a module's own records.

Records as llvm/lib/Bitcode/Reader/BitcodeReader.cpp reads those of module version 2 (LLVM 5 and later), in which
names lie in the STRTAB block.
"""

from __future__ import annotations

from typing import NamedTuple

from klto.objects import irsymtab

# ModuleCodes of llvm/include/llvm/Bitcode/LLVMBitCodes.h: records that declare or define a global.
_MODULE_CODE_GLOBALVAR = 7
_MODULE_CODE_FUNCTION = 8
_MODULE_CODE_ALIAS = 14
_MODULE_CODE_IFUNC = 18
#: Codes of the records that :func:`symbol_of` takes.
GLOBALS = frozenset((_MODULE_CODE_GLOBALVAR, _MODULE_CODE_FUNCTION, _MODULE_CODE_ALIAS, _MODULE_CODE_IFUNC))

# getDecodedLinkage of BitcodeReader.cpp; obsolete encodings as it upgrades them.
_LOCAL = frozenset((3, 9, 13, 14))
_PRIVATE = frozenset((9, 13, 14))
_WEAK = frozenset((1, 4, 7, 10, 11, 16, 17, 18, 19))
_COMMON = 8
_AVAILABLE_EXTERNALLY = 12


class Symbol(NamedTuple):
    """A symbol of a bitcode file, as irsymtab has it.

    :ivar in_ir: whether it has a name in the IR.
    :ivar flags: storage::Symbol::FlagBits, the FB_ constants of :mod:`klto.objects.irsymtab`.
    """

    name: str
    in_ir: bool
    flags: int

    @property
    def defined(self) -> bool:
        return not self.flags & irsymtab.FB_UNDEFINED

    @property
    def weak(self) -> bool:
        return bool(self.flags & irsymtab.FB_WEAK)

    @property
    def common(self) -> bool:
        return bool(self.flags & irsymtab.FB_COMMON)

    @property
    def is_global(self) -> bool:
        """Neither local to the file nor, if weak and undefined in assembly, without a binding."""
        return bool(self.flags & irsymtab.FB_GLOBAL)

    @property
    def visibility(self) -> str:
        """GlobalValue::VisibilityTypes (llvm/include/llvm/IR/GlobalValue.h)."""
        return ("default", "hidden", "protected", "default")[self.flags & irsymtab.FB_VISIBILITY]

    @property
    def executable(self) -> bool:
        """Code; also everything that assembly defines, ModuleSymbolTable.cpp does not tell it apart."""
        return bool(self.flags & irsymtab.FB_EXECUTABLE)

    @property
    def format_specific(self) -> bool:
        """No symbol to a linker: private globals, intrinsics, llvm.metadata."""
        return bool(self.flags & irsymtab.FB_FORMAT_SPECIFIC)

    @property
    def from_asm(self) -> bool:
        """Defined or used by module-level assembly."""
        # Mangler.cpp calls an IR global that has no name "__unnamed_N".
        return not self.in_ir and not self.format_specific and "__unnamed_" not in self.name[:12]


def symbol_of(name: str, code: int, ops: list[int], sections: tuple[str, ...]) -> Symbol:
    """A symbol with the flags that ModuleSymbolTable::getSymbolFlags gives a global of module version 2.

    GLOBALVAR: [type, isconst|explicit<<1, initid, linkage, alignment, section, visibility, ...]
    FUNCTION: [type, callingconv, isproto, linkage, paramattr, alignment, section, visibility, ...]
    ALIAS, IFUNC: [type, addrspace, aliasee, linkage, visibility, ...]
    """
    linkage = ops[3]
    flags = 0
    declared = (code == _MODULE_CODE_GLOBALVAR and ops[2] == 0) or (
        code == _MODULE_CODE_FUNCTION and ops[2] != 0
    )
    if declared or linkage == _AVAILABLE_EXTERNALLY:
        flags |= irsymtab.FB_UNDEFINED
    if linkage not in _LOCAL:
        flags |= irsymtab.FB_GLOBAL
    if linkage in _WEAK:
        flags |= irsymtab.FB_WEAK
    if linkage == _COMMON:
        flags |= irsymtab.FB_COMMON
    if code in (_MODULE_CODE_FUNCTION, _MODULE_CODE_IFUNC):
        flags |= irsymtab.FB_EXECUTABLE
    if code == _MODULE_CODE_ALIAS:
        flags |= irsymtab.FB_INDIRECT
    in_metadata = (
        code == _MODULE_CODE_GLOBALVAR
        and 0 < ops[5] <= len(sections)
        and sections[ops[5] - 1] == "llvm.metadata"
    )
    if linkage in _PRIVATE or name.startswith("llvm.") or in_metadata:
        flags |= irsymtab.FB_FORMAT_SPECIFIC
    at = {_MODULE_CODE_GLOBALVAR: 6, _MODULE_CODE_FUNCTION: 7}.get(code, 4)
    if len(ops) > at and linkage not in _LOCAL:
        flags |= ops[at] & irsymtab.FB_VISIBILITY
    # Mangler.cpp: a leading \1 says "as it is"; private names get the assembler's prefix for temporaries.
    if name.startswith("\x01"):
        return Symbol(name[1:], True, flags)
    return Symbol(f".L{name}" if linkage in _PRIVATE else name, True, flags)


def is_alias_of_code(code: int, ops: list[int], is_code: list[bool]) -> bool:
    """Whether a record is an alias of a global that is code.

    :param is_code: of each global before it, by number: an alias names its target so.
    """
    return code == _MODULE_CODE_ALIAS and ops[2] < len(is_code) and is_code[ops[2]]
