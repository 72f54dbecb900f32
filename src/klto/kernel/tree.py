"""A kernel source tree: which version, for which architecture, and whether Clang LTO can be built from it."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

from klto.errors import UsageError
from klto.files import user_cache_dir

#: klto's architectures and the directory of ``arch/`` that holds each (``SRCARCH`` in the kernel's Makefile).
SRCARCH = {"x86_64": "x86", "arm64": "arm64"}

#: The kernel's ``--target=`` for each (CLANG_TARGET_FLAGS_* of scripts/Makefile.clang, 6.1 and 6.12).
TARGETS = {"x86_64": "x86_64-linux-gnu", "arm64": "aarch64-linux-gnu"}

#: What ``uname -m`` says on a machine whose own kernel has this architecture (scripts/subarch.include, 6.12).
_MACHINES = {"x86_64": "x86_64", "aarch64": "arm64"}

#: Other common names of the architectures.
_ALIASES = {"x86": "x86_64", "amd64": "x86_64", "aarch64": "arm64"}

#: Variables that would make Kbuild build something else than klto's options say, or in another place: klto
#: runs make without them. The MAKE* ones are an outer make's (klto may be called from a Makefile) and carry
#: its command-line variables and jobserver; ``sub_make_done`` is Kbuild's own mark of a recursive make.
MAKE_ENVIRONMENT_DROP = (
    *("ARCH", "SUBARCH", "SRCARCH", "CROSS_COMPILE", "LLVM", "LLVM_IAS", "O", "KBUILD_OUTPUT"),
    *("M", "KBUILD_EXTMOD", "KBUILD_KCONFIG", "KBUILD_DEFCONFIG", "KCONFIG_CONFIG", "KCONFIG_ALLCONFIG"),
    *("KCONFIG_DEFCONFIG_LIST", "KCONFIG_OVERWRITECONFIG", "KCONFIG_NOSILENTUPDATE", "CONFIG_", "srctree"),
    *("objtree", "sub_make_done", "MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "MAKECMDGOALS"),
)

#: What makes a directory a kernel tree.
_TREE_FILES = ("Makefile", "Kconfig", "arch", "scripts/kconfig", "scripts/Makefile.build")

#: Characters that a path of the source tree or build dir cannot have, found by building 6.12 in such places
#: (make 4.3; sh is dash or bash). Spaces and colons are refused by the top Makefile. ``#``, ``$`` and ``%``
#: mean something to make and the others to the shell, which both get paths unquoted; a ``$`` in O= builds in
#: another place. Patterns (``*?[``, and braces where sh is bash) work only while they match nothing else.
_REFUSED = frozenset(" :#$%&'\"\\`();|<>*?[{}")

#: In O= alone: tools/objtool hands clang ``-Wp,-MMD,FILE``, which clang splits at commas, and variables with
#: ``=`` (6.12; x86_64 LTO needs objtool).
_REFUSED_IN_BUILD_DIR = frozenset(",=")


@dataclass(frozen=True)
class KernelTree:
    """A source tree that can be built with Clang LTO for ``arch``. Made by :meth:`open`."""

    path: Path
    #: The version as the kernel prints it (``make kernelversion``), such as ``6.12.117`` or ``6.13.0-rc2``.
    version: str
    #: VERSION, PATCHLEVEL and SUBLEVEL.
    numbers: tuple[int, int, int]
    #: ``x86_64`` or ``arm64``.
    arch: str
    #: Whether this tree's Makefile knows ``LLVM=-19`` and ``LLVM=/dir/`` (before 5.18 they meant ``LLVM=1``).
    has_llvm_suffix: bool = True

    @classmethod
    def open(cls, path: Path, arch: str | None = None) -> KernelTree:
        """Look at the tree in ``path``.

        :param arch: None for this machine's.
        :raises UsageError: no kernel tree, too old for Clang LTO, an architecture that cannot, or a path that
            Kbuild cannot work with.
        """
        path = path.absolute()
        version, numbers = _read_version(path)
        arch = check_arch(arch)
        check_path(path, "kernel tree")
        _check_lto(path, version, arch)
        return cls(path, version, numbers, arch, _has(path / "Makefile", r"(?m)^LLVM_SUFFIX\s*:?="))

    @property
    def srcarch(self) -> str:
        """The directory of ``arch/`` for this architecture."""
        return SRCARCH[self.arch]

    @property
    def target(self) -> str:
        """The ``--target=`` that Kbuild gives to clang."""
        return TARGETS[self.arch]

    @property
    def id(self) -> str:
        """A short name of this tree, the same as long as it stays in its place, safe in file names."""
        real = Path(os.path.realpath(self.path))
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", real.name).strip("-.") or "linux"
        return f"{name}-{hashlib.sha256(os.fsencode(real)).hexdigest()[:8]}"

    def make_arch_args(self) -> list[str]:
        """``ARCH=`` for make, or nothing for this machine's own architecture.

        A plain ``make`` on x86_64 has ARCH=x86 (scripts/subarch.include), not ARCH=x86_64, and a change
        between them reconfigures: klto leaves out what plain make leaves out.
        """
        return [] if self.arch == host_arch() else [f"ARCH={self.arch}"]

    def make_command(self, build_dir: Path) -> list[str]:
        """``make -C TREE [O=BUILD_DIR] [ARCH=...]``; without ``O=`` when the build dir is the tree itself."""
        out = [] if self.is_in_tree(build_dir) else [f"O={os.path.realpath(build_dir)}"]
        return ["make", "-C", os.fspath(self.path), *out, *self.make_arch_args()]

    def is_in_tree(self, build_dir: Path) -> bool:
        """Whether ``build_dir`` is the tree itself."""
        return os.path.realpath(build_dir) == os.path.realpath(self.path)

    def dirty_in_tree(self) -> str | None:
        """What in the tree makes Kbuild refuse ``O=`` (the rule ``outputmakefile`` of the top Makefile, 6.1
        and 6.12), as a path below the tree, or None."""
        if (self.path / ".config").is_file():
            return ".config"
        for folder in ("include/config", f"arch/{self.srcarch}/include/generated"):
            if (self.path / folder).is_dir():
                return folder
        return None

    def check_build_dir(self, build_dir: Path) -> None:
        """Refuse a build dir that Kbuild would refuse.

        :raises UsageError: a path that Kbuild cannot work with, or a dirty tree with another build dir.
        """
        check_path(build_dir, "build dir")
        if self.is_in_tree(build_dir):
            return
        dirt = self.dirty_in_tree()
        if dirt is not None:
            arch = "".join(f" {a}" for a in self.make_arch_args())
            raise UsageError(
                f"Kbuild refuses a build dir outside {self.path}: the tree was built in and holds {dirt}",
                f"clean it, which deletes its .config and objects: make -C {self.path}{arch} mrproper",
            )


def is_kernel_tree(path: Path) -> bool:
    """Whether ``path`` is a kernel tree, of whatever version."""
    return all((path / name).exists() for name in _TREE_FILES)


def host_arch() -> str | None:
    """This machine's architecture as klto names it, or None for one that klto does not know."""
    return _MACHINES.get(os.uname().machine)


