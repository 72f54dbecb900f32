"""Options of ``klto build`` that change how an output is made while Kbuild's saved command stays the same:
``--no-lto PATH``, ``--keep-names`` and ``--rejoin PATH``.

Kbuild cannot see them, so klto remembers for each output which of them made it, and removes outputs for which that
has changed: make then makes them, and what depends on them, anew.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import msgspec

from klto.errors import UsageError
from klto.files import write_whole
from klto.objects.kind import kind_of

#: Sources of one object each, and what their names end in (scripts/Makefile.build, 6.1 and 6.12).
_SOURCES = (".c", ".S")

NO_LTO, KEEP_NAMES, REJOIN = "no-lto", "keep-names", "rejoin"


@dataclass(frozen=True)
class NoLto:
    """Paths that are left out of LTO, relative to the tree: directories (with ``/`` at the end) and objects."""

    directories: tuple[str, ...] = ()
    objects: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.directories or self.objects)

    def covers(self, target: str) -> bool:
        """Whether an object, relative to the build dir, is left out."""
        return target in self.objects or target.startswith(self.directories or "\0")

    def shell_patterns(self) -> str:
        """As patterns of a shell's ``case`` over `` arguments ``."""
        words = [f" -o {name} " for name in self.objects] + [f" -o {name}" for name in self.directories]
        return " | ".join(f"*'{word}'*" for word in words)


def parse_no_lto(tree: Path, build_dir: Path, paths: tuple[str, ...]) -> NoLto:
    """Paths as the user gives them: a directory, a source file or an object, relative to the tree or absolute.

    :raises UsageError: for one that is not in the tree or is no source.
    """
    directories, objects = [], []
    for text in paths:
        path = Path(os.path.normpath(tree / text))
        try:
            relative = path.relative_to(tree).as_posix()
        except ValueError:
            raise UsageError(f"--no-lto {text}: not in the tree {tree}") from None
        if relative == ".":
            raise UsageError(f"--no-lto {text}: that is the whole tree", "use --lto none")
        if "'" in relative:
            raise UsageError(f"--no-lto {text}: a path with a quote cannot be left out")
        if path.is_dir():
            directories.append(relative + "/")
            continue
        stem, ending = os.path.splitext(relative)
        # switch.nvhe.o is made from switch.c (arch/arm64/kvm/hyp/nvhe/Makefile).
        stem = stem.removesuffix(".nvhe")
        # Some sources are generated in the build dir.
        places = (tree, build_dir)
        if ending not in (*_SOURCES, ".o") or not any(
            (place / f"{stem}{source}").is_file() for place in places for source in _SOURCES
        ):
            raise UsageError(
                f"--no-lto {text}: no directory or source file of {tree}",
                "name what is compiled: kernel/sys.c",
            )
        objects += [f"{stem}.o", f"{stem}.nvhe.o"]
    return NoLto(tuple(directories), tuple(objects))


class Made(msgspec.Struct, frozen=True):
    """An output made under an override, and its inode, size and time stamp: another has been made without klto."""

    override: str
    stamp: tuple[int, int, int]


