"""What a build dir says about a failure: what ``ld-temp.o`` really is, whose flag it is, where a section came from."""

from __future__ import annotations

import mmap
import os
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from klto.objects.archive import Member, leaves, read_archive
from klto.objects.errors import MalformedObject

#: Archives that hold vmlinux's objects: since 6.1, and before (scripts/Makefile.vmlinux_o, scripts/link-vmlinux.sh).
_ARCHIVES = ("vmlinux.a", "built-in.a")
#: Objects that an answer names.
_SHOWN = 5
#: Module flag to the compiler's option that sets it (clang/lib/CodeGen/CodeGenModule.cpp, Release).
FLAG_OPTIONS = {
    "Code Model": "-mcmodel=",
    "override-stack-alignment": "-mstack-alignment=",
    "kcfi-offset": "-fpatchable-function-entry=",
    "cfi-normalize-integers": "-fsanitize-cfi-icall-experimental-normalize-integers",
    "stack-protector-guard": "-mstack-protector-guard=",
    "stack-protector-guard-offset": "-mstack-protector-guard-offset=",
    "stack-protector-guard-reg": "-mstack-protector-guard-reg=",
    "branch-target-enforcement": "-mbranch-protection=",
    "sign-return-address": "-mbranch-protection=",
    "target-abi": "-mabi=",
    "PIC Level": "-fpic",
}
_SAVED = re.compile(r"^(?:saved)?cmd_\S+ := (.*)$", re.M)
_SOURCE = re.compile(r"^source_\S+ := (\S+)$", re.M)
_AT = re.compile(r"(?P<archive>[\w./+-]+\.a)\([\w.+-]+ at (?P<offset>\d+)\)")
#: A symbol that a section was made for: -ffunction-sections and -fdata-sections name it so.
_SECTION = re.compile(
    r"^\.?(?:text|data|rodata|bss|init\.text|exit\.text)(?:\.(?:hot|unlikely|startup|exit|unknown))?\.(?P<symbol>[\w$]+?)(?:\.\d+)?$"
)


@dataclass(frozen=True)
class _Named:
    """An object that has a symbol."""

    name: str
    defined: bool
    from_asm: bool
    kind: str


class BuildDir:
    """A build dir to ask; nothing in it need be there.

    :ivar path: where it is.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @cached_property
    def members(self) -> list[Member]:
        """vmlinux's objects, empty when there is no archive of them or it is broken."""
        for name in _ARCHIVES:
            try:
                return list(leaves(read_archive(self.path / name)))
            except MalformedObject:
                continue
        return []

    @cached_property
    def bitcode_members(self) -> list[Member]:
        """Those of :attr:`members` that are bitcode."""
        found = []
        for member in self.members:
            try:
                if member.kind() == "bitcode":
                    found.append(member)
            except MalformedObject:
                continue  # It was removed since.
        return found

    def member_at(self, name: str) -> str | None:
        """The object that ``vmlinux.a(fork.o at 2432)`` names, by the offset of its header."""
        found = _AT.search(name)
        if not found:
            return None
        try:
            members = read_archive(self.path / found["archive"]).members
        except MalformedObject:
            return None
        offset = int(found["offset"])
        return next((self._short(m) for m in members if m.header_offset == offset), None)

    def with_symbol(self, symbol: str) -> list[_Named]:
        """Objects of vmlinux that define or use a symbol."""
        return list(self._with_symbol(symbol))

    def _with_symbol(self, symbol: str) -> Iterator[_Named]:
        from klto.objects import parse_object

        wanted = symbol.encode()
        for member in self.members:
            if member.path is None or not _holds(member.path, wanted):
                continue
            try:
                what = parse_object(member.data(), member.where)
                for entry in what.symbols():
                    if entry.name == symbol:
                        yield _Named(self._short(member), entry.defined, bool(entry.from_asm), what.kind)
                        break
            except MalformedObject:
                continue

    def option_values(self, option: str) -> dict[str, list[str]]:
        """Bitcode modules of vmlinux by the value that their saved command gives an option (the last one counts)."""
        values: dict[str, list[str]] = defaultdict(list)
        for member in self.bitcode_members:
            command = self.command(self._short(member))
            if command is None:
                continue
            words = [word for word in command.split() if word.startswith(option)]
            values[words[-1] if words else f"no {option.rstrip('=')}"].append(self._short(member))
        return dict(values)

    def command(self, target: str) -> str | None:
        """The saved command of a target, None when there is none."""
        found = _SAVED.search(self._cmd_file(target))
        return found[1] if found else None

    def source(self, target: str) -> str | None:
        """The source file of an object as Kbuild saved it, relative to the tree when it lies below it."""
        found = _SOURCE.search(self._cmd_file(target))
        if not found:
            return None
        name = found[1]
        folder = os.path.dirname(target)
        at = name.find(f"/{folder}/") if folder else -1
        return name[at + 1 :] if name.startswith(("/", "..")) and at >= 0 else name

    def _cmd_file(self, target: str) -> str:
        folder, name = os.path.split(target)
        try:
            return (self.path / folder / f".{name}.cmd").read_text("utf-8", "replace")
        except (OSError, ValueError):
            return ""

    def _short(self, member: Member) -> str:
        if member.path is None:
            return member.name
        return os.path.relpath(member.path, self.path)


