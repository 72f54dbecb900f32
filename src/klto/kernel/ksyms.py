"""Exported symbols and the kernel modules that need them.

``autoksyms`` does what scripts/gen_autoksyms.sh of 6.1 does (6.3 is the last kernel with it). ``needed``
reads modules' generated code: in bitcode it would miss what only inline assembly refers to.
"""

from __future__ import annotations

import gzip
import lzma
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from klto.errors import UsageError
from klto.objects.elf import Elf
from klto.objects.elf_header import SHN_UNDEF
from klto.objects.errors import MalformedObject, cannot_read
from klto.objects.kind import kind_of_bytes
from klto.objects.source import Buffer, read_whole

#: What gen_autoksyms.sh writes before the list.
_HEAD = b"/*\n * Automatically generated file; DO NOT EDIT.\n */\n\n"
#: Undefined in modules, and exported by nothing: the first is resolved when the .ko is linked, the second is
#: the linker's own (ignore_undef_symbol of scripts/mod/modpost.c).
_NOT_EXPORTED = frozenset(("__this_module", "_GLOBAL_OFFSET_TABLE_"))
#: The symbol whose version stands for the layout of struct module (scripts/mod/modpost.c, add_versions).
MODULE_LAYOUT = "module_layout"
#: No module is larger uncompressed; 512 MiB.
_MOST_UNCOMPRESSED = 1 << 29
_COMPRESSED = (".gz", ".xz", ".zst")
_STB_GLOBAL = 1
#: gABI chapter 4, e_type; modules are linked with -r (scripts/Makefile.modfinal).
_ET_REL = 1


@dataclass(frozen=True)
class AutoConf:
    """What the scripts read from ``include/config/auto.conf``.

    :ivar whitelist: CONFIG_UNUSED_KSYMS_WHITELIST as it stands there, "" when unset.
    """

    modversions: bool
    trim: bool
    whitelist: str


def read_auto_conf(build_dir: Path) -> AutoConf:
    """Read a build dir's configuration.

    :raises UsageError: when the build dir has none.
    """
    path = build_dir / "include/config/auto.conf"
    lines = _read(path, "give a configured build dir with -b DIR").splitlines()
    key = b"CONFIG_UNUSED_KSYMS_WHITELIST="
    lists = [line[len(key) :] for line in lines if line.startswith(key)]
    return AutoConf(
        b"CONFIG_MODVERSIONS=y" in lines,
        b"CONFIG_TRIM_UNUSED_KSYMS=y" in lines,
        b"\n".join(lists).decode("utf-8", "surrogateescape"),
    )


def whitelist_path(conf: AutoConf, source_tree: Path) -> Path | None:
    """The configured whitelist; a relative one is looked for in the source tree."""
    return source_tree / conf.whitelist if conf.whitelist else None


def autoksyms(build_dir: Path, modorder: Path | None, whitelist: Path | None, modversions: bool) -> bytes:
    """The text of autoksyms.h.

    :param modorder: a modules.order, whose modules' .usyms files in the build dir are read; None for the
        script without ``--modorder``.
    :raises UsageError: when an input is missing. (The script then leaves out what it has not read yet.)
    """
    text = b""
    if modorder is not None:
        for name in _read(modorder, "it is made by building the modules").split():
            usyms = name[:-2] + b"usyms" if name.endswith(b"ko") else name
            path = build_dir / usyms.decode("utf-8", "surrogateescape")
            text += _read(path, "build the modules of a tree that has .usyms files (up to 6.3)")
    text += b" module_layout\n" if modversions else b"\n"
    if whitelist is not None:
        text += _read(whitelist, "CONFIG_UNUSED_KSYMS_WHITELIST names a file in the source tree")
    # sed 's/ /\n/g', empty lines out, one leading dot off (ppc64's entry points), sort -u in the C locale.
    lines = text.replace(b" ", b"\n").split(b"\n")
    # A last line without its newline, of which the dot is all: sed then prints nothing.
    if lines[-1] == b".":
        lines.pop()
    names = {line.removeprefix(b".") for line in lines if line}
    return _HEAD + b"".join(b"#define __KSYM_%s 1\n" % name for name in sorted(names - {b"__this_module"}))


def _read(path: Path, hint: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}", hint) from error


@dataclass(frozen=True)
class KernelModule:
    """A kernel module's object.

    :ivar path: of the .ko, or of the .o that it will be made from.
    :ivar needs: the symbols it takes from outside, sorted; weak ones are not needed.
    """

    path: Path
    needs: tuple[str, ...]