def check_arch(arch: str | None) -> str:
    """The architecture to build for.

    :raises UsageError: for one that klto does not know.
    """
    if arch is None:
        arch = host_arch()
        if arch is None:
            raise UsageError(f"klto cannot build for this machine's {os.uname().machine}", _arch_hint())
    if arch not in SRCARCH:
        raise UsageError(f"klto cannot build for the architecture '{arch}'", _arch_hint(_ALIASES.get(arch)))
    return arch


def _arch_hint(meant: str | None = None) -> str:
    return f"use -a {meant}" if meant else "use one of: " + ", ".join(f"-a {name}" for name in SRCARCH)


def _read_version(path: Path) -> tuple[str, tuple[int, int, int]]:
    """VERSION, PATCHLEVEL, SUBLEVEL, EXTRAVERSION from the first lines of the top Makefile, joined as its
    KERNELVERSION is."""
    if not path.is_dir():
        raise UsageError(f"no such directory: {path}", "name the kernel tree with -C DIR")
    try:
        missing = [name for name in _TREE_FILES if not (path / name).exists()]
        head = "" if missing else (path / "Makefile").read_text("utf-8", "replace")[:4096]
    except OSError as error:
        raise UsageError(f"cannot read the kernel tree {path}: {error.strerror}") from error
    found = dict(
        re.findall(r"(?m)^(VERSION|PATCHLEVEL|SUBLEVEL|EXTRAVERSION)[ \t]*=[ \t]*(.*?)[ \t]*$", head)
    )
    try:
        version, patchlevel = int(found["VERSION"]), int(found["PATCHLEVEL"])
        sublevel = int(found.get("SUBLEVEL") or 0)
    except (KeyError, ValueError):
        what = f"it has no {missing[0]}" if missing else "its Makefile names no kernel version"
        raise UsageError(
            f"not a kernel tree: {path} ({what})", "run klto in a kernel tree, or name one with -C DIR"
        ) from None
    text = f"{version}.{patchlevel}" + (f".{found['SUBLEVEL']}" if found.get("SUBLEVEL") else "")
    return text + found.get("EXTRAVERSION", ""), (version, patchlevel, sublevel)


