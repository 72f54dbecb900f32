"""The order of initcalls, read from the objects that will be linked.

With LTO the linker sees one object and could order initcalls as it likes, so Kbuild gives each one a section
of its own and the linker a script that puts them in link order. Here are the inputs and the output of that
script's generator, scripts/generate_initcall_order.pl of 6.1 and 6.12 (the same file), without llvm-nm.

The whole command has a tenth of a second, so this file imports the standard library only, and little of it.
"""

from __future__ import annotations

from klto.errors import UsageError
from klto.objects import irsymtab
from klto.objects.archive import Archive
from klto.objects.errors import MalformedObject
from klto.objects.kind import kind_of_bytes
from klto.objects.nm import ElfSymbols, letter_of_ir
from klto.objects.source import read_whole

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from klto.objects.source import Buffer

#: __initcall_name in include/linux/init.h: __initcall__<module>__<counter>_<line>_<function><level>.
NEEDLE = b"__initcall__"
_PREFIX = NEEDLE.decode()
#: Levels as the script's expression has them, each with or without "s" behind.
_NAMED_LEVELS = ("early", "rootfs", "con")
#: The levels in the order in which a kernel runs them: console_init comes before the others
#: (init/main.c, start_kernel), then INIT_CALLS of include/asm-generic/vmlinux.lds.h.
_RUN_ORDER = ("con", "early", *(f"{n}{s}" for n in (0, 1, 2, 3, 4, 5, "rootfs", 6, 7) for s in ("", "s")))


class Initcall:
    """One initcall. Values; do not assign.

    :ivar object: the object that defines it: an archive's member, or the file itself.
    :ivar module: KBUILD_MODNAME behind "kmod_", as the name has it.
    :ivar counter: __COUNTER__ where it stands, which orders the initcalls of one object.
    :ivar level: ``early``, ``rootfs``, ``con``, or a digit; with ``s`` behind when synchronous.
    """

    __slots__ = ("counter", "function", "level", "line", "module", "object")

    def __init__(self, where: str, module: str, counter: str, line: str, function: str, level: str) -> None:
        self.object = where
        self.module = module
        self.counter = counter
        self.line = line
        self.function = function
        self.level = level

    @property
    def id(self) -> str:
        """``kmod_core__403_2214_init_hw_perf_events``: names its section and, with the level, its symbol."""
        return f"{self.module}__{self.counter}_{self.line}_{self.function}"

    @property
    def symbol(self) -> str:
        """``__initcall__kmod_core__403_2214_init_hw_perf_events6``: the pointer's own, as System.map has it."""
        return f"{_PREFIX}{self.id}{self.level}"


class NoInitcalls(UsageError):
    """No input has an initcall; the message says what the inputs are instead."""


def read_initcalls(paths: Sequence[str]) -> list[Initcall]:
    """The initcalls of archives and objects, in link order: by input, by member, by counter.

    Members that are neither ELF nor bitcode are passed over, as llvm-nm passes over them.

    :raises MalformedObject: when an input or a member is broken or has symbols that cannot be read.
    :raises NoInitcalls: when there are none.
    :raises UsageError: for a symbol that looks like an initcall's but has no level.
    """
    found = initcalls_of(item for path in paths for item in _objects(path))
    if not found:
        raise NoInitcalls(*_why_none(paths))
    return found


def initcalls_of(objects: Iterable[tuple[str, Buffer]]) -> list[Initcall]:
    """As :func:`read_initcalls`, of objects given by name and content; none when they have none."""
    found: list[Initcall] = []
    for where, data in objects:
        named = _symbols(where, data)
        if named:
            found += _of_object(where, named)
    return found


def _objects(path: str) -> Iterator[tuple[str, Buffer]]:
    data = read_whole(path)
    if kind_of_bytes(data) in ("archive", "thin-archive"):
        for member in Archive(path, data).members:
            yield member.where, member.data()
    else:
        yield path, data


def _symbols(where: str, data: Buffer) -> list[tuple[str, str]]:
    """Letter and name of the symbols whose names hold the prefix."""
    kind = kind_of_bytes(data)
    if kind == "bitcode":
        return _symbols_of_bitcode(where, data)
    if kind == "elf":
        return [(letter, name) for letter, name, _ in ElfSymbols(data, where).matching(NEEDLE)]
    return []


def _symbols_of_bitcode(where: str, data: Buffer) -> list[tuple[str, str]]:
    raw, base = irsymtab.unwrap(data, where)
    symtabs, strtab = [], None
    for block in irsymtab.top_level_blocks(raw, where, base):
        if block[0] == irsymtab.SYMTAB_BLOCK_ID:
            symtabs.append(block)
        elif block[0] == irsymtab.STRTAB_BLOCK_ID:
            strtab = block
    if len(symtabs) != 1 or strtab is None or symtabs[0][2] > strtab[2]:
        return _symbols_by_the_book(where, data)
    # All names of the symbol table lie here, and most modules have no initcall.
    if bytes(raw[strtab[2] : strtab[3]]).find(NEEDLE) < 0:
        return []
    symbols = irsymtab.blob_of(raw, *symtabs[0][1:], where, base)
    names = irsymtab.blob_of(raw, *strtab[1:], where, base)
    try:
        table = irsymtab.SymbolTable(symbols, names, where, base + symtabs[0][2])
    except irsymtab.UnknownSymbolTable:
        return _symbols_by_the_book(where, data)
    return [(letter_of_ir(flags), name) for name, flags in table.named(NEEDLE)]


