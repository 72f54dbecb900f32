"""Which lines of a log speak of an error, which are only noise, and which warnings are the same again."""

from __future__ import annotations

import re

#: Of these every error line holds one. (At least seven bytes each.)
ERROR_LITERALS = frozenset(
    (
        b" error: ", b":error: ", b"ERROR: ", b" Error: ", b"Error 1\n", b"fatal error", b"LLVM ERROR",
        b"FAILED: ", b": *** [", b"  Stop.", b" Killed", b"Segmentation fault", b"multiple definition of ",
        b"undefined reference",
        b"ssertion `", b"ssertion fail", b"PLEASE submit a bug", b"Kernel panic - not", b"BUG: kernel ",
        b"BUG: unable ", b"BUG: KASAN", b"BUG: KFENCE", b"kernel BUG at ",
        b"Internal error: ", b"unable to handle", b"Unable to handle", b"general protection",
        b"command not found", b"No rule to make target", b"CFI failure", b"WARNING: CPU: ",
        b"unknown symbol", b"Unknown symbol", b"no space left", b"No space left", b"Bus error",
        b"Aborted", b"cannot find ", b"cannot open ", b"not recognized", b"failed to ", b"Failed to ",
        b"Fatal error", b"FATAL: ", b"fatal: ", b"Out of memory", b"disagrees about version",
        b"Exec format error", b"internal compiler error",
    )
)  # fmt: skip
WARNING_LITERALS = frozenset((b"warning: ", b"WARNING: ", b"Warning: "))

#: What prefixes a line: CI and container time stamps, the kernel's and journald's, quoting.
_PREFIX = re.compile(r"^(?:[>|#\s]|\d{4}-\d\d-\d\dT[\d:.,+Z-]+|<\d+>|\[[\s\d.T:-]+\]|\d+\.\d+(?=\s))*+\s*+")

_ERROR = re.compile(
    r"(?:^|[\s:;])(?:fatal )?error: |\bERROR: |\b(?:Fatal |Internal )?[Ee]rror: |\bLLVM ERROR\b|\bFAILED: |\bFATAL: "
    r"|^fatal: |: \*\*\* |\bKilled\b|\bSegmentation fault\b|\bBus error\b|\bAborted\b|undefined reference"
    r"|multiple definition of "
    r"|\b[Aa]ssertion (?:'|`|fail)|PLEASE submit a bug|Kernel panic - not|\bkernel BUG at "
    r"|\bBUG: (?:kernel |unable |KASAN|KFENCE)|\bnable to handle "
    r"|[Uu]nable to handle |\bgeneral protection|command not found|No rule to make target|\bCFI failure"
    r"|\bWARNING: CPU: |[Uu]nknown symbol\b|[Nn]o space left|\bcannot (?:find|open) |file (?:format )?not recognized"
    r"|\bnot recognized as|Out of memory: |disagrees about version|Exec format error|internal compiler error"
    r"|^(?:\S+: )?[Ff]ailed to (?:load|create|attach|encode|open|write|read|allocate|execute|link|compile|parse)\b"
)
#: Not errors, though they look like some.
_HARMLESS = re.compile(
    r"(?:^|\s)-W(?:no-)?error|\b0 errors?\b|ignored\)?$|\*\*\* (?:Waiting for unfinished|Deleting )"
    r"|^\s+(?:CC|LD|AR|AS|HOSTCC|GEN|OBJCOPY|CHK|UPD|LTO)\b|\berrors?=remount|\*\*\* (?:Configuration|Execute|End of)"
    r"|ACPI (?:BIOS )?(?:Error|Exception)|savedcmd_|cmd_\S+ := |\*\*\* (?:Default|Please)"
)
_CONSEQUENCE = re.compile(
    r"Kernel panic - not syncing: (?:Fatal exception|Oops|BRK handler)"
    r"|too many errors emitted, stopping now|linker command failed with exit code|ld(?:\.lld)? returned \d+ exit status"
    r"|Failed to rename temporary file|: \*\*\* \[|compilation terminated"
    r"|clang(?:\+\+)?: error: (?:clang frontend|linker)"
    r"|unable to execute command|PLEASE submit a bug report|Failed to encode BTF|failed to attach (?:kprobe|BPF)"
    r"|at least one side of the expression must be absolute|PLEASE ATTACH THE FOLLOWING|Please, consider renaming"
    r"|run standard error"
)
_WARNING = re.compile(r"(?:^|[\s:])(?:warning|WARNING|Warning): ")


def without_prefix(text: str) -> str:
    """A line without the time stamps and quoting in front of it."""
    return text[_PREFIX.match(text).end() :]  # type: ignore[union-attr]


def is_error(text: str) -> bool:
    """Whether a line speaks of an error."""
    bare = without_prefix(text)
    if not _ERROR.search(bare) or _HARMLESS.search(bare):
        return False
    return not (
        _WARNING.search(bare) and "WARNING: CPU: " not in bare and not re.search(r"\berror: |ERROR: ", bare)
    )


def is_consequence(text: str) -> bool:
    """Whether an error line only follows from another: make's report, the end of a tool that failed."""
    return _CONSEQUENCE.search(text) is not None


def is_warning(text: str) -> bool:
    """Whether a line is a warning."""
    return _WARNING.search(text) is not None


_NUMBERS = re.compile(r"\b0x[0-9a-fA-F]+|\b\d+\b|(?<=\+)[0-9a-fx]+")
_QUOTED = re.compile(r"'[^']{1,200}'|\"[^\"]{1,200}\"")
_NAMES = re.compile(r"[\w.$+-]*[./_+][\w./$+-]*(?:\(\))?")


def fold_key(text: str) -> str:
    """What two warnings have in common that differ in files, symbols and numbers only."""
    bare = without_prefix(text)
    begin = _WARNING.search(bare)
    bare = bare[begin.start() :] if begin else bare
    bare = _QUOTED.sub("*", bare[:300])
    return _NUMBERS.sub("#", _NAMES.sub("*", bare))
