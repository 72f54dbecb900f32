"""klto as the distributor of LLVM's integrated distributed ThinLTO (LLVM 21 and later).

The linker does the thin link and writes a JSON file: what all backends have in common and each one's files
(llvm/lib/LTO/LTO.cpp, OutOfProcessThinBackend; llvm/docs/DTLTO.rst). Its options come as clang's. They are read
into the checked structure that jobs have; one that has no place there is refused by name.
"""

from __future__ import annotations

import os
import re
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from klto.cluster.backend import LocalFiles
from klto.cluster.jobs import Preparation
from klto.cluster.link import run_jobs
from klto.cluster.modules import Helpers, Memo, place_of_file
from klto.cluster.options import CodegenOptions, LinkOptions, Undistributable
from klto.cluster.times import Times
from klto.cluster.toolchain import Compiler, compiler_at
from klto.errors import UsageError
from klto.files import write_whole

if TYPE_CHECKING:
    from collections.abc import Callable

    from klto.cluster.local import Runner
    from klto.cluster.use import Use


class _Common(msgspec.Struct, frozen=True):
    linker_output: str
    args: list[str]
    inputs: list[str] = []


class _Backend(msgspec.Struct, frozen=True):
    args: list[str]
    inputs: list[str]
    outputs: list[str]


class Request(msgspec.Struct, frozen=True):
    """The linker's JSON file."""

    common: _Common
    jobs: list[_Backend]


#: Arguments that say nothing about code.
_WITHOUT_EFFECT = frozenset(("-c", "-Wno-unused-command-line-argument", "-Wno-override-module"))


class _Options(LinkOptions, frozen=True, kw_only=True):
    """Options of clang's command line, for all modules alike."""

    base: CodegenOptions

    def of_module(self, triple: str, pic: bool) -> CodegenOptions:
        """As in :class:`LinkOptions`; the linker's target is the modules' own."""
        return msgspec.structs.replace(self.base, pic=pic if self.pic is None else self.pic)


def read_options(arguments: list[str]) -> _Options:
    """clang's arguments as a checked structure. Without -fpic or -fno-pic each module decides for itself.

    :raises UsageError: for an argument that has no place there.
    """
    found: dict[str, object] = {}
    llvm: list[str] = []
    pic: bool | None = None
    words = iter(arguments)
    for word in words:
        name, _, value = word.partition("=")
        if word in _WITHOUT_EFFECT:
            continue
        if word in ("-fpic", "-fPIC", "-fpie", "-fPIE"):
            pic = True
        elif word in ("-fno-pic", "-fno-PIC", "-fno-pie", "-fno-PIE"):
            pic = False
        elif word == "-mllvm":
            llvm.append(next(words, ""))
        elif word == "-x":
            if next(words, "") != "ir":
                raise UsageError("the linker's distributed ThinLTO asks for another language than LLVM IR")
        elif re.fullmatch(r"-O[0-3]", word):
            found["opt_level"] = int(word[2])
        elif match := re.fullmatch(r"-f(no-)?(function-sections|data-sections|addrsig)", word):
            field = {"addrsig": "address_significance"}.get(match[2], match[2].replace("-", "_"))
            found[field] = match[1] is None
        elif value and name in _VALUED:
            found[_VALUED[name]] = value
        else:
            raise UsageError(
                f"klto does not know what a backend's option {word} means",
                "leave it out of --thinlto-remote-compiler-arg=, or run backends without klto",
            )
    try:
        base = msgspec.convert({"triple": "", **found, "llvm": llvm}, CodegenOptions)
    except msgspec.ValidationError as error:
        raise UsageError(f"not options that a backend can have: {error}") from error
    return _Options(opt_level=base.opt_level, pic=pic, llvm=base.llvm, base=base)


_VALUED = {"--target": "triple", "-mcmodel": "code_model", "-march": "cpu", "-mcpu": "cpu"}


def read_request(path: Path) -> Request:
    """The linker's JSON file.

    :raises UsageError: when it is none.
    """
    try:
        request = msgspec.json.decode(path.read_bytes(), type=Request)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    except msgspec.MsgspecError as error:
        raise UsageError(
            f"{path} is not what a linker hands to a distributor: {error}",
            "use it as ld.lld --thinlto-distributor=/path/to/klto --thinlto-distributor-arg=dtlto-distributor",
        ) from error
    if not request.common.args:
        raise UsageError(f"{path} names no compiler", "give the linker --thinlto-remote-compiler=clang")
    return request


def distribute(
    request: Request, use: Use, cache: Path | None, make_runner: Callable[[Compiler], Runner]
) -> None:
    """Run all backends and write their objects where the linker expects them.

    :raises BuildError: when one fails on its own merits.
    :raises UsageError: when a job cannot be done by klto.
    """
    begun = time.monotonic()
    compiler = compiler_at(request.common.args[0])
    options = read_options(request.common.args[1:])
    files = LocalFiles()
    backends = [_files_of(backend) for backend in request.jobs]
    names = [module for module, _, _ in backends]
    times = Times(cache, "\0".join((request.common.linker_output, *names[:1])))
    try:
        places = {name: place_of_file(name) for name in names}
        order = sorted(names, key=lambda name: times.expected(name, places[name].size), reverse=True)
        with tempfile.TemporaryDirectory(prefix="klto-dtlto-") as scratch, Helpers(len(names)) as helpers:
            shards = {module: Path(index) for module, index, _ in backends}
            preparation = Preparation(
                order, places, shards, options, compiler.identity, files, helpers, Memo(None), use
            )
            preparation.start()
            objects = run_jobs(
                preparation.jobs(), names, files, times, Path(scratch), cache, use,
                lambda: make_runner(compiler), begun,
            )  # fmt: skip
            for (_, _, output), path in zip(backends, objects, strict=True):
                write_whole(Path(output), path.read_bytes())
    except Undistributable as problem:
        raise UsageError(f"this link's backends cannot be distributed: {problem}") from problem
    except FileNotFoundError as error:
        raise UsageError(f"cannot read {error.filename}: {error.strerror}") from error


def _files_of(backend: _Backend) -> tuple[str, str, str]:
    """(bitcode, index, object) of a backend: ``["x.o", "-fthinlto-index=...", "-o", "..."]``.

    :raises UsageError: when its arguments are others.
    """
    module, index, output = "", "", ""
    words = iter(backend.args)
    for word in words:
        if word.startswith("-fthinlto-index="):
            index = word.partition("=")[2]
        elif word == "-o":
            output = next(words, "")
        elif not word.startswith("-") and not module:
            module = word
        else:
            raise UsageError(f"klto does not know what a backend's argument {word} means")
    if not (module and index and output):
        raise UsageError(f"a backend without a module, an index or an output: {' '.join(backend.args)}")
    return os.fspath(module), index, output