def _symbols_by_the_book(where: str, data: Buffer) -> list[tuple[str, str]]:
    """Bitcode without the symbol table of a plain compilation.

    Its initcalls are labels in assembly, which only the symbol table lists: either the assembly has no such
    label, or all that can be done is to say so.
    """
    from klto.objects.bitcode import Bitcode

    bitcode = Bitcode(data, where)
    if bitcode.lacks_asm_symbols and any(_PREFIX in label for label in bitcode.asm_labels()):
        found = f"{bitcode.symbol_table_problem} (by {bitcode.producer})"
        raise MalformedObject(
            where,
            None,
            f"expected a symbol table that lists the initcalls of its assembly, found {found}",
            "compile it with clang -flto: tools of an LLVM that lacks its target write none",
        )
    return [
        (letter_of_ir(symbol.flags), symbol.name) for symbol in bitcode.symbols() if _PREFIX in symbol.name
    ]


def _why_none(paths: Iterable[str]) -> tuple[str, str]:
    """Message and hint for inputs without initcalls: what they are instead."""
    from klto.objects.bitcode import Bitcode

    kinds: dict[str, int] = {}
    for path in paths:
        for where, data in _objects(path):
            kind: str = kind_of_bytes(data)
            if kind == "bitcode":
                bitcode = Bitcode(data, where)
                kind = f"bitcode of {bitcode.producer}" + (
                    bitcode.symbol_table_problem and " without a symbol table"
                )
            elif kind == "elf":
                kind = "ELF" if len(ElfSymbols(data, where)) else "ELF without symbols"
            elif kind == "other":
                kind = "in no format of objects" if len(data) else "empty"
            kinds[kind] = kinds.get(kind, 0) + 1
    if not kinds:
        return "no initcalls: the archives are empty", "give vmlinux.a of a build that has come to its link"
    found = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
    if "ELF" in kinds or any(kind.startswith("bitcode") for kind in kinds):
        return f"no initcalls: no local symbol {_PREFIX}* in {found}", "give vmlinux.a, libraries have none"
    if "ELF without symbols" in kinds:
        return f"no initcalls: found {found}", "give the objects that the compiler made, not stripped ones"
    return f"no initcalls: found {found}", "give archives of ELF or bitcode objects, such as vmlinux.a"


def _of_object(where: str, named: list[tuple[str, str]]) -> list[Initcall]:
    """One object's initcalls by counter; nm sorts by name, and of one counter's the script keeps the last."""
    by_counter: dict[str, Initcall] = {}
    for letter, name in sorted(named, key=lambda symbol: symbol[1].encode("utf-8", "surrogateescape")):
        parts = split_name(name) if "a" <= letter <= "z" and letter not in "Uvw" else None
        if parts is None:
            continue
        module, counter, line, symbol = parts
        level = _level(symbol)
        if level is None:
            raise UsageError(
                f"{where}: initcall {name} has no level", "the object is not of this kernel, or damaged"
            )
        by_counter[counter] = Initcall(
            where, module, counter, line, symbol[: len(symbol) - len(level)], level
        )
    return [by_counter[counter] for counter in sorted(by_counter, key=int)]


def split_name(name: str) -> tuple[str, str, str, str] | None:
    r"""Module, counter, line and the rest of an initcall's symbol; None for any other symbol.

    As the script's ``__initcall__(\S*)__(\d+)_(\d+)_(.*)$``, whose first group takes as much as it can.
    """
    if not name.startswith(_PREFIX):
        return None
    rest = name[len(_PREFIX) :]
    at = rest.rfind("__")
    while at >= 0:
        counter, _, tail = rest[at + 2 :].partition("_")
        line, under, symbol = tail.partition("_")
        if under and _is_number(counter) and _is_number(line):
            return rest[:at], counter, line, symbol
        at = rest.rfind("__", 0, at + 1)
    return None


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()


def _level(symbol: str) -> str | None:
    """The script's ``(.*)((early|rootfs|con|[0-9])s?)$``: the shortest level that the symbol ends with."""
    for sync in ("", "s"):
        if sync and not symbol.endswith(sync):
            return None
        stem = symbol[: len(symbol) - len(sync)]
        if _is_number(stem[-1:]):
            return stem[-1:] + sync
        for level in _NAMED_LEVELS:
            if stem.endswith(level):
                return level + sync
    return None


def linker_script(initcalls: Sequence[Initcall]) -> str:
    """The linker script that orders them, as the kernel's script prints it."""
    lines = ["SECTIONS {\n"]
    by_level: dict[str, list[Initcall]] = {}
    for initcall in initcalls:
        by_level.setdefault(initcall.level, []).append(initcall)
    for level in sorted(by_level):
        section = ".con_initcall.init" if level == "con" else f".initcall{level}.init"
        lines.append(f"\t{section} : {{\n")
        lines += [f"\t\t*({section}..{initcall.id}) ;\n" for initcall in by_level[level]]
        lines.append("\t}\n")
    lines.append("}\n")
    return "".join(lines)


def in_run_order(initcalls: Iterable[Initcall]) -> list[Initcall]:
    """The initcalls as the kernel will run them: by level, then in link order; those it will not run last."""
    rank = {level: number for number, level in enumerate(_RUN_ORDER)}
    return sorted(initcalls, key=lambda initcall: rank.get(initcall.level, len(rank)))
