"""What a command was given to look at: a build dir, a run record, or a bare image."""

from __future__ import annotations

import fcntl
import hashlib
import os
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from klto.errors import UsageError
from klto.kernel.saved_link import link_inputs
from klto.kernel.tree import KernelTree, default_build_dir, is_kernel_tree
from klto.objects.kind import kind_of
from klto.record import ImageSizes, ObjectSize, Record, read_record
from klto.report.attribution import Definitions, object_sizes, read_definitions
from klto.report.image import Image
from klto.units import duration, size

_RECORD = Path(".klto", "record.json")


@dataclass
class Side:
    """One of the things that are compared or reported.

    :ivar label: as the user named it.
    :ivar record: None for a bare image, or a build dir that klto did not build.
    :ivar build_dir: where the record's files lie, None when it is gone.
    :ivar image: the image file, None when it is gone or another than the record's.
    :ivar notes: what the reader should know of it, one line each.
    """

    label: str
    record: Record | None = None
    build_dir: Path | None = None
    image_path: Path | None = None
    notes: list[str] = field(default_factory=list)

    @cached_property
    def image(self) -> Image | None:
        """The image with its sections and symbols, None without one."""
        return Image(self.image_path) if self.image_path is not None else None

    @cached_property
    def definitions(self) -> Definitions | None:
        """What the objects of its link define, None when they are gone or are no longer this image's."""
        if self.build_dir is None or self.image_path != self.build_dir / "vmlinux":
            return None
        return read_definitions(self.build_dir, link_inputs(self.build_dir))

    @cached_property
    def sizes(self) -> ImageSizes | None:
        """Sections and objects: from the image, or as the record has them when that is gone."""
        if self.record is not None and self.record.sizes is not None:
            return self.record.sizes
        return _sizes(self.image, self.definitions) if self.image is not None else None

    @property
    def arch(self) -> str | None:
        """The architecture: x86_64, arm64."""
        if self.record is not None and self.record.tree is not None:
            return self.record.tree.arch
        target = self.image.target if self.image is not None else None
        return "arm64" if target == "aarch64" else target

    @property
    def lto(self) -> str:
        """thin, full or none; ``?`` when nothing says it."""
        config = self.record.config if self.record is not None else None
        return config.lto if config is not None else "?"

    @property
    def source_tree(self) -> Path | None:
        """The kernel tree, when it is there."""
        tree = Path(self.record.tree.path) if self.record is not None and self.record.tree else None
        return tree if tree is not None and tree.is_dir() else None


def _sizes(image: Image, definitions: Definitions | None) -> ImageSizes:
    objects: list[ObjectSize] = []
    if definitions is not None and image.elf.symtab is not None:
        objects = object_sizes(image, definitions)
    return ImageSizes(sections=image.sections, objects=objects)


def measure(build_dir: Path) -> ImageSizes | None:
    """What the build dir's vmlinux is made of, None when it is not there.

    :raises MalformedObject: when it is broken.
    """
    path = build_dir / "vmlinux"
    return Side(os.fspath(build_dir), None, build_dir, path).sizes if path.is_file() else None


def open_side(path: Path) -> Side:
    """Open a build dir, a record or an image.

    :raises UsageError: when it is none of these, is damaged, or its build has not ended.
    """
    label = os.fspath(path)
    if path.is_dir():
        if (path / _RECORD).exists():
            return _of_record(label, path / _RECORD, path)
        if (path / "vmlinux").is_file():
            return Side(
                label, None, path, path / "vmlinux", ["no record of klto: times and memory not known"]
            )
        raise UsageError(
            f"{label} is no build dir: it has no {_RECORD} and no vmlinux", "build it: klto build"
        )
    if not path.exists():
        raise UsageError(f"{label}: no such file or directory", "give a build dir, a record or an image")
    if kind_of(path) == "elf":
        return Side(label, None, None, path)
    return _of_record(label, path, _home_of(path))


