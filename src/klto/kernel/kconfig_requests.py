"""What a user asks of a configuration, and configuration files as text.

Names are without ``CONFIG_``; values are as in ``.config``: ``y``, ``m``, ``17``, ``0x10``, ``"text"`` with
its quotes. An option that is off is ``n`` in a request and not there in a file read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from klto.errors import UsageError

#: The members of the choice "Link Time Optimization (LTO)" of arch/Kconfig (6.1 and 6.12), by klto's names.
LTO_OPTIONS = {"thin": "LTO_CLANG_THIN", "full": "LTO_CLANG_FULL", "none": "LTO_NONE"}

_NUMBER = r"-?[0-9]+|0[xX][0-9a-fA-F]+|[0-9a-fA-F]+"
_STRING = r'"(?:[^"\\\n]|\\[^\n])*"'
_VALUE = re.compile(rf"[ymn]|{_NUMBER}|{_STRING}")
_ASSIGNMENT = re.compile(r"CONFIG_([A-Za-z0-9_]+)=(.*)")
_NOT_SET = re.compile(r"# CONFIG_([A-Za-z0-9_]+) is not set")

#: A line that scripts/kconfig/confdata.c (6.1, 6.12) takes or skips in silence; it only warns about others.
_TAKEN = re.compile(rb"#|CONFIG_[^=\n]*=|\r?$")
#: Configuration files as kconfig itself writes them.
_CANONICAL = re.compile(
    rb"(?:#[^\n]*\n|\n|CONFIG_[A-Za-z0-9_]+=(?:[ymn]|%s|%s)\n)*" % (_NUMBER.encode(), _STRING.encode())
)


@dataclass(frozen=True)
class Request:
    """One option's wanted value and who asked: ``-K``, ``--lto thin`` or ``FILE:LINE``."""

    name: str
    value: str
    origin: str

    @property
    def option(self) -> str:
        """``CONFIG_NAME``."""
        return f"CONFIG_{self.name}"

    def line(self) -> str:
        """As a line of a configuration file."""
        return f"# {self.option} is not set" if self.value == "n" else f"{self.option}={self.value}"

    def survived(self, got: str | None) -> bool:
        """Whether ``got``, the value in a configuration or None, is what was asked for."""
        if got is None or got == "n":
            return self.value == "n"
        if self.value == got:
            return True
        asked_number, got_number = _number(self.value, got), _number(got, got)
        return asked_number is not None and asked_number == got_number


def _number(text: str, like: str) -> int | None:
    """The number that ``text`` is for a symbol whose value in the configuration is ``like``: hex symbols are
    written with 0x (confdata.c) and may be asked for without."""
    if re.fullmatch(_NUMBER, text) is None:
        return None
    try:
        return int(text, 16 if like[:2] in ("0x", "0X") else 10)
    except ValueError:
        return None


@dataclass(frozen=True)
class Requests:
    """All that is asked for, each option once: whoever asks last wins, as in scripts/kconfig/merge_config.sh.

    The three LTO modes exclude each other, so asking for one withdraws an earlier one.
    """

    items: tuple[Request, ...] = ()

    def __iter__(self) -> Iterator[Request]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)

    def get(self, name: str) -> Request | None:
        """The request for an option, or None."""
        return next((r for r in self.items if r.name == name), None)

    @property
    def lto(self) -> str | None:
        """``thin``, ``full`` or ``none`` when one is asked for."""
        for mode, name in LTO_OPTIONS.items():
            asked = self.get(name)
            if asked is not None and asked.value == "y":
                return mode
        return None

    def merged(self, later: Requests) -> Requests:
        """These and then ``later``'s."""
        kept: dict[str, Request] = {r.name: r for r in self.items}
        for request in later:
            if request.name in LTO_OPTIONS.values() and request.value == "y":
                for other in LTO_OPTIONS.values():
                    if other in kept and kept[other].value == "y":
                        del kept[other]
            kept.pop(request.name, None)
            kept[request.name] = request
        return Requests(tuple(kept.values()))

    def lost_in(self, config: Mapping[str, str]) -> list[Request]:
        """The requests that ``config`` (of :func:`read_config`) does not fulfil."""
        return [r for r in self.items if not r.survived(config.get(r.name))]


def lto_requests(mode: str) -> Requests:
    """``--lto thin|full|none`` as requests; nothing for ``keep``."""
    if mode == "keep":
        return Requests()
    return Requests((Request(LTO_OPTIONS[mode], "y", f"--lto {mode}"),))


