"""The order of initcalls after the link, against the objects' order: vmlinux's tables, and a boot's log.

Tables: include/asm-generic/vmlinux.lds.h, INIT_CALLS and CON_INITCALL (6.1 and 6.12); what is in them:
include/linux/init.h, ____define_initcall.
"""

from __future__ import annotations

import re
import struct
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from klto.errors import UsageError
from klto.kernel.initcalls import Initcall, in_run_order, split_name
from klto.objects.elf import SHT_NOBITS, Elf
from klto.objects.source import read_whole

_PREFIX, _STUB = "__initcall__", "__initstub__"
#: First and last symbol of each table, in the order in which start_kernel comes to them.
_TABLES = (("__con_initcall_start", "__con_initcall_end"), ("__initcall_start", "__initcall_end"))
#: Entries are 32-bit distances with CONFIG_HAVE_ARCH_PREL32_RELOCATIONS (x86_64, arm64), pointers without.
_DISTANCE, _POINTER = 4, 8
#: init/main.c, trace_initcall_start_cb (6.1 and 6.12): what ``initcall_debug`` prints before each call. The
#: consoles' initcalls are not announced (kernel/printk/printk.c, console_init).
#: At a line's begin, behind time and caller at most: PCI's fixups are traced in the same words behind their device's
#: name (drivers/pci/quirks.c, fixup_debug_start).
_CALLING = re.compile(
    r"^(?:<\d+>)?(?:\[[^\]\n]*\] ?)*calling  (\S+)\+0x[0-9a-f]+/0x[0-9a-f]+(?: \[\S+\])? @ \d+", re.M
)


@dataclass(frozen=True)
class Entry:
    """An entry of an initcall table.

    :ivar name: its symbol without ``__initcall__``: the initcall's id and level.
    :ivar target: names of what it calls; several when functions were merged.
    """

    address: int
    name: str
    target: frozenset[str]


class _Image:
    """Addresses, symbols and bytes of a linked ELF file."""

    def __init__(self, elf: Elf) -> None:
        self.elf = elf
        table = elf.symtab
        if table is None:
            raise UsageError(
                f"{elf.where}: has no symbol table", "give vmlinux, not a stripped copy or a boot image"
            )
        self.names = table.name_column
        self.values = table.table["st_value"]
        self.defined = table.section != 0
        self._order = np.argsort(self.values, kind="stable")
        self._sorted = self.values[self._order]
        sections = elf.sections
        self.mapped = sections[(sections["sh_addr"] > 0) & (sections["sh_type"] != SHT_NOBITS)]

    def address(self, name: str) -> int | None:
        """The address of a symbol; of several a global one's."""
        found = np.flatnonzero(self.names.equal(name) & self.defined)
        if not len(found):
            return None
        table = self.elf.symtab
        assert table is not None
        shown = found[table.table["st_info"][found] >> 4 != 0]
        return int(self.values[shown[-1] if len(shown) else found[0]])

    def initcalls(self) -> dict[int, str]:
        """Addresses of the entries to their symbols; two objects may have symbols of one name."""
        numbers = np.flatnonzero(self.names.starting(_PREFIX) & self.defined)
        named = zip(self.values[numbers].tolist(), self.names.at(numbers), strict=True)
        return {address: name for address, name in named if split_name(name)}

    def at(self, address: int) -> list[str]:
        """Names of the symbols at an address."""
        first = np.searchsorted(self._sorted, address, "left")
        after = np.searchsorted(self._sorted, address, "right")
        return [self.names[i] for i in self._order[first:after].tolist() if self.defined[i]]

    def offset(self, address: int, size: int) -> int:
        """Where in the file the ``size`` bytes at an address are.

        :raises MalformedObject: when they are in no section of it.
        """
        begin = self.mapped["sh_addr"]
        inside = (begin <= address) & (begin + self.mapped["sh_size"] >= address + size)
        for section in self.mapped[inside]:
            offset = int(section["sh_offset"]) + address - int(section["sh_addr"])
            if offset + size <= len(self.elf.data):
                return offset
        shoff = self.elf.header.e_shoff
        raise self.elf.malformed(
            shoff, f"expected a section with {size} bytes at address {address:#x}, found none"
        )

    def word(self, address: int, size: int) -> int:
        """The word at an address: a distance has a sign."""
        kind = "i" if size == _DISTANCE else "Q"
        where = self.offset(address, size)
        return int(struct.unpack_from(f"{self.elf.header.order}{kind}", self.elf.data, where)[0])