def find_build_dir(tree: Path, build_dir: Path | None, arch: str | None) -> Path:
    """The build dir that ``-C``, ``-b`` and ``-a`` mean: of several with a record the one built last.

    :raises UsageError: when none has been built.
    """
    if build_dir is not None:
        return build_dir
    candidates = [tree]
    if is_kernel_tree(tree):
        opened = KernelTree.open(tree, arch)
        candidates += [default_build_dir(opened, lto) for lto in ("thin", "full", "none", "keep")]
    built = [folder for folder in candidates if (folder / _RECORD).is_file()]
    if not built:
        raise UsageError(f"nothing built by klto in {tree}", "name a build dir: -b DIR")
    return max(built, key=lambda folder: (folder / _RECORD).stat().st_mtime)


def open_record(path: Path) -> Side:
    """As :func:`open_side`, for what must have a record.

    :raises UsageError: also for a bare image or a build dir without a record.
    """
    side = open_side(path)
    if side.record is None:
        raise UsageError(f"{side.label} has no record of klto", "build it with klto build, then report")
    return side


def _home_of(path: Path) -> Path | None:
    """The build dir that a record file lies in; None for a copy elsewhere."""
    folder = path.absolute().parent
    return folder.parent if folder.name == _RECORD.parent.name else None


def _of_record(label: str, path: Path, home: Path | None) -> Side:
    record = read_record(path)
    if record.status == "running":
        _refuse_running(label, record, home)
    if home is None and record.config is not None:
        folder = Path(record.config.path).parent
        home = folder if folder.is_dir() else None
    side = Side(label, record, home)
    artifact = next((a for a in record.artifacts if a.path == "vmlinux"), None)
    vmlinux = home / "vmlinux" if home is not None else None
    if artifact is None:
        side.notes.append("its run made no vmlinux: sizes not known")
    elif vmlinux is None or not vmlinux.is_file():
        side.notes.append("its vmlinux is gone: symbols not known")
    elif not _is_the_one(vmlinux, artifact.bytes, artifact.sha256):
        side.notes.append("its vmlinux has been built anew since: symbols not known")
    else:
        side.image_path = vmlinux
        if not record.links and record.status == "done":
            side.notes.append(f"its last run linked nothing: {_last_link(record, vmlinux.parent)}")
    return side


def _last_link(record: Record, build_dir: Path) -> str:
    """What the history knows of the last link of the same configuration there that generated everything."""
    from klto.report.history import read_history  # Late: it imports what compares sides.

    try:
        runs = read_history()
    except UsageError:
        runs = []  # klto history says what is wrong with it.
    where, config = os.path.abspath(build_dir), record.config.sha256 if record.config else None
    for run in reversed(runs):
        whole = run.generated in (None, run.bitcode_modules)
        if (run.build_dir, run.config_sha256) == (where, config) and run.link_seconds and whole:
            memory = f", {size(run.link_peak_bytes)}" if run.link_peak_bytes else ""
            return f"its last whole link took {duration(run.link_seconds)}{memory}"
    return "the link's time and memory are not known"


def _is_the_one(path: Path, size: int, sha256: str) -> bool:
    if path.stat().st_size != size:
        return False
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest() == sha256


def _refuse_running(label: str, record: Record, home: Path | None) -> None:
    lock = home / ".klto" / "lock" if home is not None else None
    if lock is not None and lock.exists() and _is_locked(lock):
        raise UsageError(f"{label} is being built now (process {record.pid})", "wait for it to end")
    raise UsageError(f"the build in {label} was killed before its end", "run klto build again, it goes on")


def _is_locked(lock: Path) -> bool:
    """Whether a klto works in the build dir (klto.build.folder)."""
    try:
        descriptor = os.open(lock, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def check_comparable(sides: list[Side]) -> None:
    """:raises UsageError: for images of different architectures."""
    first = sides[0]
    for other in sides[1:]:
        if first.arch and other.arch and first.arch != other.arch:
            raise UsageError(
                f"cannot compare {first.label} ({first.arch}) with {other.label} ({other.arch})",
                "compare builds of one architecture",
            )
