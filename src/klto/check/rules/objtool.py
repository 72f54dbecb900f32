"""objtool's warnings, folded."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from typing import ClassVar

from klto.check.build_dir import BuildDir
from klto.check.finding import Finding, Level
from klto.check.rule import Rule

#: ``vmlinux.o: warning: objtool: f+0x12: message`` (tools/objtool/include/objtool/warn.h, WARN; 6.1 and 6.12).
_WARNING = re.compile(r"^(?P<file>\S+): (?P<level>warning|error): objtool: (?P<text>.*)$")
_PLACE = re.compile(r"(?P<name>[\w.$]+?)(?:\(\))?(?:\+0x[0-9a-f]+)?(?=[:\s]|$)")
_SUFFIX = re.compile(r"\.(llvm\.\d+|cold|part\.\d+|isra\.\d+|constprop\.\d+|specialized\.\d+|\d+)")

#: What objtool says, and what LTO has to do with it. Places are cut out before messages are compared.
_CAUSES = (
    (
        "unexpected end of section",
        (
            "the optimiser has proved that control never gets past a point (undefined behaviour that is visible across "
            "files only) and dropped the rest of the function; many at once are one change of the compiler"
        ),
    ),
    (
        "falls through to next function",
        "as above, or assembly labels that look like functions: label them .L or end them with SYM_FUNC_END",
    ),
    (
        "relocation to !ENDBR",
        "sections were merged: a reference to a place in .text cannot be told from a pointer",
    ),
    (
        "can't find switch jump table",
        "switches are lowered otherwise with profiles and at the link: -fno-jump-tables, or a newer objtool",
    ),
    ("unannotated intra-function call", "code was moved out of its function (.cold, .part)"),
    ("leaves .noinstr.text section", "a function was not inlined into noinstr code: mark it __always_inline"),
    ("UACCESS enabled", "a function was not inlined into code between user_access_begin and _end"),
    ("stack state mismatch", "code of several files was joined into one frame"),
    ("naked return", "assembly that is checked for the first time, since objtool runs on vmlinux.o with LTO"),
)


class Objtool(Rule):
    """What objtool has said in the last build."""

    slug = "objtool"
    asks_link = True
    title = "objtool's warnings of the last build, folded, with the source file that the code came from"
    what = (
        "objtool cannot follow some code: stack traces, live patches or speculation barriers are wrong there."
    )
    why = (
        "with LTO objtool sees the whole of vmlinux.o and modules after optimisation across files, under names and in "
        "files that are not those of the source"
    )
    remedies: ClassVar = (
        "look at the source file named here, not at the object that objtool names",
        "the same message in many files is one cause: compare with the compiler's last version",
    )
    references: ClassVar = (
        "tools/objtool/Documentation/objtool.txt (6.12)",
        "https://github.com/ClangBuiltLinux/linux/issues/1480",
        "https://github.com/ClangBuiltLinux/linux/issues/2096",
    )

    def of_build(self, build: BuildDir) -> Iterator[Finding]:
        log = build.path / ".klto/build.log"
        try:
            lines = log.read_text("utf-8", "replace").splitlines()
        except OSError:
            return
        groups: dict[str, list[tuple[str, str, str]]] = defaultdict(list)
        for line in dict.fromkeys(lines):
            found = _WARNING.match(line)
            if found is not None:
                text = found["text"]
                place = _PLACE.match(text)
                name = place["name"] if place is not None else ""
                groups[_kind(text, name)].append((found["file"], name, text))
        for kind, places in groups.items():
            yield self._folded(build, kind, places)

    def _folded(self, build: BuildDir, kind: str, places: list[tuple[str, str, str]]) -> Finding:
        file, name, text = places[0]
        cause = next((cause for words, cause in _CAUSES if words in text), None)
        source = _source_of(build, name)
        message = text if len(places) == 1 else f"{len(places)} times: {kind}, first {text}"
        if source:
            message += f" (from {source})"
        if cause:
            message += f"; {cause}"
        return self.finding(
            file, message, Level.WARNING, symbol=name or None, seen=f"{len(places)} warnings", source=source
        )


def _kind(text: str, name: str) -> str:
    """A message without its places: numbers and names of functions are cut out."""
    text = text.removeprefix(".text.").replace(name, "", 1) if name else text
    return re.sub(r"\+?0x[0-9a-f]+", "", re.sub(r"[\w.]+\(\)", "f()", text)).strip(" :")


def _source_of(build: BuildDir, name: str) -> str | None:
    """The source file of a function, by the bitcode module that defines it under its plain name."""
    plain = _SUFFIX.sub("", name.removeprefix(".text."))
    number = build.link.module_of(plain)
    if number is None:
        return None
    command = build.link.commands[number]
    return (command.source if command is not None else None) or build.link.bitcode[number].name
