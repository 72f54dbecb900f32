"""Which objects a configuration builds, read from the tree's Kbuild files without building anything.

For estimates, and for telling whether one object is part of the kernel at all: ``make DIR/FILE.o`` compiles any
file of a folder that is on, whether the configuration wants it or not (``single-build`` of the top Makefile).

make itself evaluates each Kbuild file with the configuration's variables; what would need functions of Kbuild's
own (``$(call cc-option,...)``) expands to nothing.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from klto import process
from klto.kernel.tree import MAKE_ENVIRONMENT_DROP, KernelTree

#: Stops with ``$(error)`` when it has printed: make would go on to remake files that were included.
#: ``obj-y``, ``obj-m`` and ``lib-y`` and composite objects are those of Documentation/kbuild/makefiles.rst, as are
#: ``targets``, ``always-y`` and ``extra-y``, which have the objects of images such as the vdso's. What an option that
#: is off leaves out is in ``obj-`` and ``lib-``.
_PROBE = """\
include {config}
srctree := {tree}
objtree := .
ARCH := {srcarch}
SRCARCH := {srcarch}
BITS := 64
obj := {folder}
src := {tree}/{folder}
include {file}
klto-all := $(obj-y) $(obj-m) $(lib-y) $(lib-m)
klto-parts = $($(1:.o=-objs)) $($(1:.o=-y)) $($(1:.o=-m))
$(foreach o,$(klto-all),$(info klto: $(o) $(if $(filter %.o,$(o)),$(call klto-parts,$(o)))))
$(foreach o,$(obj-) $(lib-),$(info klto-off: $(o) $(if $(filter %.o,$(o)),$(call klto-parts,$(o)))))
$(foreach o,$(targets) $(always-y) $(extra-y) $(subdir-y:=/) $(subdir-m:=/),$(info klto-also: $(o)))
$(error klto: done)
"""

#: Seconds; a Kbuild file takes milliseconds, unless it runs something that hangs.
_DEADLINE = 20.0


def objects_of(tree: KernelTree, config: Mapping[str, str]) -> set[str]:
    """The objects of vmlinux and of kernel modules that this configuration has, relative to the build dir.

    :param config: as :func:`klto.kernel.kconfig.read_config` reads it.
    """
    with _probing(tree, config) as probe:
        found: set[str] = set()
        seen: set[str] = set()
        folders = [name.rstrip("/") for name in probe.roots().folders]
        while folders:
            folder = folders.pop()
            if folder not in seen:
                seen.add(folder)
                named = probe.look(folder)
                found |= named.objects
                folders += [name.rstrip("/") for name in named.folders]
    return found


def leaves_out(tree: KernelTree, config: Mapping[str, str], target: str) -> bool:
    """Whether this configuration does not build the object or folder ``target`` (``drivers/foo/bar.o``,
    ``drivers/foo/``): it is behind an option that is off, or its folder is read and does not have it.

    Where Kbuild's files do not tell (``arch/x86/boot/compressed``, which a recipe enters), it does not leave it out.
    Only the files on the way to it are read: an object that another folder's file names (``../bar.o``) counts as left
    out, whatever the configuration.
    """
    target = os.path.normpath(target) + "/" * target.endswith("/")
    with _probing(tree, config) as probe:
        seen: set[str] = set()
        named = probe.roots()
        off = named.leads_off(target)
        folders = named.on_the_way(target)
        while folders:
            folder = folders.pop().rstrip("/")
            if folder in seen:
                continue
            seen.add(folder)
            if target == folder + "/":
                return False
            named = probe.look(folder)
            if target in named.objects or target in named.also:
                return False
            off = off or named.leads_off(target)
            folders += named.on_the_way(target)
        return off or (not target.endswith("/") and probe.folder_of(target) in seen)


@dataclass
class _Named:
    """What a Kbuild file names, relative to the tree, folders with a slash at the end.

    :ivar objects: of vmlinux and of kernel modules.
    :ivar folders: below, that are on; of those in ``also`` those that are entered for their own sake.
    :ivar also: whatever else is made there.
    :ivar off: objects and folders behind options that are off.
    """

    objects: set[str] = field(default_factory=set)
    folders: list[str] = field(default_factory=list)
    also: set[str] = field(default_factory=set)
    off: set[str] = field(default_factory=set)

    def leads_off(self, target: str) -> bool:
        """Whether the way to a target is behind an option that is off."""
        return any(target == name or (name.endswith("/") and target.startswith(name)) for name in self.off)

    def on_the_way(self, target: str) -> list[str]:
        """Folders that are on and lead to a target."""
        below = [*self.folders, *(name for name in self.also if name.endswith("/"))]
        return [name for name in below if name == "./" or target.startswith(name)]


class _Probe:
    """make, asked about one Kbuild file after the other."""

    def __init__(self, tree: KernelTree, config: Mapping[str, str], scratch: Path) -> None:
        self._tree = tree
        self._config = config
        self._scratch = scratch
        # As in auto.conf, where strings have no quotes (confdata.c, print_symbol_for_autoconf, 6.12).
        lines = (f"CONFIG_{name}={value.strip(chr(34))}\n" for name, value in config.items())
        (scratch / "config.mk").write_text("".join(lines).replace("#", "\\#").replace("$", "$$"))

    def folder_of(self, target: str) -> str:
        """The folder whose Kbuild file would name an object: parts of it may lie in folders that have none."""
        folder = os.path.dirname(target)
        while folder and not any(
            (self._tree.path / folder / name).is_file() for name in ("Kbuild", "Makefile")
        ):
            folder = os.path.dirname(folder)
        return folder

    def roots(self) -> _Named:
        """Where Kbuild descends: the top Kbuild file's folders, and those of the architecture's Makefile."""
        named = self.look("")
        makefile = self._tree.path / "arch" / self._tree.srcarch / "Makefile"
        # $(ARCH_CORE), $(ARCH_LIB) and $(ARCH_DRIVERS) of the top Kbuild file.
        pattern = r"(?m)^(?:core|drivers|libs)-(?:y|\$\(CONFIG_(\w+)\))\s*[:+]?=\s*(.*)$"
        for option, words in re.findall(pattern, makefile.read_text("utf-8", "replace")):
            folders = [word for word in words.split() if word.endswith("/")]
            if not option or option in self._config:
                named.folders += folders
            else:
                named.off |= set(folders)
        named.folders += ["lib/", f"arch/{self._tree.srcarch}/lib/"]
        return named

    def look(self, folder: str) -> _Named:
        """What the Kbuild file of ``folder`` names."""
        named = _Named()
        file = self._tree.path / folder / "Kbuild"
        if not file.is_file():
            file = file.with_name("Makefile")
        if not file.is_file() or (folder == "" and file.name == "Makefile"):
            return named
        probe = self._scratch / "probe.mk"
        text = _PROBE.format(
            config=self._scratch / "config.mk",
            tree=self._tree.path,
            srcarch=self._tree.srcarch,
            folder=folder or ".",
            file=file,
        )
        probe.write_text(text)
        said = process.run(
            ["make", "-rR", "-s", "-f", probe],
            cwd=self._scratch,
            env=process.child_environment(drop=MAKE_ENVIRONMENT_DROP),
            check=False,
            timeout=_DEADLINE,
        ).stdout
        for kind, line in re.findall(r"(?m)^klto(-off|-also|): (.+)$", said):
            first, *parts = (
                os.path.normpath(os.path.join(folder, w)) + "/" * w.endswith("/") for w in line.split()
            )
            if kind == "-off":
                named.off |= {first, *parts}
            elif kind == "-also":
                named.also.add(first)
            else:
                if first.endswith("/"):
                    named.folders.append(first)
                named.objects |= {part for part in (parts or [first]) if part.endswith(".o")}
                named.also |= {first} if parts else set()
        return named


@contextmanager
def _probing(tree: KernelTree, config: Mapping[str, str]) -> Iterator[_Probe]:
    with tempfile.TemporaryDirectory(prefix="klto-kbuild-") as folder:
        yield _Probe(tree, config, Path(folder))
