"""One ThinLTO link with the link cache: what the linker is asked instead, and what it leaves behind."""

from __future__ import annotations

import hashlib
import os
import sys

from klto.link.includes import Scan, Uncacheable, digest_of
from klto.link.partition import partition_of
from klto.link.store import Partition, View
from klto.link.substitute import Substitutes, bitcode_inputs
from klto.objects.errors import MalformedObject

TYPE_CHECKING = False
if TYPE_CHECKING:
    from klto.link.inputs import Module
    from klto.link.request import LinkRequest

#: The environment variable that names the cache's root; empty or absent: no cache.
ENV_CACHE = "KLTO_CACHE"

#: lld's options for LLVM's own cache (lld/ELF/Options.td): whoever gives them has made other arrangements.
_OWN_CACHE = ("thinlto-cache-dir", "plugin-opt=cache-dir")

#: lld's options that make backends leave files of their own (lld/ELF/Options.td, 14 to 22): a module from the cache
#: would leave none.
_OWN_RESULTS = frozenset(
    (
        *("lto-obj-path", "plugin-opt=obj-path", "obj-path", "save-temps", "plugin-opt=save-temps"),
        *("thinlto-index-only", "plugin-opt=thinlto-index-only", "plugin-opt=stats-file", "stats-file"),
        *("opt-remarks-filename", "plugin-opt=opt-remarks-filename", "plugin-opt=dwo_dir", "lto-emit-asm"),
        *("plugin-opt=emit-asm", "lto-emit-llvm", "plugin-opt=emit-llvm", "thinlto-emit-index-files"),
        *("thinlto-emit-imports-files", "plugin-opt=thinlto-emit-imports-files", "thinlto-single-module"),
        *("lto-debug-pass-manager", "plugin-opt=debug-pass-manager", "plugin-opt=dwo_dir", "reproduce"),
    )
)

#: LLVM is not to prune a view: entries in it are links to klto's store, which is pruned as a whole.
_POLICY = "prune_interval=8760h:prune_after=0s:cache_size=0%"


class CachedLink:
    """A context manager around one link. ``arguments`` are what to call the linker with.

    When the cache cannot serve the link, ``view`` is None, ``arguments`` are the caller's and a note says why.
    """

    def __init__(self, root: str, linker: str, arguments: list[str], request: LinkRequest) -> None:
        self._root = root
        self._linker, self._request = linker, request
        self.arguments = arguments
        self.view: View | None = None
        self.salted = 0
        self._replaced: dict[str, str] = {}

    def __enter__(self) -> CachedLink:
        if self._request.sets(*_OWN_CACHE, *_OWN_RESULTS):
            return self
        try:
            self._prepare()
        except (
            Uncacheable,
            MalformedObject,
            OSError,
            ValueError,
            TypeError,
            KeyError,
            IndexError,
        ) as problem:
            # Whatever is wrong with the cache's own files too: a link never fails because of them.
            self._leave()
            note(f"{self._request.output} is linked without the cache: {problem}")
        return self

    def __exit__(self, *exc: object) -> None:
        self._leave()

    def identifier(self, module: Module) -> str:
        """How the linker names a module when it is called with ``arguments``."""
        instead = self._replaced.get(module.argument, module.argument)
        return instead + module.identifier.removeprefix(module.argument)

    def _leave(self) -> None:
        view, self.view = self.view, None
        if view is not None:
            try:
                view.__exit__(None, None, None)
            except OSError as problem:
                note(f"the link cache could not keep what was made: {problem}")

    def _prepare(self) -> None:
        for folder in ("scans", "partitions", "views"):
            os.makedirs(os.path.join(self._root, folder), exist_ok=True)
        request = self._request
        library = next((word for word in request.words if _is_library(word)), None)
        if library is not None:
            raise Uncacheable(f"which files {library} brings is for the linker to know")
        name = partition_of(
            self._linker, request.words, frozenset(request.inputs), os.path.join(self._root, "linkers.json")
        )
        view = View(self._root, Partition(self._root, name), note)
        view.__enter__()
        self.view = view
        substitutes = self._substitutes(os.path.join(view.folder, "inputs"))
        self._replaced = substitutes.of
        if substitutes.of:
            self.arguments = [substitutes.of.get(word, word) for word in request.words]
        self.arguments = [
            *self.arguments,
            f"--thinlto-cache-dir={view.objects}",
            f"--thinlto-cache-policy={_POLICY}",
        ]

    def _substitutes(self, folder: str) -> Substitutes:
        """Salted copies of the modules whose assembly includes files."""
        place = hashlib.sha256(f"{os.getcwd()}\0{self._request.output}".encode("utf-8", "surrogateescape"))
        scan = Scan(os.path.join(self._root, "scans", place.hexdigest()))
        substitutes = Substitutes(folder)
        archives: dict[str, dict[str, bytes]] = {}
        for argument, member in bitcode_inputs(self._request.inputs):
            path = argument if member is None else member.path
            names = scan.names(path) if path is not None else _names_in(member)
            if not names:
                continue
            self.salted += 1
            where = argument if member is None else member.where
            data = _read(path) if path is not None else bytes(member.data()) if member else b""
            copy = _salted(data, where, digest_of(names, where))
            if member is None:
                substitutes.module(argument, copy)
            else:
                archives.setdefault(argument, {})[where] = copy
        for argument, members in archives.items():
            substitutes.archive(argument, members)
        scan.save()
        return substitutes


def _is_library(word: str) -> bool:
    """``-l NAME``, ``-lNAME`` or ``--library``; ``-lto-...`` is something else."""
    return (word.startswith(("--library", "-library")) and "path" not in word) or (
        word.startswith("-l") and not word.startswith("-lto")
    )


def _names_in(member: object) -> list[str]:
    """A member of a full archive is read anew each time: it has no inode to remember it by."""
    from klto.link.includes import included_names, may_include
    from klto.objects.archive import Member

    assert isinstance(member, Member)
    data = bytes(member.data())
    return included_names(data, member.where) if may_include(data) else []


def _salted(data: bytes, where: str, salt: bytes) -> bytes:
    from klto.objects.module_hash import salted  # Late: few links have such modules.

    return salted(data, where, salt)


def _read(path: str) -> bytes:
    with open(path, "rb") as stream:
        return stream.read()


def note(text: str) -> None:
    """A line for the build's log."""
    print(f"klto: {text}", file=sys.stderr, flush=True)