def look(build_dir: BuildDir, text: str, captures: Mapping[str, str]) -> tuple[list[str], dict[str, str]]:
    """Sentences about a line and what was caught of it, and further captures (``path``: what ``--no-lto`` takes)."""
    said: list[str] = []
    more: dict[str, str] = {}
    if "ld-temp.o" in text and build_dir.bitcode_members:
        # lld/ELF/LTO.cpp and llvm/lib/LTO/LTO.cpp: the combined module of regular LTO has this name.
        count = len(build_dir.bitcode_members)
        said.append(
            f"ld-temp.o is no file: it is the module that LTO merged of vmlinux's {count} bitcode objects"
        )
    for name in ("member", "object", "other", "culprit", "file"):
        found = build_dir.member_at(captures.get(name, ""))
        if found:
            source = build_dir.source(found)
            said.append(f"{captures[name]} is {found}" + (f", compiled from {source}" if source else ""))
            more.setdefault("path", source or found)
    option = FLAG_OPTIONS.get(captures.get("option", ""))
    if option:
        said += _who_has(build_dir, option, more)
    for symbol in _symbols(captures):
        said += _who_names(build_dir, symbol, more)
    return said, more


def _symbols(captures: Mapping[str, str]) -> Iterator[str]:
    seen = set()
    section = _SECTION.match(captures.get("section", ""))
    names = (captures.get("symbol"), captures.get("function"), section["symbol"] if section else None)
    for name in names:
        if name and name not in seen and not name.startswith("."):
            seen.add(name)
            yield name


def _who_names(build_dir: BuildDir, symbol: str, more: dict[str, str]) -> Iterator[str]:
    found = build_dir.with_symbol(symbol)
    definers = [f for f in found if f.defined]
    users = [f for f in found if not f.defined]
    if definers:
        one = definers[0]
        source = build_dir.source(one.name)
        how = "in assembly" if one.from_asm or (one.kind == "elf" and (source or "").endswith(".S")) else ""
        places = _some([d.name + (f" ({s})" if (s := build_dir.source(d.name)) else "") for d in definers])
        yield f"{symbol} is defined {how + ' ' if how else ''}by {places}"
        more.setdefault("path", source or one.name)
    if users:
        yield f"{symbol} is used by {_some([u.name for u in users])}"
        if not definers:
            more.setdefault("path", build_dir.source(users[0].name) or users[0].name)


def _who_has(build_dir: BuildDir, option: str, more: dict[str, str]) -> Iterator[str]:
    values = build_dir.option_values(option)
    if len(values) < 2:
        return
    by_size = sorted(values.items(), key=lambda item: len(item[1]))
    yield f"most objects ({len(by_size[-1][1])}) have {by_size[-1][0]}"
    for value, objects in by_size[:-1]:
        yield f"{value}: {_some(objects)}"
    first = by_size[0][1][0]
    more.setdefault("path", build_dir.source(first) or first)


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _holds(path: str, name: bytes) -> bool:
    """Whether the file's bytes hold the name; symbol names are never compressed."""
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return data.find(name) >= 0
    except (OSError, ValueError):
        return False
