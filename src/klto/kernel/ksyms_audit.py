"""What a build exports, what its modules need, and what CONFIG_TRIM_UNUSED_KSYMS left between the two."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from klto.errors import UsageError
from klto.kernel.ksyms import AutoConf, KernelModule, find_modules, needed
from klto.objects.elf import Elf
from klto.objects.kind import kind_of
from klto.objects.source import read_whole

#: Dependencies that scripts/gen_ksymdeps.sh (6.1) adds to the .cmd file of what exports a symbol.
_KSYM_DEPENDENCY = re.compile(rb"\$\(wildcard include/ksym/([^)\s]+)\)")
#: Since 6.4 EXPORT_SYMBOL leaves such a symbol in section .export_symbol (include/linux/export.h).
_EXPORT_PREFIX = "__export_symbol_"


@dataclass(frozen=True)
class Missing:
    """A symbol that modules need and that nothing in the build exports."""

    symbol: str
    modules: tuple[str, ...]
    reason: str


@dataclass(frozen=True)
class Audit:
    """The exported symbols of a build. Names are sorted.

    :ivar exported: in Module.symvers.
    :ivar needed: symbol to the modules that need it.
    :ivar trimmed: EXPORT_SYMBOLs of what was built that are not in Module.symvers.
    :ivar unknown: whitelisted, but no EXPORT_SYMBOL of what was built.
    """

    exported: tuple[str, ...]
    needed: dict[str, tuple[str, ...]]
    whitelisted: tuple[str, ...]
    trimmed: tuple[str, ...]
    missing: tuple[Missing, ...]
    unknown: tuple[str, ...]


def audit(build_dir: Path, conf: AutoConf, whitelist: Path | None, extra: Iterable[Path]) -> Audit:
    """Audit a build dir, with modules from elsewhere if there are any.

    :raises UsageError: when the build dir has no Module.symvers or the whitelist cannot be read.
    :raises MalformedObject: when an object cannot be read.
    """
    exported = frozenset(_symvers(build_dir / "Module.symvers"))
    modules = _modules_of(build_dir) + find_modules(extra)
    users = needed(modules)
    offered = frozenset(_offered(build_dir, conf, modules)) | exported
    listed = frozenset(_whitelist(whitelist)) if whitelist is not None else frozenset()
    defined = _Defined(build_dir)
    trimmed = offered - exported
    missing = [
        Missing(name, by, _reason(name, trimmed, listed, defined))
        for name, by in users.items()
        if name not in exported
    ]
    return Audit(
        tuple(sorted(exported)),
        users,
        tuple(sorted(listed)),
        tuple(sorted(trimmed)),
        tuple(missing),
        tuple(sorted(listed - offered)),
    )


def _modules_of(build_dir: Path) -> list[KernelModule]:
    order = build_dir / "modules.order"
    return find_modules([build_dir]) if order.is_file() and order.read_bytes().split() else []


def _symvers(path: Path) -> Iterator[str]:
    """Module.symvers: CRC, symbol, module, kind of export and namespace, by tabs (scripts/mod/modpost.c)."""
    for number, line in enumerate(_text(path, "build the kernel first").splitlines(), 1):
        fields = line.split("\t")
        if len(fields) < 4:
            raise UsageError(f"{path}:{number}: expected CRC, symbol, module and kind, found {line!r}")
        yield fields[1]


def _whitelist(path: Path) -> list[str]:
    return _text(path, "CONFIG_UNUSED_KSYMS_WHITELIST names a file in the source tree").split()


def _text(path: Path, hint: str) -> str:
    try:
        return path.read_text("utf-8", "surrogateescape")
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}", hint) from error


def _offered(build_dir: Path, conf: AutoConf, modules: list[KernelModule]) -> Iterator[str]:
    """Symbols with an EXPORT_SYMBOL, trimmed or not, by the traces that each kernel version leaves."""
    if conf.trim:
        for path in build_dir.rglob(".*.o.cmd"):
            content = path.read_bytes()
            if b"include/ksym/" in content:
                yield from (name.decode() for name in _KSYM_DEPENDENCY.findall(content))
    for path in (build_dir / "vmlinux.o", *(module.path.with_suffix(".o") for module in modules)):
        if path.is_file() and kind_of(path) == "elf":
            table = Elf(read_whole(path), str(path)).symtab
            if table is not None:
                column = table.name_column
                for name in column.at(np.flatnonzero(column.starting(_EXPORT_PREFIX))):
                    yield name.removeprefix(_EXPORT_PREFIX)


class _Defined:
    """Symbols that vmlinux defines, read when a missing one has to be explained."""

    def __init__(self, build_dir: Path) -> None:
        self._path = build_dir / "vmlinux"
        self._names: dict[str, bool] | None = None

    def is_global(self, name: str) -> bool | None:
        """Whether vmlinux defines it for other objects; None when it does not define it, or is not there."""
        if self._names is None:
            self._names = {}
            table = Elf(read_whole(self._path), str(self._path)).symtab if self._path.is_file() else None
            if table is not None:
                shown = (table.table["st_info"] >> 4 != 0).tolist()
                known = np.flatnonzero(table.table["st_shndx"]).tolist()
                for index in known:
                    self._names[table.names[index]] = shown[index] or self._names.get(
                        table.names[index], False
                    )
        return self._names.get(name)


def _reason(name: str, trimmed: frozenset[str], listed: frozenset[str], defined: _Defined) -> str:
    if name in trimmed:
        asked = "though it is whitelisted: build again" if name in listed else "and is not in the whitelist"
        return f"trimmed: it has an EXPORT_SYMBOL, {asked}"
    shown = defined.is_global(name)
    if shown is None:
        return "nothing in this build defines it"
    return "vmlinux defines it, but does not export it" if shown else "it is local to vmlinux"