def find_modules(paths: Iterable[Path]) -> list[KernelModule]:
    """The modules at ``paths``: objects, or folders of them.

    A folder with a ``modules.order`` (a build dir or a part of it, an external module's folder,
    ``/lib/modules/VERSION``) has the modules that are listed there; any other has all ``*.ko`` below it.

    :raises UsageError: for a folder without modules.
    :raises MalformedObject: for what is no module's object, bitcode among it.
    """
    found: dict[Path, None] = {}
    for path in paths:
        if not path.is_dir():
            found[path] = None
            continue
        inside = list(_listed(path)) if (path / "modules.order").is_file() else sorted(_below(path))
        if not inside:
            raise UsageError(
                f"{path}: has no kernel modules", "give .ko files, or a folder or build dir with some"
            )
        found.update(dict.fromkeys(inside))
    return [KernelModule(path, _needs(path)) for path in found]


def _below(folder: Path) -> Iterator[Path]:
    for suffix in ("", *_COMPRESSED):
        yield from folder.rglob(f"*.ko{suffix}")


def _listed(folder: Path) -> Iterator[Path]:
    """modules.order lists X.ko up to 6.3 and X.o after; what is there of it is taken, the final X.ko first.

    Names in it are relative to the build dir, of which ``folder`` may be a part.
    """
    for line in _read(folder / "modules.order", "").split():
        stem = Path(line.decode("utf-8", "surrogateescape")).with_suffix("")
        suffixes = (".ko", *(f".ko{packed}" for packed in _COMPRESSED), ".o")
        bases = (folder, *folder.resolve().parents)
        there = (base / f"{stem}{suffix}" for base in bases for suffix in suffixes)
        path = next((path for path in there if path.is_file()), None)
        if path is None:
            raise UsageError(
                f"{stem}.ko: in {folder}/modules.order, but not there", "build the modules first"
            )
        yield path


def _needs(path: Path) -> tuple[str, ...]:
    elf = Elf(_object(path), str(path))
    if elf.header.e_type != _ET_REL:
        raise MalformedObject(
            str(path), 16, f"expected a kernel module, which is relocatable, found e_type {elf.header.e_type}"
        )
    table = elf.symtab
    if table is None:
        raise MalformedObject(
            str(path), None, "expected a symbol table, found none", "a module needs its own"
        )
    rows = table.table
    undefined = np.flatnonzero((rows["st_shndx"] == SHN_UNDEF) & (rows["st_info"] >> 4 == _STB_GLOBAL))
    names = set(elf.strings(int(elf.sections["sh_link"][table.index]), rows["st_name"][undefined]))
    if "__versions" in elf.section_names:
        names.add(MODULE_LAYOUT)
    return tuple(sorted(name.removeprefix(".") for name in names - _NOT_EXPORTED))


def _object(path: Path) -> Buffer:
    if path.suffix == ".zst":
        raise MalformedObject(str(path), None, "is compressed with zstd", f"unpack it: zstd -d {path}")
    data: Buffer = _unpacked(path) if path.suffix in (".gz", ".xz") else read_whole(path)
    if kind_of_bytes(data) == "bitcode":
        raise MalformedObject(
            str(path),
            None,
            "is bitcode, in which references from inline assembly do not show",
            "give the module's .ko, or its .o after the LTO link of the module",
        )
    return data


def _unpacked(path: Path) -> bytes:
    opener = gzip.open if path.suffix == ".gz" else lzma.open
    try:
        with opener(path) as file:
            data: bytes = file.read(_MOST_UNCOMPRESSED + 1)
    except (EOFError, lzma.LZMAError, gzip.BadGzipFile) as error:
        raise MalformedObject(str(path), None, f"cannot be unpacked: {error}") from error
    except OSError as error:
        raise cannot_read(path, error) from error
    if len(data) > _MOST_UNCOMPRESSED:
        raise MalformedObject(
            str(path), None, f"expected a module of at most {_MOST_UNCOMPRESSED} bytes, found more"
        )
    return data


def needed(modules: Iterable[KernelModule]) -> dict[str, tuple[str, ...]]:
    """Symbol to the names of the modules that need it, both sorted."""
    users: dict[str, set[str]] = {}
    for module in modules:
        for name in module.needs:
            users.setdefault(name, set()).add(module.path.name)
    return {name: tuple(sorted(users[name])) for name in sorted(users)}


def as_whitelist(symbols: Iterable[str]) -> str:
    """One a line, as CONFIG_UNUSED_KSYMS_WHITELIST wants it."""
    return "".join(f"{name}\n" for name in symbols)


def as_android_list(users: dict[str, tuple[str, ...]]) -> str:
    """A symbol list as Android's kernels keep them: what several modules need, then module by module."""
    lines = ["[abi_symbol_list]", "# commonly used symbols"]
    lines += [f"  {name}" for name, modules in users.items() if len(modules) > 1]
    single: dict[str, list[str]] = {}
    for name, modules in users.items():
        if len(modules) == 1:
            single.setdefault(modules[0], []).append(name)
    for module in sorted(single):
        lines += ["", f"# required by {module}", *(f"  {name}" for name in single[module])]
    return "\n".join(lines) + "\n"
