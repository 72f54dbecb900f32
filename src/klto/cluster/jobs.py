"""Makes the jobs of a link: which files each backend needs, by content, and its options."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from klto.cluster.backend import LocalFiles
from klto.cluster.job import Blob, Job, digest_of, inside
from klto.cluster.module_flags import ModuleFlags, read_module_flags
from klto.cluster.options import LinkOptions, Undistributable
from klto.cluster.shard import canonical_name, canonical_shard
from klto.files import write_whole
from klto.link.includes import Uncacheable, included_names, may_include
from klto.objects.errors import MalformedObject

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

#: How a job's folder calls the shard.
_INDEX = "index.thinlto.bc"
#: Files that included files include are looked for to this depth (as klto.link.includes does).
_MAX_DEPTH = 16


class Module:
    """A bitcode module: content address, flags, and the files that its assembly includes."""

    __slots__ = ("flags", "includes", "sha256", "size")

    def __init__(self, sha256: str, size: int, flags: ModuleFlags, includes: tuple[str, ...]) -> None:
        self.sha256 = sha256
        self.size = size
        self.flags = flags
        self.includes = includes


class Modules:
    """Reads modules once, keeps what they are for the jobs, and remembers flags by content in ``memo``."""

    def __init__(self, files: LocalFiles, memo: Path | None) -> None:
        self._files, self._memo = files, memo
        self._known: dict[str, list[object]] = _load(memo)
        self._fresh = False
        self._modules: dict[str, Module] = {}

    def add(self, name: str, read: Callable[[], bytes], path: str | None) -> Module:
        """The module that the linker calls ``name``.

        :raises Undistributable: when it cannot be understood.
        """
        if name in self._modules:
            return self._modules[name]
        data = read()
        sha256 = digest_of(data)
        if path is not None:
            self._files.add_path(sha256, path)
        else:
            self._files.add_bytes(sha256, data)
        flags, includes = self._look(sha256, data, name)
        module = self._modules[name] = Module(sha256, len(data), flags, includes)
        return module

    def _look(self, sha256: str, data: bytes, name: str) -> tuple[ModuleFlags, tuple[str, ...]]:
        match self._known.get(sha256):
            case [str(triple), str(summary), bool(pic), list(includes)]:
                return ModuleFlags(triple, summary, pic), tuple(map(str, includes))
        try:
            flags = read_module_flags(data, name)
            includes = included_names(data, name) if may_include(data) else []
        except (MalformedObject, Uncacheable) as error:
            raise Undistributable(str(error)) from error
        if flags.summary != "thin":
            raise Undistributable(f"{name} is not a ThinLTO module (summary: {flags.summary or 'none'})")
        self._known[sha256] = [flags.triple, flags.summary, flags.pic, includes]
        self._fresh = True
        return flags, tuple(includes)

    def save(self) -> None:
        """Remember for the next link."""
        if self._memo is not None and self._fresh:
            used = {module.sha256 for module in self._modules.values()}
            kept = {sha256: known for sha256, known in self._known.items() if sha256 in used}
            write_whole(self._memo, json.dumps(kept))


def _load(memo: Path | None) -> dict[str, list[object]]:
    try:
        known = json.loads(memo.read_text()) if memo is not None else {}
    except (OSError, ValueError):
        return {}  # Everything is looked at anew.
    return known if isinstance(known, dict) else {}


def make_job(
    name: str,
    shard: bytes,
    module_of: Callable[[str], Module],
    options: LinkOptions,
    toolchain: str,
    files: LocalFiles,
) -> Job:
    """The job of one module.

    :param module_of: by the linker's name.
    :raises Undistributable: when it needs what cannot travel.
    """
    try:
        canonical = canonical_shard(shard, name)
    except MalformedObject as error:
        raise Undistributable(str(error)) from error
    if name not in canonical.modules:
        raise Undistributable(f"the index of {name} does not mention it")
    index = digest_of(canonical.data)
    files.add_bytes(index, canonical.data)
    modules = [module_of(path) for path in canonical.modules]
    blobs = [Blob(canonical_name(rank), module.sha256) for rank, module in enumerate(modules)]
    blobs.append(Blob(_INDEX, index))
    blobs += _included({path for module in modules for path in module.includes}, name, files)
    own = module_of(name)
    return Job(
        name=name,
        toolchain=toolchain,
        options=options.of_module(own.flags.triple, own.flags.pic),
        module=canonical.name_of(name),
        index=_INDEX,
        files=tuple(blobs),
    )


def _included(paths: Iterable[str], name: str, files: LocalFiles) -> list[Blob]:
    """The files that assembly includes, and those that they include, with the paths that it names them by."""
    from klto.objects.assembly import included_files

    found: dict[str, Blob] = {}
    todo = [(path, 0) for path in sorted(paths)]
    while todo:
        path, depth = todo.pop()
        if path in found or not os.path.isfile(path):
            continue  # A missing file is the compiler's to complain about.
        if not inside(path) or depth > _MAX_DEPTH:
            raise Undistributable(f"{name} includes {path}, which lies outside of the folder of the link")
        data = Path(path).read_bytes()
        sha256 = digest_of(data)
        files.add_bytes(sha256, data)
        found[path] = Blob(path, sha256)
        todo += [(include.path, depth + 1) for include in included_files(data) if include.path is not None]
    return list(found.values())