class Overrides:
    """What klto remembers of a build dir's outputs, in ``.klto/overrides.json``."""

    def __init__(self, folder: Path, build_dir: Path) -> None:
        self._file, self._build_dir = folder / "overrides.json", build_dir
        #: Where the compiler shim names the objects that it makes.
        self.log = folder / "overrides.log"
        self._made = self._read()
        self._take_log()

    def _read(self) -> dict[str, Made]:
        try:
            return msgspec.json.decode(self._file.read_bytes(), type=dict[str, Made])
        except (OSError, msgspec.DecodeError):
            return {}

    def _take_log(self) -> None:
        """Objects that the shim has made since they were last taken in, in a killed run too."""
        try:
            names = self.log.read_text(errors="surrogateescape").splitlines()
        except FileNotFoundError:
            return
        for name in names:
            stamp = self._stamp(name)
            # One that is bitcode has been made again since, without klto.
            if stamp is not None and kind_of(self._build_dir / name) != "bitcode":
                self._made[name] = Made(NO_LTO, stamp)
        self._save()
        self.log.unlink()

    def _stamp(self, output: str) -> tuple[int, int, int] | None:
        try:
            status = os.stat(self._build_dir / output)
        except OSError:
            return None
        return status.st_ino, status.st_size, status.st_mtime_ns

    def _save(self) -> None:
        if self._made or self._file.exists():
            write_whole(self._file, msgspec.json.encode(self._made))

    def current(self) -> dict[str, str]:
        """Output to override, of the outputs that are still those which klto made."""
        return {name: made.override for name, made in self._made.items() if made.stamp == self._stamp(name)}

    def reconcile(self, no_lto: NoLto, *, keep_names: bool, rejoin: Sequence[str] = ()) -> list[str]:
        """Remove the outputs that were made under other overrides than these; their names."""
        made = self.current()
        stale = [name for name, override in made.items() if override == NO_LTO and not no_lto.covers(name)]
        if no_lto:
            stale += [name for name in self._with_lto(no_lto) if made.get(name) != NO_LTO]
        stale += [name for name, override in made.items() if override == REJOIN and name not in rejoin]
        kept = {name for name, override in made.items() if override == KEEP_NAMES}
        linked = self._linked()
        stale += [name for name in linked if (name in kept) != keep_names and name not in rejoin]
        for name in stale:
            (self._build_dir / name).unlink(missing_ok=True)
        self._made = {name: self._made[name] for name in made if name not in stale}
        self._save()
        return stale

    def _with_lto(self, no_lto: NoLto) -> list[str]:
        """Objects below the paths that were compiled with ``-flto``."""
        places = {*no_lto.directories, *(os.path.dirname(name) + "/" for name in no_lto.objects)}
        found = []
        for place in places:
            for folder, _, names in os.walk(self._build_dir / place):
                for name in names:
                    target = os.path.relpath(os.path.join(folder, name), self._build_dir)
                    if name.endswith(".o") and no_lto.covers(target) and self._asks_for_lto(folder, name):
                        found.append(target)
        return found

    @staticmethod
    def _asks_for_lto(folder: str, name: str) -> bool:
        try:
            saved = Path(folder, f".{name}.cmd").read_text(errors="replace")
        except OSError:
            return False
        return " -flto" in saved.partition("\n")[0]

    def _linked(self) -> list[str]:
        """The outputs of LTO links: vmlinux.o, and the object of each kernel module."""
        modules = []
        try:
            modules = (self._build_dir / "modules.order").read_text().split()
        except OSError:
            modules = []
        names = ["vmlinux.o", *(f"{name.rpartition('.')[0]}.o" for name in modules)]
        return [name for name in names if (self._build_dir / name).exists()]

    def remember_links(self, outputs: list[str], override: str = KEEP_NAMES) -> None:
        """These links kept the names of promoted functions, or their outputs were merged."""
        for output in outputs:
            # A kernel module of one object is linked to .tmp_NAME.o and renamed (scripts/Makefile.build).
            folder, base = os.path.split(output)
            name = os.path.join(folder, base.removeprefix(".tmp_"))
            stamp = self._stamp(name)
            if stamp is not None:
                self._made[name] = Made(override, stamp)
        self._save()

    def finish(self) -> None:
        """Take in what this run has made."""
        self._take_log()


def compiler_shim(real: Path, made: Path, no_lto: NoLto) -> str:
    """The text of the script that stands for the compiler."""
    text = files("klto.build").joinpath("cc_shim.sh").read_text(encoding="utf-8")
    text = text.replace("@REAL@", shlex.quote(str(real))).replace("@MADE@", shlex.quote(str(made)))
    return text.replace("@PATTERNS@", no_lto.shell_patterns())
