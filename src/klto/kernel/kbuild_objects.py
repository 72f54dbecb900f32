"""Which objects a configuration builds, read from the tree's Kbuild files without building anything.

For estimates, and for telling whether one object is part of the kernel at all: ``make DIR/FILE.o`` compiles any
file, whether the configuration wants it or not (``curdir-single`` of scripts/Makefile.build, 6.1 and 6.12).

make itself evaluates each Kbuild file with the configuration's variables; what would need functions of Kbuild's
own (``$(call cc-option,...)``) expands to nothing, and objects of programs and of images other than vmlinux and
kernel modules are not listed.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from klto import process
from klto.kernel.tree import MAKE_ENVIRONMENT_DROP, KernelTree

#: Stops with ``$(error)`` when it has printed: make would go on to remake files that were included.
#: ``obj-y``, ``obj-m`` and ``lib-y`` and composite objects are those of Documentation/kbuild/makefiles.rst.
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
        folders = list(probe.roots())
        while folders:
            folder = folders.pop()
            if folder not in seen:
                seen.add(folder)
                objects, below = probe.look(folder)
                found |= objects
                folders += below
    return found


def builds(tree: KernelTree, config: Mapping[str, str], target: str) -> bool:
    """Whether this configuration builds the object or folder ``target`` (``drivers/foo/bar.o``, ``drivers/foo/``).

    Only the Kbuild files on the way to it are read.
    """
    with _probing(tree, config) as probe:
        seen: set[str] = set()
        folders = [folder for folder in probe.roots() if _leads(folder, target)]
        while folders:
            folder = folders.pop()
            if folder in seen:
                continue
            seen.add(folder)
            if target == folder + "/":
                return True
            objects, below = probe.look(folder)
            if target in objects:
                return True
            folders += [name for name in below if _leads(name, target)]
    return False


def _leads(folder: str, target: str) -> bool:
    return folder in ("", ".") or target.startswith(folder + "/")


class _Probe:
    """make, asked about one Kbuild file after the other."""

    def __init__(self, tree: KernelTree, config: Mapping[str, str], scratch: Path) -> None:
        self._tree = tree
        self._config = config
        self._scratch = scratch
        # As in auto.conf, where strings have no quotes (confdata.c, print_symbol_for_autoconf, 6.12).
        lines = (f"CONFIG_{name}={value.strip(chr(34))}\n" for name, value in config.items())
        (scratch / "config.mk").write_text("".join(lines).replace("#", "\\#").replace("$", "$$"))

    def roots(self) -> Iterator[str]:
        """Where Kbuild descends: the top Kbuild file's folders, and those of the architecture's Makefile."""
        yield from self.look("")[1]
        makefile = self._tree.path / "arch" / self._tree.srcarch / "Makefile"
        # $(ARCH_CORE), $(ARCH_LIB) and $(ARCH_DRIVERS) of the top Kbuild file.
        pattern = r"(?m)^(?:core|drivers|libs)-(?:y|\$\(CONFIG_(\w+)\))\s*[:+]?=\s*(.*)$"
        for option, words in re.findall(pattern, makefile.read_text("utf-8", "replace")):
            if not option or option in self._config:
                yield from (word.rstrip("/") for word in words.split() if word.endswith("/"))
        yield from (name for name in ("lib", f"arch/{self._tree.srcarch}/lib"))

    def look(self, folder: str) -> tuple[set[str], list[str]]:
        """The objects and the folders that the Kbuild file of ``folder`` names."""
        file = self._tree.path / folder / "Kbuild"
        if not file.is_file():
            file = file.with_name("Makefile")
        if not file.is_file() or (folder == "" and file.name == "Makefile"):
            return set(), []
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
        objects: set[str] = set()
        folders: list[str] = []
        for line in re.findall(r"(?m)^klto: (.+)$", said):
            first, *parts = (
                os.path.normpath(os.path.join(folder, w)) + "/" * w.endswith("/") for w in line.split()
            )
            if first.endswith("/"):
                folders.append(first.rstrip("/"))
            objects |= {part for part in (parts or [first]) if part.endswith(".o")}
        return objects, folders


@contextmanager
def _probing(tree: KernelTree, config: Mapping[str, str]) -> Iterator[_Probe]:
    with tempfile.TemporaryDirectory(prefix="klto-kbuild-") as folder:
        yield _Probe(tree, config, Path(folder))