def parse_requests(items: Sequence[str]) -> Requests:
    """``-K``'s arguments, in their order: ``CONFIG_X=value`` or the path of a fragment.

    A shell eats the quotes of ``CONFIG_X="text"``: what is neither y, m, n nor a number is taken as text.

    :raises UsageError: no such file, or something that is no option.
    """
    requests = Requests()
    for item in items:
        if item.startswith("CONFIG_"):
            requests = requests.merged(Requests((_parse_argument(item),)))
        elif "=" in item and not Path(item).exists():
            raise UsageError(
                f"-K '{item}' is neither a file nor CONFIG_X=value", f"options are written -K CONFIG_{item}"
            )
        else:
            requests = requests.merged(read_fragment(Path(item)))
    return requests


def _parse_argument(item: str) -> Request:
    found = re.fullmatch(r"CONFIG_([A-Za-z0-9_]+)=(.*)", item, re.DOTALL)
    if found is None:
        raise UsageError(f"-K '{item}' is no option", "write -K CONFIG_X=y, =m, =n, =17, =0x10 or =text")
    name, value = found.groups()
    if "\n" in value:
        raise UsageError(f"-K CONFIG_{name}: a value cannot have a newline", "write it in one line")
    if _VALUE.fullmatch(value) is None:
        value = '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return Request(name, value, "-K")


def read_fragment(path: Path) -> Requests:
    """The options that a configuration fragment sets, with ``# CONFIG_X is not set`` for n.

    :raises UsageError: unreadable, or a line that is none, by its number.
    """
    requests = Requests()
    for number, line in enumerate(_read(path).decode("utf-8", "replace").split("\n"), 1):
        request = _parse_line(line, path, number)
        if request is not None:
            requests = requests.merged(Requests((request,)))
    return requests


def _parse_line(line: str, path: Path, number: int) -> Request | None:
    if not line.strip():
        return None
    if line.startswith("#"):
        unset = _NOT_SET.fullmatch(line.rstrip())
        return Request(unset[1], "n", f"{path}:{number}") if unset else None
    assignment = _ASSIGNMENT.fullmatch(line.rstrip())
    if assignment is None or _VALUE.fullmatch(assignment[2]) is None:
        raise UsageError(
            f"{path}:{number}: not an option: {_shown(line)}",
            'write CONFIG_X=y, =m, =n, =17, =0x10, ="text" or # CONFIG_X is not set',
        )
    return Request(assignment[1], assignment[2], f"{path}:{number}")


def _shown(line: str) -> str:
    """A line of unknown origin, fit for a terminal and one line."""
    return repr(line if len(line) <= 60 else line[:57] + "...")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise UsageError(f"no such configuration file: {path}", "check the path") from error
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error


def read_config(path: Path) -> dict[str, str]:
    """The options of a configuration file that are on (0.5 ms for a kernel's)."""
    pairs = re.findall(rb"(?m)^CONFIG_([A-Za-z0-9_]+)=(.*?)\r?$", _read(path))
    return {name.decode(): value.decode("utf-8", "replace") for name, value in pairs if value != b"n"}


def lto_of(path: Path) -> str:
    """``thin``, ``full`` or ``none``: the LTO of a configuration file."""
    config = read_config(path)
    return next((mode for mode in ("thin", "full") if config.get(LTO_OPTIONS[mode]) == "y"), "none")


def is_canonical(path: Path) -> bool:
    """Whether the file is as kconfig writes it, so that kconfig would have nothing to say about it."""
    return _CANONICAL.fullmatch(_read(path)) is not None


def check_config(path: Path) -> bytes:
    """A configuration file's content.

    :raises UsageError: unreadable, or holding a line that kconfig would drop with a warning, by its number.
    """
    content = _read(path)
    for number, line in enumerate(content.split(b"\n"), 1):
        if _TAKEN.match(line) is None:
            raise UsageError(
                f"{path}:{number}: not a configuration line: {_shown(line.decode('utf-8', 'replace'))}",
                "remove the line (kconfig would only warn and drop it), or make the file anew with -k",
            )
    return content


def without(content: bytes, names: frozenset[str]) -> list[tuple[int, bytes]]:
    """The lines of a configuration, numbered from 1, that do not set one of ``names``."""
    pattern = re.compile(rb"(?:# )?CONFIG_([A-Za-z0-9_]+)(?:=| is not set)")
    kept = []
    for number, line in enumerate(content.split(b"\n"), 1):
        found = pattern.match(line)
        if found is None or found[1].decode() not in names:
            kept.append((number, line))
    return kept
