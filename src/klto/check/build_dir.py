"""A finished build dir: which of its files are worth a check, and what each is for."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

from klto.check.link_inputs import LinkInputs
from klto.check.roles import NATIVE_PARTS, Role, role_of
from klto.check.saved import read_saved
from klto.check.subject import Subject, open_subject
from klto.errors import UsageError
from klto.kernel.kbuild_objects import leaves_out
from klto.kernel.ksyms_audit import Audit
from klto.kernel.saved_link import link_inputs, saved_link
from klto.kernel.tree import KernelTree
from klto.objects.archive import read_archive
from klto.objects.errors import MalformedObject
from klto.objects.kind import kind_of

#: Those of :data:`_FOLDERS` that have members in vmlinux.a, if they are part of the kernel.
_IN_VMLINUX = (
    ("arch/*/purgatory", ("*.ro", "*.o")),
    ("arch/*/kernel/pi", ("*.o",)),
    ("arch/x86/boot/startup", ("*.o",)),
    ("arch/*/kvm/hyp/nvhe", ("kvm_nvhe.o",)),
)
#: Artifacts below the build dir that are linked apart from vmlinux, where they are there. Linux 6.1 and 6.12.
_FOLDERS = (
    *_IN_VMLINUX,
    ("arch/x86/boot/compressed", ("*.o",)),
    ("arch/x86/realmode/rm", ("*.elf",)),
    ("drivers/firmware/efi/libstub", ("*.o",)),
    ("arch/x86/entry/vdso", ("*.so.dbg", "*.o")),
    ("arch/x86/entry/vdso/vdso32", ("*.o",)),
    ("arch/*/kernel/vdso*", ("*.so.dbg", "*.o")),
    ("arch/*/vdso", ("*.so.dbg", "*.o")),
)


class BuildDir:
    """A build dir of Kbuild.

    :ivar malformed: files that could not be read, found so far, and why.
    :raises UsageError: when it is none.
    """

    def __init__(self, path: Path, with_modules: bool = True) -> None:
        self.path = path
        self.with_modules = with_modules
        self.malformed: dict[str, MalformedObject] = {}
        #: Of exported symbols; made by the first rule that asks.
        self.audit: Audit | None = None
        if not (path / ".config").is_file():
            raise UsageError(
                f"{path} is no build dir: it has no .config", "name one with -b DIR, or files to check"
            )

    @cached_property
    def config(self) -> dict[str, str]:
        """CONFIG_ names without the prefix, and their values; options that are not set are left out."""
        text = (self.path / ".config").read_text("utf-8", "replace")
        return {name: value.strip('"') for name, value in re.findall(r"^CONFIG_(\w+)=(.*)$", text, re.M)}

    @property
    def lto(self) -> str:
        """thin, full or none, by the configuration."""
        if self.config.get("LTO_CLANG_THIN") == "y":
            return "thin"
        return "full" if self.config.get("LTO_CLANG_FULL") == "y" else "none"

    @cached_property
    def record(self) -> dict[str, object]:
        """klto's own record of the last build; empty without one."""
        try:
            found = json.loads((self.path / ".klto/record.json").read_bytes())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    @cached_property
    def vmlinux_o_words(self) -> list[str]:
        """The linker's arguments of the vmlinux.o link, as Kbuild saved them; none when they are not there."""
        return saved_link(self.path)[1:]

    @cached_property
    def link(self) -> LinkInputs:
        """The vmlinux.o link."""
        found = [path for path in link_inputs(self.path) if self.vmlinux_o_words or path.exists()]
        inputs = [os.path.relpath(path, self.path) for path in found]
        return LinkInputs("vmlinux.o", inputs, self.vmlinux_o_words, self.lto, root=str(self.path))

    def modules(self) -> Iterator[str]:
        """The kernel modules, from modules.order (6.1 lists ``*.ko``, 6.12 ``*.o``), relative to the build dir."""
        try:
            lines = (self.path / "modules.order").read_text().split() if self.with_modules else []
        except OSError:
            return
        for line in lines:
            path = re.sub(r"\.o$", ".ko", line)
            if (self.path / path).exists():
                yield path

    @cached_property
    def artifacts(self) -> list[str]:
        """The artifacts and the objects of links apart from vmlinux's, those that are there."""
        paths = [name for name in ("vmlinux.o", "vmlinux") if (self.path / name).is_file()]
        paths += self.modules()
        for folder, names in _FOLDERS:
            for place in sorted(self.path.glob(folder)):
                found = [file for name in names for file in sorted(place.glob(name))]
                if (folder, names) not in _IN_VMLINUX or not self._left_over(place, found):
                    paths += [str(file.relative_to(self.path)) for file in found]
        return [path for path in dict.fromkeys(paths) if role_of(path) is not Role.OBJECT]

    def _left_over(self, folder: Path, files: list[Path]) -> bool:
        """Whether an earlier configuration's: vmlinux.a was made after these files and has nothing of the folder, and
        the tree, where it is known, says that the configuration leaves the folder out."""
        archive = self.path / "vmlinux.a"
        try:
            if any(file.stat().st_mtime_ns > archive.stat().st_mtime_ns for file in files):
                return False
            members = read_archive(archive).members
        except (OSError, MalformedObject):
            return False
        if any(member.path and Path(member.path).parent == folder for member in members):
            return False
        place = folder.relative_to(self.path)
        arch = {"x86": "x86_64"}.get(place.parts[1], place.parts[1])
        try:
            tree = KernelTree.open(self.tree, arch) if self.tree else None
        except UsageError:
            tree = None
        return tree is None or leaves_out(tree, self.config, f"{place}/")

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to check but the configuration."""
        return not self.artifacts and not (self.path / "vmlinux.a").exists()

    def subjects(self, role: Role | None = None) -> Iterator[Subject]:
        """The artifacts, or those of one role, opened one after the other: nothing of them is kept."""
        for path in self.artifacts:
            if role in (None, role_of(path)):
                subject = self.subject(path)
                if subject is not None:
                    yield subject

    def subject(self, path: str) -> Subject | None:
        """The artifact of that name; None when there is none, or it cannot be read."""
        if path not in self.artifacts:
            return None
        full = os.path.join(self.path, path)
        try:
            if kind_of(full) not in ("elf", "bitcode"):
                return None
            command = read_saved(full) if role_of(path) in NATIVE_PARTS else None
            return open_subject(full, path, command, self.tree)
        except MalformedObject as error:
            self.malformed[path] = error
            return None

    @cached_property
    def tree(self) -> Path | None:
        """The source tree: the build dir's ``source`` link, or itself when it was built in the tree."""
        for place in (self.path / "source", self.path):
            if (place / "Kbuild").is_file():
                return Path(os.path.realpath(place))
        return None

    def text_of_source(self, name: str) -> str | None:
        """A file of the source tree; None when it is not to be had."""
        try:
            return (self.tree / name).read_text("utf-8", "replace") if self.tree else None
        except OSError:
            return None
