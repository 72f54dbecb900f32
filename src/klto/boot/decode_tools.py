"""llvm-symbolizer and llvm-objdump of the build's toolchain: lines and inlined frames, and instructions."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from klto import process
from klto.boot.decode_image import Image
from klto.boot.decode_log import without_hash
from klto.errors import UsageError

#: Seconds that a tool may take; some for the debug information of a distribution's kernel.
_TOOL_SECONDS = 300.0

#: Addresses in one command line.
_BATCH = 500

#: Longest instruction in bytes: Intel SDM volume 2, section 2.3.11; arm64's have 4.
_LONGEST = 16

#: How far a function is disassembled from its start to find the call before a return address.
_MOST_CODE = 1 << 16

#: A line of llvm-objdump's with an instruction.
_INSTRUCTION = re.compile(r"^\s*([0-9a-f]+):\s+(\S.*?)\s*$")

#: A line of ``--reloc``'s, and the relocations of calls and jumps (x86-64 psABI 4.4; Arm's AAELF64, 5.7).
_RELOCATION = re.compile(r"^\s*[0-9a-f]+:\s+(R_\w+)\s+(\S+)\s*$")
_BRANCHES = frozenset(("R_X86_64_PLT32", "R_AARCH64_CALL26", "R_AARCH64_JUMP26"))
_ADDEND = re.compile(r"[-+]0x[0-9a-f]+$")


@dataclass(frozen=True)
class Location:
    """A line of source. ``file`` is empty and ``line`` 0 where debug information does not say."""

    function: str
    file: str
    line: int


@dataclass(frozen=True)
class Tools:
    """The two programs."""

    symbolizer: Path
    objdump: Path

    def locations(self, image: Image, addresses: Iterable[int]) -> dict[int, tuple[Location, ...]]:
        """For each address the innermost inlined function first, the function that holds it last.

        Without debug information this has nothing: llvm-symbolizer then names the last STT_FILE symbol,
        which after an LTO link has nothing to do with the function.
        """
        wanted = sorted(set(addresses))
        if not image.has_lines:
            return {}
        found = {}
        for start in range(0, len(wanted), _BATCH):
            batch = wanted[start : start + _BATCH]
            argv = (
                self.symbolizer,
                f"--obj={image.file}",
                "--output-style=JSON",
                "--inlines",
                "--no-demangle",
            )
            for entry in _json(process.run((*argv, *map(hex, batch)), timeout=_TOOL_SECONDS).stdout):
                frames = [_location(symbol) for symbol in entry.get("Symbol", [])]
                found[int(entry["Address"], 16)] = tuple(frame for frame in frames if frame.function)
        return found

    def instruction(self, image: Image, address: int, *, before: bool) -> str:
        """The instruction at an address, or the one that ends there; empty when there is none.

        Instructions of x86 cannot be read backwards, so the function is read from its start.
        """
        start = address
        if before:
            symbol = image.covering(address - 1)
            if symbol is None or symbol[1] > _MOST_CODE:
                return ""
            start = address - 1 - symbol[1]
        stop = address if before else address + _LONGEST
        argv = (
            self.objdump,
            "--disassemble",
            "--no-show-raw-insn",
            *(("--reloc",) if image.is_module else ()),
        )
        ends = (f"--start-address={start:#x}", f"--stop-address={stop:#x}")
        text = process.run((*argv, *ends, image.file), timeout=_TOOL_SECONDS).stdout
        lines = _instructions(text)
        if before:
            return lines[-1][1] if lines else ""
        return next((code for at, code in lines if at == address), "")


def _instructions(text: str) -> list[tuple[int, str]]:
    """Addresses and instructions of llvm-objdump's output; calls in a module with the symbol they go to."""
    found: list[tuple[int, str]] = []
    for line in text.splitlines():
        relocation = _RELOCATION.match(line)
        if relocation and found:
            at, code = found[-1]
            target = relocation[2].removeprefix(".text.").partition(".llvm.")[0]
            if relocation[1] in _BRANCHES:
                code = f"{code.split(' ', 1)[0]} <{_ADDEND.sub('', target)}>"
            else:
                code = f"{code}  # {relocation[1]} {target}"
            found[-1] = at, code
        elif instruction := _INSTRUCTION.match(line):
            found.append((int(instruction[1], 16), _tidy(instruction[2])))
    return found


def find_tools(folders: Iterable[Path]) -> Tools:
    """The tools in the first directory that has both.

    :raises UsageError: when none has.
    """
    looked = list(folders)
    for folder in looked:
        tools = Tools(folder / "llvm-symbolizer", folder / "llvm-objdump")
        if tools.symbolizer.is_file() and tools.objdump.is_file():
            return tools
    where = ", ".join(map(str, looked))
    raise UsageError(f"no llvm-symbolizer and llvm-objdump in {where}", "install LLVM's tools: package llvm")


def _json(text: str) -> list[dict[str, Any]]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise UsageError(
            "llvm-symbolizer's answer is no JSON", "LLVM 13 and later have --output-style=JSON"
        ) from error
    return found if isinstance(found, list) else [found]


def _location(symbol: dict[str, Any]) -> Location:
    name = str(symbol.get("FunctionName", ""))
    return Location(without_hash(name), str(symbol.get("FileName", "")), int(symbol.get("Line", 0) or 0))


def _tidy(code: str) -> str:
    """One blank between mnemonic and operands."""
    return " ".join(code.split())
