"""What llvm-nm, llvm-dis and llvm-bcanalyzer say of a bitcode file, and what we say."""

from __future__ import annotations

import re
from pathlib import Path

from objects_helpers import run, tool

from klto.objects.bitcode import Bitcode, Module
from klto.objects.nm import letter_of_ir

_QUOTED = r'"((?:[^"\\]|\\.)*)"'
_PROPERTY = re.compile(r'^(target datalayout|target triple|source_filename) = "(.*)"$', re.MULTILINE)
_MODULE_ASM = re.compile(r'^module asm "(.*)"$', re.MULTILINE)
_INLINE_ASM = re.compile(rf" asm (?:sideeffect |alignstack |inteldialect |unwind )*{_QUOTED}, {_QUOTED}")
_SUMMARIES = {"<GLOBALVAL_SUMMARY_BLOCK ": "thin", "<FULL_LTO_GLOBALVAL_SUMMARY_BLOCK ": "full"}


def read(path: Path) -> Bitcode:
    """The file, read."""
    return Bitcode(path.read_bytes(), str(path))


def letters(bitcode: Bitcode) -> list[tuple[str, str]]:
    """Our symbols as llvm-nm prints them: sorted by name, those that it leaves out left out."""
    found = [(letter_of_ir(symbol.flags), symbol.name) for symbol in bitcode.symbols()]
    return sorted((entry for entry in found if entry[0] != " "), key=lambda entry: entry[1].encode())


def unescape(text: str) -> bytes:
    """LLVM's text form of a string: a backslash and two hexadecimal digits for what is not printable."""
    raw = text.encode("utf-8", "surrogateescape")
    return re.sub(
        rb"\\([0-9A-Fa-f]{2}|\\)", lambda m: b"\\" if m[1] == b"\\" else bytes([int(m[1], 16)]), raw
    )


def of_text(module: Module) -> dict[str, object]:
    """What llvm-dis would show of a module: its properties and its assembly."""
    properties = module.properties
    return {
        "target datalayout": properties.data_layout,
        "target triple": properties.target_triple,
        "source_filename": properties.source_filename,
        "asm": properties.asm.splitlines(),
        "inline": {(inline.text, inline.constraints) for inline in module.inline_asm()},
    }


def wanted_of_text(path: Path, version: int) -> dict[str, object]:
    """The same by llvm-dis."""
    text = run(tool("llvm-dis", version), path, "-o", "-")
    found: dict[str, object] = {match[1]: unescape(match[2]).decode() for match in _PROPERTY.finditer(text)}
    found["asm"] = b"\n".join(unescape(line) for line in _MODULE_ASM.findall(text)).splitlines()
    found["inline"] = {
        (unescape(body), unescape(constraints)) for body, constraints in _INLINE_ASM.findall(text)
    }
    return found


def of_records(module: Module) -> dict[str, object]:
    """What only records tell: hash, summary, producer, epoch."""
    properties = module.properties
    return {
        "hash": properties.hash,
        "summary": properties.summary,
        "producer": module.producer,
        "epoch": module.epoch,
    }


def wanted_of_records(path: Path, version: int) -> dict[str, object]:
    """The same by llvm-bcanalyzer."""
    text = run(tool("llvm-bcanalyzer", version), "--dump", path)
    words = [re.findall(r"op\d+=(\d+)", line) for line in text.splitlines() if line.startswith("  <HASH ")]
    producer = re.search(r"<STRING .*record string = '(.*)'", text)
    epoch = re.search(r"<EPOCH .*op0=(\d+)", text)
    summaries = [kind for block, kind in _SUMMARIES.items() if block in text]
    return {
        "hash": b"".join(int(word).to_bytes(4, "big") for word in words[0]) if words else None,
        "summary": summaries[0] if summaries else None,
        "producer": producer[1] if producer else None,
        "epoch": int(epoch[1]) if epoch else None,
    }