def read_tables(vmlinux: Path) -> list[Entry]:
    """The entries of vmlinux's initcall tables, in the order in which the kernel runs them.

    :raises MalformedObject: when vmlinux is broken, or a table has a place without an initcall's symbol.
    :raises UsageError: when it has no initcall tables or no symbols.
    """
    return tables_of(Elf(read_whole(vmlinux), str(vmlinux)))


def tables_of(elf: Elf) -> list[Entry]:
    """As :func:`read_tables`, of a file that is open."""
    image = _Image(elf)
    labels = image.initcalls()
    found: list[Entry] = []
    for first, last in _TABLES:
        begin, end = image.address(first), image.address(last)
        if begin is None or end is None:
            raise UsageError(f"{elf.where}: has no symbol {first} or {last}", "give vmlinux as it is linked")
        count = sum(begin <= address < end for address in labels)
        size = _POINTER if count * _POINTER == end - begin else _DISTANCE
        for address in range(begin, end, size):
            if address not in labels:
                where = image.offset(address, size)
                raise image.elf.malformed(where, f"expected an initcall's symbol at {address:#x}, found none")
            word = image.word(address, size)
            target = (address + word) if size == _DISTANCE else word
            found.append(Entry(address, labels[address].removeprefix(_PREFIX), frozenset(image.at(target))))
    return found


def differences(expected: Sequence[Initcall], entries: Sequence[Entry]) -> list[str]:
    """What is wrong with the order in vmlinux, one line each; none when it is the objects' order.

    :param expected: what :func:`klto.kernel.initcalls.read_initcalls` gave of the link's inputs.
    """
    wanted = [(initcall.id + initcall.level, initcall) for initcall in in_run_order(expected)]
    ours, theirs = [name for name, _ in wanted], [entry.name for entry in entries]
    lines = [f"{name} is in no table" for name in (Counter(ours) - Counter(theirs)).elements()]
    extra = (Counter(theirs) - Counter(ours)).elements()
    lines += [f"{name} is in a table, but in none of the link's inputs" for name in extra]
    if not lines and ours != theirs:
        place = next(i for i in range(len(ours)) if ours[i] != theirs[i])
        lines.append(f"initcall {place} is {theirs[place]}, but the objects' order has {ours[place]} there")
    targets = {entry.name: entry.target for entry in entries}
    for name, initcall in wanted:
        target = targets.get(name, frozenset())
        # Without a stub (no LTO) the entry points at the function, whose name may have got a suffix.
        if (
            target
            and f"{_STUB}{name}" not in target
            and not any(t.split(".")[0] == initcall.function for t in target)
        ):
            lines.append(f"the entry of {name} calls {', '.join(sorted(target))}")
    return lines


def calls_in_log(log: str) -> list[str]:
    """The functions that a booting kernel has called as initcalls, from its console's ``initcall_debug`` lines.

    :returns: names as kallsyms has them, in order; with LTO the stubs, without their prefix: id and level.
    """
    return [name.removeprefix(_STUB) for name in _CALLING.findall(log)]


def log_differences(expected: Sequence[Initcall], calls: Sequence[str]) -> list[str]:
    """How a boot with ``initcall_debug`` differs from the objects' order, one line each; none when it does not.

    :param calls: what :func:`calls_in_log` found; calls behind the last initcall are those of modules.
    """
    wanted = [initcall for initcall in in_run_order(expected) if not initcall.level.startswith("con")]
    for place, initcall in enumerate(wanted):
        found = calls[place] if place < len(calls) else "nothing"
        if found != initcall.id + initcall.level and found.split(".")[0] != initcall.function:
            return [
                f"initcall {place} was {found}, but the objects' order has {initcall.id}{initcall.level} there"
            ]
    return []