def _check_lto(path: Path, version: str, arch: str) -> None:
    """Whether the tree has Clang LTO, and its architecture too."""
    if not _has(path / "arch/Kconfig", r"(?m)^config LTO_CLANG_THIN\s*$"):
        raise UsageError(
            f"Linux {version} in {path} has no Clang LTO (no LTO_CLANG_THIN in arch/Kconfig)",
            "mainline has it for x86_64 and arm64 from 5.12 on: use such a kernel",
        )
    kconfig = path / "arch" / SRCARCH[arch] / "Kconfig"
    if not _has(kconfig, r"(?m)^\s+select ARCH_SUPPORTS_LTO_CLANG\b(?!_)"):
        raise UsageError(
            f"Linux {version} has no Clang LTO for {arch}: "
            f"arch/{SRCARCH[arch]}/Kconfig does not select ARCH_SUPPORTS_LTO_CLANG",
            "mainline has it for x86_64 and arm64 from 5.12 on: use such a kernel or architecture",
        )


def _has(file: Path, pattern: str) -> bool:
    try:
        return re.search(pattern, file.read_text("utf-8", "replace")) is not None
    except FileNotFoundError:
        return False
    except OSError as error:
        raise UsageError(f"cannot read {file}: {error.strerror}") from error


def check_path(path: Path, what: str) -> None:
    """Refuse a path that Kbuild cannot work with, before anything starts.

    Kbuild resolves symbolic links first, so the resolved path counts. Letters of any language are fine.

    :param what: what the path is for, as the message names it: ``kernel tree`` or ``build dir``.
    :raises UsageError: naming the character.
    """
    real = os.path.realpath(path)
    try:
        real.encode()
    except UnicodeEncodeError:
        raise UsageError(f"the name of the {what} is not UTF-8: {real!r}", "rename it") from None
    refused = _REFUSED if what == "kernel tree" else _REFUSED | _REFUSED_IN_BUILD_DIR
    bad = next((c for c in real if c in refused or ord(c) < 0x20 or ord(c) == 0x7F), None)
    if bad is None:
        return
    shown = {" ": "a space", "\n": "a newline", "\t": "a tab"}.get(
        bad, bad if bad.isprintable() else repr(bad)
    )
    raise UsageError(
        f"Kbuild cannot work in a path with {shown}: {what} {real!r}",
        "use a path of letters, digits and . _ - + @ only",
    )


def default_build_dir(tree: KernelTree, lto: str) -> Path:
    """Where the kernel is built when no ``-b`` is given.

    The tree itself when it holds a ``.config``, as plain ``make`` would; otherwise a folder of the user's
    cache, never a new one inside the source tree (``make mrproper`` would empty it).

    :param lto: ``thin``, ``full``, ``none`` or ``keep``: part of the folder's name.
    """
    if (tree.path / ".config").is_file():
        return tree.path
    return user_cache_dir() / "build" / tree.id / f"{tree.arch}-{lto}"
