"""Kernel modules as the proofs need them: what a .ko says of itself, and the order in which modules load."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from klto.boot.proofs import NotApplicable
from klto.errors import UsageError
from klto.kernel.ksyms import find_modules
from klto.objects.elf import SHT_NOBITS, Elf
from klto.objects.errors import MalformedObject
from klto.objects.source import read_whole

#: struct modversion_info of include/linux/module.h: unsigned long crc; char name[64 - sizeof(unsigned long)].
_VERSION_BYTES = 64

#: scripts/mod/modpost.c: cleanup_module is the module's exit function, init_module its init function.
_EXIT = "cleanup_module"


@dataclass(frozen=True)
class ModuleFile:
    """A built kernel module.

    ``name``: as the kernel has it (.modinfo; dashes are underscores). ``depends``: modules it needs, by name.
    ``needs``: symbols it takes from outside. ``crcs``: the version of each, from ``__versions``; empty without
    CONFIG_MODVERSIONS. ``has_exit``: whether it can be unloaded.
    """

    path: Path
    name: str
    info: Mapping[str, str]
    depends: tuple[str, ...]
    needs: tuple[str, ...]
    crcs: Mapping[str, int]
    has_exit: bool


def read_module(path: Path) -> ModuleFile:
    """Read a .ko.

    :raises MalformedObject: when it is no ELF object, or damaged.
    :raises UsageError: when it cannot be read, or is no finished module.
    """
    (found,) = find_modules([path])
    elf = Elf(read_whole(path), str(path))
    info = modinfo(section(elf, ".modinfo") or b"")
    if "vermagic" not in info:
        raise UsageError(f"{path} is no finished kernel module: no vermagic in .modinfo", "give a .ko file")
    name = info.get("name", path.stem).replace("-", "_")
    depends = tuple(part.replace("-", "_") for part in info.get("depends", "").split(",") if part)
    table = elf.symtab
    defined = {table.names[i] for i in np.flatnonzero(table.section != 0).tolist()} if table else set()
    crcs = versions(section(elf, "__versions") or b"")
    return ModuleFile(path, name, info, depends, found.needs, crcs, _EXIT in defined)


def section(elf: Elf, name: str) -> bytes | None:
    """A section's bytes; None when the file does not have it, or not its bytes."""
    if name not in elf.section_names:
        return None
    index = elf.section_names.index(name)
    return None if elf.sections["sh_type"][index] == SHT_NOBITS else bytes(elf.content(index))


def modinfo(content: bytes) -> dict[str, str]:
    """The NUL-separated ``key=value`` strings of .modinfo; of keys that come more than once the first."""
    found: dict[str, str] = {}
    for entry in content.split(b"\0"):
        key, equals, value = entry.decode("utf-8", "replace").partition("=")
        if equals:
            found.setdefault(key, value)
    return found


def versions(content: bytes) -> dict[str, int]:
    """The symbols of a ``__versions`` section and their CRCs."""
    found = {}
    for offset in range(0, len(content) - _VERSION_BYTES + 1, _VERSION_BYTES):
        (crc,) = struct.unpack_from("<Q", content, offset)
        name = content[offset + 8 : offset + _VERSION_BYTES].split(b"\0", 1)[0]
        found[name.decode("utf-8", "replace")] = crc
    return found


def read_symvers(path: Path) -> dict[str, int]:
    """Module.symvers: exported symbols and their CRCs (0 without CONFIG_MODVERSIONS).

    :raises UsageError: when it cannot be read, or a line is none of modpost's.
    """
    try:
        lines = path.read_text("utf-8", "surrogateescape").splitlines()
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}", "build the kernel first") from error
    found = {}
    for number, line in enumerate(lines, 1):
        fields = line.split("\t")
        try:
            found[fields[1]] = int(fields[0], 16)
        except (IndexError, ValueError):
            raise UsageError(f"{path}:{number}: expected a CRC and a symbol, found {line!r}") from None
    return found


def version_problems(module: ModuleFile, symvers: Mapping[str, int]) -> list[str]:
    """What a module takes from outside that the kernel does not export, or exports in another version."""
    lines = [
        f"{module.name} needs {name}, which nothing exports" for name in module.needs if name not in symvers
    ]
    for name, crc in module.crcs.items():
        if name in symvers and symvers[name] != crc:
            lines.append(
                f"{module.name} was built for {name} with CRC {crc:#010x}, Module.symvers has {symvers[name]:#010x}"
            )
    return lines


def built_modules(build_dir: Path) -> list[ModuleFile]:
    """The modules of a build, in the order of modules.order; none when it has none.

    :raises NotApplicable: when they, or Module.symvers, have not been built.
    :raises MalformedObject: when one of them is damaged.
    """
    order, symvers = build_dir / "modules.order", build_dir / "Module.symvers"
    if not order.is_file() or not order.read_bytes().split():
        return []
    try:
        found = [module.path for module in find_modules([build_dir])]
        read_symvers(symvers)
    except MalformedObject:
        raise
    except UsageError as error:
        raise NotApplicable(f"needs the build's modules: {error.message}") from error
    for path in found:
        if path.suffix != ".ko":
            raise NotApplicable(f"needs the build's modules: {path.with_suffix('.ko')} is missing")
    return [read_module(path) for path in found]


def in_load_order(wanted: Iterable[ModuleFile], built: Sequence[ModuleFile]) -> list[ModuleFile]:
    """The wanted modules and what they depend on, dependencies first.

    A dependency that is no module of the build is left to the kernel to miss.
    """
    by_name = {module.name: module for module in built}
    placed: dict[str, ModuleFile] = {}
    stack = [(module, iter(module.depends)) for module in reversed(list(wanted))]
    entered: set[str] = set()
    while stack:
        module, rest = stack[-1]
        entered.add(module.name)
        name = next((n for n in rest if n in by_name and n not in placed and n not in entered), None)
        if name is not None:
            stack.append((by_name[name], iter(by_name[name].depends)))
            continue
        stack.pop()
        placed.setdefault(module.name, module)
    return list(placed.values())


def listed_modules(build_dir: Path) -> dict[str, Path]:
    """Names to paths of the modules in modules.order that are there."""
    order = build_dir / "modules.order"
    if not order.is_file():
        return {}
    paths = (build_dir / Path(line).with_suffix(".ko") for line in order.read_text().split())
    return {path.stem.replace("-", "_"): path for path in paths if path.is_file()}
