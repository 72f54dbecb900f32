"""The code generation options of a job: a checked structure, from which the worker builds clang's arguments."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from klto.link.request import LinkRequest

_TRIPLE = re.compile(r"[A-Za-z0-9_]+(-[A-Za-z0-9_.]+){1,4}")
#: An option of LLVM's own (``-mllvm``), its value without "/": none can name a file outside of the job.
_LLVM_OPTION = re.compile(r"--?[A-Za-z][A-Za-z0-9-]*(=[A-Za-z0-9_.,:+-]*)?")
_CPU = re.compile(r"[A-Za-z0-9_.+-]*")
#: Values of clang's -mcmodel= (clang/include/clang/Driver/Options.td).
_CODE_MODELS = ("", "tiny", "small", "kernel", "medium", "large")


class Undistributable(Exception):
    """This link cannot be done by separate backends with the same code as result; the message says why."""


class CodegenOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a module's code is generated. Checked when made and when decoded.

    :ivar pic: position-independent code; without it static code (LLVM's Reloc::PIC_ and Reloc::Static).
    :ivar code_model: empty: what the module itself says.
    :ivar function_sections: and the next two: as lld sets them for LTO (lld/ELF/LTO.cpp, createConfig).
    """

    triple: str
    opt_level: int = 2
    pic: bool = False
    code_model: str = ""
    cpu: str = ""
    function_sections: bool = True
    data_sections: bool = True
    address_significance: bool = True
    llvm: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not _TRIPLE.fullmatch(self.triple):
            raise ValueError(f"no target triple: {self.triple!r}")
        if self.opt_level not in range(4):
            raise ValueError(f"no optimisation level: {self.opt_level}")
        if self.code_model not in _CODE_MODELS:
            raise ValueError(f"no code model: {self.code_model!r}")
        if not _CPU.fullmatch(self.cpu):
            raise ValueError(f"no processor: {self.cpu!r}")
        for option in self.llvm:
            if not _LLVM_OPTION.fullmatch(option):
                raise ValueError(f"not an option that a job may give LLVM: {option!r}")

    def clang_arguments(self) -> list[str]:
        """clang's arguments for code generation."""
        return [
            f"--target={self.triple}",
            f"-O{self.opt_level}",
            "-fpic" if self.pic else "-fno-pic",
            "-ffunction-sections" if self.function_sections else "-fno-function-sections",
            "-fdata-sections" if self.data_sections else "-fno-data-sections",
            "-faddrsig" if self.address_significance else "-fno-addrsig",
            *([f"-mcmodel={self.code_model}"] if self.code_model else []),
            *([f"-mcpu={self.cpu}" if _is_arm(self.triple) else f"-march={self.cpu}"] if self.cpu else []),
            *(word for option in self.llvm for word in ("-mllvm", option)),
        ]


def _is_arm(triple: str) -> bool:
    return triple.startswith(("aarch64", "arm"))


#: lld's options about LTO that decide about the thin link only, or about where code goes after it has been made.
_THIN_LINK_ONLY = frozenset(
    ("lto-whole-program-visibility", "no-lto-whole-program-visibility", "thinlto-jobs")
)


class LinkOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What a linker command line says about code generation, for all modules alike.

    :ivar pic: None when each module decides for itself (``-r``).
    """

    opt_level: int
    pic: bool | None
    llvm: tuple[str, ...]

    def of_module(self, triple: str, pic: bool) -> CodegenOptions:
        """The options of one module.

        :raises Undistributable: when they are none that a job may have.
        """
        try:
            return CodegenOptions(
                triple=triple,
                opt_level=self.opt_level,
                pic=pic if self.pic is None else self.pic,
                llvm=self.llvm,
            )
        except ValueError as problem:
            raise Undistributable(str(problem)) from problem


def link_options(request: LinkRequest) -> LinkOptions:
    """Read a linker command line.

    :raises Undistributable: for an option whose like a clang backend is not known to have.
    """
    level, llvm, pic = 2, [], False
    words = iter(request.words)
    for word in words:
        name, _, value = word.lstrip("-").partition("=")
        if not word.startswith("-"):
            continue
        if name in ("mllvm", "plugin-opt"):
            value = value or next(words, "")
            if name == "mllvm" or value.startswith("-"):
                llvm.append(value)
            elif re.fullmatch(r"O[0-3]", value):
                level = int(value[1])
            else:
                raise Undistributable(f"the linker's option {word} has no like in a backend that klto knows")
        elif re.fullmatch(r"lto-O[0-3]", name):
            level = int(name[-1])
        elif name in ("pie", "pic-executable", "shared", "Bshareable"):
            pic = True
        elif name in ("no-pie", "no-pic-executable"):
            pic = False
        elif name.startswith(("lto-", "thinlto-", "save-temps", "icf")) and name not in _THIN_LINK_ONLY:
            raise Undistributable(f"the linker's option {word} has no like in a backend that klto knows")
    return LinkOptions(opt_level=level, pic=None if request.relocatable else pic, llvm=tuple(llvm))
