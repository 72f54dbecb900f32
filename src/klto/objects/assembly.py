"""What assembly text in bitcode refers to: files it includes, symbols it names.

Only an assembler could say this exactly, so both answers err on the safe side. A file is reported even when
the directive stands in a comment or a string, and one whose name cannot be told is reported without a name; a
name is anything that stands where an operand stands, to be compared with symbols that exist.

Directives: llvm/lib/MC/MCParser/AsmParser.cpp (names are matched in any case). Inline assembly's "$": "Inline
Assembler Expressions" in LLVM's language reference.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

#: AsmParser.cpp, DK_INCBIN and DK_INCLUDE: all directives that read a file.
_INCLUDING = re.compile(rb"(?<![\w.$@])\.(incbin|include)(?![\w.$@])", re.IGNORECASE)
#: A directive whose name a macro's argument is part of. ".L\@" and the like are labels, made so everywhere.
_COMPOSED = re.compile(rb"(?:^|[;\n])[ \t]*(\.(?!L)[\w.]*\\[\w\\().@]+)[ \t]+(?=[\"<\\])")
#: AsmParser.cpp, DK_MACRO, DK_IRP, DK_IRPC: directives with arguments that are put in for "\\name".
_MACRO = re.compile(rb"(?<![\w.$@])\.(?:macro|irpc?)(?![\w.$@])", re.IGNORECASE)
_STRING = re.compile(rb'[ \t]*"((?:[^"\\\n]|\\[^\n])*)"')
#: AsmParser::parseEscapedString.
_ESCAPE = re.compile(rb"\\(x[0-9a-fA-F]+|[0-7]{1,3}|.)", re.IGNORECASE)
_SIMPLE_ESCAPES = {b"b": b"\b", b"f": b"\f", b"n": b"\n", b"r": b"\r", b"t": b"\t", b'"': b'"', b"\\": b"\\"}

#: "$$", operands "$0" and "${0:c}", variants "$(a$|b$)".
_TEMPLATE = re.compile(rb"\$(?:(\$)|\d+|\{[^}]*\}|[(|)])")
#: Stands for an operand, whose text is not known.
_OPERAND = b"\x01"

_LABEL = re.compile(rb'[ \t]*([A-Za-z_.$][\w.$@]*|\d+|"[^"\n]*")[ \t]*:(?!:)')
#: An identifier that is no register ("%rax"), no part of a number, and holds no operand.
_NAME = re.compile(rb"(?<![\w.@%\x01\\])([A-Za-z_.][\w.$]*)(?![\w\x01\\])")
_MNEMONIC = re.compile(rb"[ \t]*[\w.\x01\\]+")


@dataclass(frozen=True)
class Include:
    """A file that assembly reads when it is assembled: at the link, with LTO.

    :ivar directive: ``incbin`` or ``include``, or another name that a macro composes.
    :ivar path: as written, relative to the folder the link runs in; None when the text does not tell.
    :ivar text: the line around it, for messages.
    """

    directive: str
    path: str | None
    text: str


def expand_template(text: bytes) -> bytes:
    """Inline assembly as the assembler will see it, each operand replaced by one byte 0x01."""
    return _TEMPLATE.sub(_expand, text)


def _expand(match: re.Match[bytes]) -> bytes:
    if match[1]:
        return b"$"
    # Both variants of an alternative are kept, as operands of one statement.
    return b" " if match[0][1:2] in (b"(", b"|", b")") else _OPERAND


def included_files(text: bytes) -> tuple[Include, ...]:
    """The files that assembly includes, in order; of inline assembly pass the expanded text."""
    found = []
    for match in _INCLUDING.finditer(text):
        directive = match[1].decode().lower()
        found.append(
            (match.start(), Include(directive, _file_name(text, match.end()), _line(text, match.start())))
        )
    for match in _COMPOSED.finditer(text):
        directive = match[1].decode(errors="replace").lstrip(".")
        found.append((match.start(1), Include(directive, None, _line(text, match.start(1)))))
    return tuple(include for _, include in sorted(found, key=lambda item: item[0]))


def _file_name(text: bytes, at: int) -> str | None:
    string = _STRING.match(text, at)
    if string is None or _OPERAND in string[1]:
        return None
    if b"\\" in string[1] and _MACRO.search(text):
        return None  # "\\name" may be a macro's argument, though it reads as an escape and some letters.
    # Within a macro "\\name" is an argument of it; outside it would be a wrong escape, an error.
    try:
        return _ESCAPE.sub(_unescape, string[1]).decode("utf-8", "surrogateescape")
    except LookupError:
        return None


def _unescape(match: re.Match[bytes]) -> bytes:
    code = match[1]
    if code[:1] in (b"x", b"X") and len(code) > 1:
        return bytes([int(code[1:], 16) & 0xFF])
    if code[:1].isdigit():
        return bytes([int(code, 8) & 0xFF])
    return _SIMPLE_ESCAPES[code]


def _line(text: bytes, at: int) -> str:
    begin = max(text.rfind(b"\n", 0, at) + 1, at - 60)
    end = text.find(b"\n", at)
    return text[begin : min(len(text) if end < 0 else end, at + 140)].strip().decode("utf-8", "replace")


def labels(text: bytes) -> frozenset[str]:
    """Names that are defined as labels, ``name:``; without local ones such as ``1:`` and ``.Lname:``."""
    found = set()
    for statement in _statements(text):
        rest = statement
        while label := _LABEL.match(rest):
            found.add(label[1].strip(b'"').decode("utf-8", "surrogateescape"))
            rest = rest[label.end() :]
    return frozenset(name for name in found if not name.startswith(".L") and not name.isdigit())


def referenced_names(text: bytes) -> frozenset[str]:
    """Every name in an operand's place: symbols, but also section names, flags and registers without "%".

    Names that an operand of the template is part of are left out, they cannot be known here.
    """
    found: set[bytes] = set()
    for statement in _statements(text):
        rest = statement
        while label := _LABEL.match(rest):
            rest = rest[label.end() :]
        mnemonic = _MNEMONIC.match(rest)
        if mnemonic:
            found.update(match[1] for match in _NAME.finditer(rest, mnemonic.end()))
    return frozenset(name.decode("utf-8", "surrogateescape") for name in found)


def _statements(text: bytes) -> list[bytes]:
    return re.split(rb"[\n;]", text)
