"""One ThinLTO link with the link cache: what the linker is asked instead, and what it leaves behind."""

from __future__ import annotations

import hashlib
import os
import sys

from klto.link.includes import Scan, Uncacheable, digest_of
from klto.link.partition import linker_digest, partition_of
from klto.link.store import LINKS, Partition, View
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

#: The environment variable that names the file which remembers digests of linkers; empty or absent: one in the cache.
ENV_LINKERS = "KLTO_LINKERS"

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

#: lld's options for lists that name inputs and what LTO made (lld/ELF/Options.td, 14 to 22): with the cache these are
#: salted copies and entries of the cache.
_NAMES_INPUTS = frozenset((
    "Map", "print-map", "M", "dependency-file", "cref", "trace", "t", "why-extract", "why-live", "print-archive-stats",
    "print-symbol-order", "print-gc-sections", "print-icf-sections",
))  # fmt: skip

#: What may go wrong with the cache, with its own files too: a link never fails because of them.
CACHE_TROUBLE = (Uncacheable, MalformedObject, OSError, ValueError, TypeError, KeyError, IndexError)

#: LLVM is not to prune a view: entries in it are links to klto's store, which is pruned as a whole.
_POLICY = "prune_interval=8760h:prune_after=0s:cache_size=0%"


class CachedLink:
    """A context manager around one link. ``arguments`` are what to call the linker with.

    When the cache cannot serve the link, ``view`` is None, ``arguments`` are the caller's and a note says why.

    :param jobs: processes that may work at once.
    :param whole: an equal link's output may be taken.
    :ivar done: the output is there already: an equal link has been done before.
    :ivar first: many of the inputs are not known: no link was done here since the machine was started, or much was
        compiled anew.
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
        jobs: int = 1,
    ) -> None:
        self._root = root
        self._linker, self._request, self._inputs = linker, request, inputs
        self.arguments = arguments
        self.view: View | None = None
        self.done = self.first = False
        self._may_be_whole, self._jobs = whole, jobs
        self._whole: Whole | None = None
        self._scan: Scan | None = None
        #: Inputs are looked at beside the linker. How often arguments were made.
        self._looking = False
        self._begun = 0
        #: Modules that were found to include files while the linker ran.
        self._including: set[str] = set()
        #: By module: the files that its assembly includes, and a digest of them before the linker began.
        self._included: dict[str, tuple[list[str], bytes]] = {}
        self._own_arguments = arguments
        self.salted = 0
        self._replaced: dict[str, str] = {}

    def __enter__(self) -> CachedLink:
        if self._request.sets(*_OWN_CACHE, *_OWN_RESULTS, *_NAMES_INPUTS):
            return self
        try:
            self._prepare()
        except CACHE_TROUBLE as problem:
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
        try:
            if self._scan is not None:
                self._scan.stop()
                self._scan.save(self._files())
            if view is not None and self._has_included_other_files():
                view.drop_generated()
        except CACHE_TROUBLE as problem:
            note(f"the link cache could not keep what is known of the inputs: {problem}")
        if view is not None:
            try:
                view.__exit__(None, None, None)
            except OSError as problem:
                note(f"the link cache could not keep what was made: {problem}")

    def _has_included_other_files(self) -> bool:
        """Whether a file that assembly includes is not what it was before the linker began."""
        return any(digest_of(names, name) != digest for name, (names, digest) in self._included.items())

    def _files(self) -> dict[str, bool]:
        """Every file that is read, to whether it is bitcode."""
        bitcode = {module.path for module in self._inputs.modules}
        return {path: path in bitcode for path in self._inputs.files or map(str, bitcode)}

    def _prepare(self) -> None:
        for folder in ("scans", "partitions", "views"):
            os.makedirs(os.path.join(self._root, folder), exist_ok=True)
        request = self._request
        library = next((word for word in request.words if _is_library(word)), None)
        if library is not None:
            raise Uncacheable(f"which files {library} brings is for the linker to know")
        linkers = os.environ.get(ENV_LINKERS) or os.path.join(self._root, "linkers.json")
        place = hashlib.sha256(f"{os.getcwd()}\0{request.output}".encode("utf-8", "surrogateescape"))
        self._scan = scan = Scan(os.path.join(self._root, "scans", place.hexdigest()))
        self._look(linkers, scan)
        if self.done:
            return
        name = partition_of(self._linker, request.words, frozenset(request.inputs), linkers)
        view = View(self._root, Partition(self._root, name), note)
        view.__enter__()
        self.view = view
        if self._looking:
            view.unsettle()
        self._arrange(view, scan)

    def _look(self, linkers: str, scan: Scan) -> None:
        """Look at the inputs; at most of a first link's beside the linker, when no link is known that equals it."""
        files = self._files() if self._inputs.files is not None else {}
        self.first = scan.worth_a_process(files)
        self._looking = self._jobs > 1 and self.first
        if self._looking and self._may_be_whole and Partition(self._root, LINKS).entries():
            self._looking = not self._as_whole(linkers, scan).possible()
        if self._looking:
            scan.begin_beside(files)
        elif self._jobs > 1:
            scan.begin(files)
        linker_digest(self._linker, linkers)  # Remembers it; here, while the other process is at work.
        if self._looking:
            if self._may_be_whole:
                self._as_whole(linkers, scan)  # Its command counts as it is before the linker runs.
        else:
            scan.finish()
            self.done = self._may_be_whole and self._as_whole(linkers, scan).find()

    def _as_whole(self, linkers: str, scan: Scan) -> Whole:
        from klto.link.whole import Whole

        if self._whole is None:
            self._whole = Whole(
                self._root, linker_digest(self._linker, linkers), self._request, self._inputs, scan
            )
        return self._whole

    def _arrange(self, view: View, scan: Scan) -> None:
        """What to call the linker with."""
        substitutes = self._substitutes(os.path.join(view.folder, f"inputs{self._begun}"), scan)
        self._begun += 1
        if not self._looking:
            scan.save(self._files())
        self._replaced = substitutes.of
        given = self._own_arguments
        if substitutes.of:
            given = [substitutes.of.get(word, word) for word in self._request.words]
        self.arguments = [
            *given,
            f"--thinlto-cache-dir={view.objects}",
            f"--thinlto-cache-policy={_POLICY}",
        ]

    def unsuitable(self) -> bool:
        """Whether it is known by now that the linker was given a module that it must not take from the cache."""
        try:
            if not self._looking or self._scan is None or not self._scan.arrived():
                return False
            if self._is_wrong():
                return True
            self._settled()
        except CACHE_TROUBLE:
            return True  # settle() will meet the same.
        return False

    @property
    def unsettled(self) -> bool:
        """Whether it is not known yet that the linker was given the right inputs: its output must not be used."""
        return self._looking

    def settle(self) -> bool:
        """When the linker has ended, wait until all of its inputs are known: whether they were what it should have been
        given. Else it must be called once more: with other ``arguments``, which are ready then.

        :raises Uncacheable: when it must be called without the cache; and others of ``CACHE_TROUBLE``.
        """
        if self._scan is None or self.view is None:
            return True
        wrong = self._looking and self._is_wrong()
        changed = self._scan.changed()
        if changed is not None:
            raise Uncacheable(f"{changed} has changed while it was linked")
        if wrong:
            self._looking = False
            self.view.drop_generated()
            self._arrange(self.view, self._scan)
            if self._whole is not None:
                self._whole.know_contents()
            self.view.settle()
        elif self._looking:
            self._settled()
        return not wrong

    def settle_if_known(self) -> None:
        """When the linker has ended and its output is of no use: whether what it has generated is."""
        if self._looking and self._scan is not None and self._scan.arrived():
            try:
                self.settle()
            except CACHE_TROUBLE:
                return  # It stays unsettled: nothing of it is kept.

    def _settled(self) -> None:
        """The linker was given what it should have been."""
        assert self.view is not None
        self._looking = False
        if self._including:
            self._whole = None  # What was included while the linker ran nobody can tell any more.
        self.view.settle()

    def _is_wrong(self) -> bool:
        """Whether a module that the linker was given as it is includes a file, and is one that LLVM's cache takes."""
        assert self._scan is not None
        self._including |= self._scan.settle()
        return any(_is_cached(module) for module in self._inputs.modules if module.path in self._including)

    def keep_whole(self) -> None:
        """The link is done and was right in every way: its output may be taken the next time."""
        if self._whole is not None:
            try:
                if self._whole.key is None and not self._has_included_other_files():
                    self._whole.know_contents()
                self._whole.keep()
            except CACHE_TROUBLE as problem:
                note(f"the link cache could not keep {self._request.output}: {problem}")

    def _substitutes(self, folder: str, scan: Scan) -> Substitutes:
        """Salted copies of the modules whose assembly includes files."""
        substitutes = Substitutes(folder)
        archives: dict[str, dict[str, bytes]] = {}
        self.salted = 0
        for module in self._inputs.modules:
            if module.path is not None and scan.is_pending(module.path):
                continue  # The linker begins again if it includes anything.
            # A member of a full archive is read anew each time: it has no inode to remember it by.
            names = _names_in(module) if module.path is None else scan.look(module.path, bitcode=True).names
            if not names:
                continue
            digest = digest_of(names, module.name)
            self._included[module.name] = names, digest
            if not _is_cached(module):
                continue
            self.salted += 1
            copy = _salted(bytes(module.data()), module.name, digest)
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
