"""The proof ``livepatch-names``: functions that a live patch names are to be found in kallsyms, each once.

kernel/livepatch/core.c, klp_find_object_symbol, takes a name only when vmlinux has it once.
"""

from __future__ import annotations

from pathlib import Path

from klto.boot.initramfs import regular
from klto.boot.proofs import Finding, Heard, NotApplicable, Step
from klto.boot.subject import Subject
from klto.errors import UsageError

#: Names and bytes that init can look for at once (init/proofs.h, prove_names).
_MOST_NAMES, _MOST_BYTES = 1 << 16, 1 << 21

#: Problems that are shown.
_SHOWN = 20


def prepare(subject: Subject) -> tuple[Step, ...]:
    """Give init the list.

    :raises NotApplicable: when there is none.
    """
    if subject.names is None:
        raise NotApplicable("needs a list of functions: --names FILE")
    names = read_names(subject.names)
    content = "".join(f"{name}\n" for name in names).encode()
    return (Step("livepatch-names", _check, files=(regular("klto/names", content),)),)


def read_names(path: Path) -> list[str]:
    """The names in a file, one a line, sorted by their bytes; what follows ``#`` is a comment.

    :raises UsageError: when the file cannot be read, has no names, or what is no symbol's name.
    """
    try:
        lines = path.read_text("ascii").splitlines()
    except OSError as error:
        raise UsageError(
            f"cannot read {path}: {error.strerror}", "--names takes a file, one function a line"
        ) from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: names of functions are ASCII") from error
    names: set[str] = set()
    for number, line in enumerate(lines, 1):
        name = line.partition("#")[0].strip()
        if " " in name or "\t" in name:
            raise UsageError(f"{path}:{number}: expected one name, found {name!r}")
        if name:
            names.add(name)
    if not names:
        raise UsageError(f"{path} has no names", "one function a line")
    if len(names) > _MOST_NAMES or sum(len(name) + 1 for name in names) >= _MOST_BYTES:
        raise UsageError(f"{path} has too many names: {len(names)}", f"at most {_MOST_NAMES}")
    return sorted(names)


def _check(heard: Heard) -> Finding:
    found = {
        key.removeprefix("name:"): tuple(map(int, value.split()))
        for key, value in heard.facts.items()
        if key.startswith("name:")
    }
    lines = [
        line for name, (exact, suffixed) in sorted(found.items()) if (line := _problem(name, exact, suffixed))
    ]
    notes = [
        f"{name} is {name}.llvm.* in kallsyms: a promoted local"
        for name, (exact, suffixed) in sorted(found.items())
        if (exact, suffixed) == (0, 1)
    ]
    facts = heard.facts
    summary = f"{facts.get('checked')} names looked for among {facts.get('symbols')} symbols"
    if lines:
        return Finding(lines[0], (*lines[1:_SHOWN], summary, *notes[:_SHOWN]))
    return Finding(None, (summary, *notes[:_SHOWN]))


def _problem(name: str, exact: int, suffixed: int) -> str | None:
    """What keeps a live patch from finding one function; ``suffixed`` counts ``NAME.llvm.<hash>``."""
    if exact + suffixed == 0:
        return f"{name} is not in kallsyms: inlined everywhere, renamed, or never there"
    if exact + suffixed > 1:
        return f"{name} is ambiguous: kallsyms has it {exact + suffixed} times"
    return None
