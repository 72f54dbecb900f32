"""The proof that a merged object is the same: contents, symbols, relocations, alignment, entry."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from klto.objects.elf import SHF_ALLOC, SHT_NOBITS, Elf
from klto.objects.relocations import RelocationReader

if TYPE_CHECKING:
    from klto.check.rejoin import Joined

_STT_SECTION, _STT_FILE = 3, 4
_SHF_MERGE = 0x10

#: Where something lies in the result: (section name, offset).
_Place = tuple[str, int]


def prove(before: Elf, after: Elf, plan: Sequence[Joined], entry: str | None) -> list[str]:
    """What is different, one line each; nothing when the result is right.

    Each section's place in the result follows from order, size and alignment alone, and every byte, symbol and
    relocation has to be where that says.
    """
    proof = _Proof(before, after, plan)
    return [*proof.sections(), *proof.symbols(), *proof.relocations(), *proof.entry(entry)]


class _Proof:
    def __init__(self, before: Elf, after: Elf, plan: Sequence[Joined]) -> None:
        self.before, self.after = before, after
        self.index = {name: i for i, name in enumerate(after.section_names)}
        self.place: dict[int, _Place] = {}
        for joined in plan:
            offset = 0
            for part in joined.parts:
                row = before.sections[part]
                align = max(1, int(row["sh_addralign"]))
                offset = -(-offset // align) * align
                self.place[part] = (joined.name, offset)
                offset += int(row["sh_size"])
        for number, name in enumerate(before.section_names):
            self.place.setdefault(number, (name, 0))

    def _loaded(self) -> Iterator[int]:
        for number in range(1, len(self.before.sections)):
            row = self.before.sections[number]
            if int(row["sh_flags"]) & SHF_ALLOC and int(row["sh_size"]):
                yield number

    def sections(self) -> Iterator[str]:
        """Every loaded section's bytes are at its place, aligned as before, in a section of the same flags."""
        for number in self._loaded():
            name, offset = self.place[number]
            row, old = self.before.sections[number], self.before.section_names[number]
            if name not in self.index:
                yield f"section {old} is gone"
                continue
            new = self.after.sections[self.index[name]]
            if int(new["sh_addralign"]) < int(row["sh_addralign"]):
                yield f"{name} is aligned to {new['sh_addralign']}, {old} needs {row['sh_addralign']}"
            if (int(new["sh_flags"]) ^ int(row["sh_flags"])) & 0x7:
                yield f"{name} has flags {int(new['sh_flags']):#x}, {old} had {int(row['sh_flags']):#x}"
            if int(row["sh_type"]) == SHT_NOBITS:
                if offset + int(row["sh_size"]) > int(new["sh_size"]):
                    yield f"{old} does not fit into {name}"
                continue
            if int(row["sh_flags"]) & _SHF_MERGE:
                continue  # Equal strings may have become one: what refers to them is compared instead.
            content = bytes(self.after.content(self.index[name])[offset : offset + int(row["sh_size"])])
            if content != bytes(self.before.content(number)):
                yield f"the bytes of {old} are not at {name}+{offset:#x}"

    def symbols(self) -> Iterator[str]:
        """Every symbol is there with its place, size, type, binding and visibility, as often as before."""
        missing = Counter(self._symbols(self.before, moved=True))
        missing.subtract(Counter(self._symbols(self.after, moved=False)))
        for symbol, count in missing.items():
            if count > 0:
                yield f"symbol {symbol[0]} is not at {symbol[1]}+{symbol[2]:#x}"
            elif count < 0 and symbol[0]:
                yield f"symbol {symbol[0]} at {symbol[1]}+{symbol[2]:#x} was not there"

    def _symbols(self, elf: Elf, *, moved: bool) -> Iterator[tuple[str, str, int, int, int, int]]:
        symtab = elf.symtab
        if symtab is None:
            return
        names = elf.section_names
        for number in range(1, len(symtab)):
            row = symtab.table[number]
            kind, section = int(row["st_info"]) & 15, int(symtab.section[number])
            if kind in (_STT_SECTION, _STT_FILE):
                continue
            if (
                section > 0
                and int(elf.sections["sh_flags"][section]) & _SHF_MERGE
                and not symtab.names[number]
            ):
                continue
            name, offset = self._at(elf, names, section, int(row["st_value"]), moved=moved)
            if section < 0:
                name, offset = f"section {int(row['st_shndx'])}", int(row["st_value"])
            info, other = int(row["st_info"]), int(row["st_other"])
            yield symtab.names[number], name, offset, int(row["st_size"]), info, other

    def _at(self, elf: Elf, names: Sequence[str], section: int, value: int, *, moved: bool) -> _Place:
        if section <= 0:
            return "", value
        if not moved:
            return names[section], value
        name, offset = self.place[section]
        return name, offset + value

    def relocations(self) -> Iterator[str]:
        """Every relocation is at its place and resolves to the same symbol and offset."""
        wanted = Counter(self._resolved(self.before, moved=True))
        wanted.subtract(Counter(self._resolved(self.after, moved=False)))
        for item, count in wanted.items():
            if count:
                (name, offset), kind, target = item
                what = "is missing" if count > 0 else "was not there"
                yield f"a relocation of type {kind} at {name}+{offset:#x} to {target} {what}"

    def _resolved(self, elf: Elf, *, moved: bool) -> Iterator[tuple[_Place, int, object]]:
        found = RelocationReader(elf).all
        symtab, names = elf.symtab, elf.section_names
        strings: dict[int, bytes] = defaultdict(bytes)
        rows = zip(found.section.tolist(), found.entries.tolist(), strict=True)
        for section, (offset, kind, symbol, addend) in rows:
            place = self._at(elf, names, section, offset, moved=moved)
            if not int(elf.sections["sh_flags"][section]) & SHF_ALLOC:
                continue
            target: object = ("", addend)
            if symtab is not None and symbol < len(symtab):
                row = symtab.table[symbol]
                inside = int(symtab.section[symbol])
                if inside > 0 and int(elf.sections["sh_flags"][inside]) & _SHF_MERGE:
                    if inside not in strings:
                        strings[inside] = bytes(elf.content(inside))
                    at = int(row["st_value"]) + addend
                    target = ("constant", self._constant(elf, inside, strings[inside], at, place, kind))
                elif inside > 0:
                    target = self._at(elf, names, inside, int(row["st_value"]) + addend, moved=moved)
                else:
                    target = (symtab.names[symbol], inside, addend)
            yield place, kind, target

    def _constant(
        self, elf: Elf, section: int, content: bytes, at: int, place: _Place, kind: int
    ) -> tuple[str, bytes]:
        """What a reference into mergeable constants means: the bytes there. PC-relative types of x86 count from
        behind the field, at most 8 bytes on; the same number before and after, so that either is the same."""
        name = elf.section_names[section]
        size = max(1, int(elf.sections["sh_entsize"][section]))
        begin = max(0, at)
        if size == 1:
            return name, content[begin : begin + 24]
        return name, content[begin : begin + size]

    def entry(self, symbol: str | None) -> Iterator[str]:
        """The header's entry is where the entry's symbol now is."""
        symtab = self.after.symtab
        if symbol is None or symtab is None:
            if self.before.header.e_entry != self.after.header.e_entry:
                yield f"the entry was {self.before.header.e_entry:#x} and is {self.after.header.e_entry:#x}"
            return
        number = symtab.by_name.get(symbol)
        value = int(symtab.table["st_value"][number]) if number is not None else -1
        if self.after.header.e_entry != value:
            yield f"the entry is {self.after.header.e_entry:#x}, {symbol} is at {value:#x}"
