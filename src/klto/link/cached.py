"""One ThinLTO link with the link cache: what the linker is asked instead, and what it leaves behind."""

from __future__ import annotations

import hashlib
import os
import sys

from klto.link.includes import Scan, Uncacheable, digest_of
from klto.link.partition import linker_digest, partition_of
from klto.link.store import Partition, View
from klto.link.substitute import Substitutes
from klto.objects.errors import MalformedObject

#: The environment variable that asks for finished links as a whole (klto.link.whole); empty or absent: each link is
#: done by the linker.
ENV_WHOLE = "KLTO_WHOLE_LINKS"

TYPE_CHECKING = False
if TYPE_CHECKING:
    from klto.link.inputs import Inputs, Module
    from klto.link.request import LinkRequest
    from klto.link.whole import Whole

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

    :param whole: an equal link's output may be taken.
    :ivar done: the output is there already: an equal link has been done before.
    """

    def __init__(
        self,
        root: str,
        linker: str,
        arguments: list[str],
        request: LinkRequest,
        inputs: Inputs,
        *,
        whole: bool = False,
    ) -> None:
        self._root = root
        self._linker, self._request, self._inputs = linker, request, inputs
        self.arguments = arguments
        self.view: View | None = None
        self.done = False
        self._may_be_whole = whole
        self._whole: Whole | None = None
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

    @property
    def renamed(self) -> dict[str, str]:
        """What stands in for an input, to the input."""
        return {copy: own for own, copy in self._replaced.items()}

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
        linkers = os.path.join(self._root, "linkers.json")
        place = hashlib.sha256(f"{os.getcwd()}\0{request.output}".encode("utf-8", "surrogateescape"))
        scan = Scan(os.path.join(self._root, "scans", place.hexdigest()))
        if self._may_be_whole:
            self._find_whole(linkers, scan)
            if self.done:
                return
        name = partition_of(self._linker, request.words, frozenset(request.inputs), linkers)
        view = View(self._root, Partition(self._root, name), note)
        view.__enter__()
        self.view = view
        substitutes = self._substitutes(os.path.join(view.folder, "inputs"), scan)
        scan.save()
        self._replaced = substitutes.of
        if substitutes.of:
            self.arguments = [substitutes.of.get(word, word) for word in request.words]
        self.arguments = [
            *self.arguments,
            f"--thinlto-cache-dir={view.objects}",
            f"--thinlto-cache-policy={_POLICY}",
        ]

    def _find_whole(self, linkers: str, scan: Scan) -> None:
        from klto.link.whole import Whole

        self._whole = Whole(
            self._root, linker_digest(self._linker, linkers), self._request, self._inputs, scan
        )
        self.done = self._whole.find()

    def keep_whole(self) -> None:
        """The link is done and was right in every way: its output may be taken the next time."""
        if self._whole is not None:
            try:
                self._whole.keep()
            except OSError as problem:
                note(f"the link cache could not keep {self._request.output}: {problem}")

    def _substitutes(self, folder: str, scan: Scan) -> Substitutes:
        """Salted copies of the modules whose assembly includes files."""
        substitutes = Substitutes(folder)
        archives: dict[str, dict[str, bytes]] = {}
        for module in self._inputs.modules:
            # A member of a full archive is read anew each time: it has no inode to remember it by.
            names = _names_in(module) if module.path is None else scan.look(module.path, bitcode=True).names
            if not names or not _is_cached(module):
                continue
            self.salted += 1
            copy = _salted(bytes(module.data()), module.name, digest_of(names, module.name))
            if module.path == module.argument:
                substitutes.module(module.argument, copy)
            else:
                archives.setdefault(module.argument, {})[module.name] = copy
        for argument, members in archives.items():
            substitutes.archive(argument, members)
        return substitutes


def _is_library(word: str) -> bool:
    """``-l NAME``, ``-lNAME`` or ``--library``; ``-lto-...`` is something else."""
    return (word.startswith(("--library", "-library")) and "path" not in word) or (
        word.startswith("-l") and not word.startswith("-lto")
    )


def _names_in(module: Module) -> list[str]:
    from klto.link.includes import included_names, may_include

    data = bytes(module.data())
    return included_names(data, module.name) if may_include(data) else []


def _is_cached(module: Module) -> bool:
    """Whether LLVM's cache takes a module's code: that of ThinLTO modules alone (llvm/lib/LTO/LTO.cpp, 14 to 22:
    runRegularLTO is given no cache)."""
    from klto.objects.bitcode import Bitcode

    return any(part.properties.summary == "thin" for part in Bitcode(module.data(), module.name).modules)


def _salted(data: bytes, where: str, salt: bytes) -> bytes:
    from klto.objects.module_hash import salted  # Late: few links have such modules.

    return salted(data, where, salt)


def note(text: str) -> None:
    """A line for the build's log."""
    print(f"klto: {text}", file=sys.stderr, flush=True)
