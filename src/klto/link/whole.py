"""Finished links as a whole: when nothing that goes into a link has changed, its output is taken as it was.

The key is two SHA-256: one over the linker, all arguments, the contents of every file that arguments name and the
sizes of the inputs; one over the contents of every input and of every file that assembly includes. Only links of which
all that is known, and that said nothing, are kept.
"""

from __future__ import annotations

import hashlib
import os
import shutil

from klto.link.partition import argument_digests
from klto.link.store import LINKS, Partition

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from klto.link.includes import Scan
    from klto.link.inputs import Inputs
    from klto.link.request import LinkRequest

#: Bytes of finished links that the store may hold: linked kernels would push out modules.
LIMIT = 1 << 30

#: Options of lld (lld/ELF/Options.td, 14 to 22) that leave nothing but the output and read no file but those whose
#: contents are in the key. With any other option a link is done by the linker.
_KNOWN = frozenset((
    "m", "z", "r", "relocatable", "o", "output", "whole-archive", "no-whole-archive", "start-group",
    "end-group", "start-lib", "end-lib", "T", "script", "mllvm", "plugin-opt", "build-id", "EL", "EB",
    "fatal-warnings", "no-fatal-warnings", "threads", "thinlto-jobs", "nostdlib", "no-undefined", "X", "x",
    "strip-debug", "S", "s", "discard-all", "discard-locals", "orphan-handling", "e", "entry",
    "gc-sections", "no-gc-sections", "error-limit", "lto-O", "lto-O0", "lto-O1", "lto-O2", "lto-O3",
    "lto-CGO0", "lto-CGO1", "lto-CGO2", "lto-CGO3", "lto-whole-program-visibility", "emit-relocs",
    "no-relax", "relax",
))  # fmt: skip
#: In the names of LLVM's own options: those that may write files or ask for a report.
_TELLING = (
    "file", "output", "dir", "dump", "print", "stat", "time", "debug", "view", "dot", "save", "remark", "log",
)  # fmt: skip

#: Commands of linker scripts that read further files.
_READING = (b"INCLUDE", b"INPUT", b"GROUP", b"STARTUP")


class Whole:
    """The output of one link, if it is known. ``key`` is None before the contents of inputs are asked for, and when
    the link is not one that can be known."""

    def __init__(
        self, root: str, linker_sha256: str, request: LinkRequest, inputs: Inputs, scan: Scan
    ) -> None:
        self._partition = Partition(root, LINKS)
        self._output = request.output
        self._of = (linker_sha256, request, inputs)
        self._inputs, self._scan = inputs, scan
        self._command = _command_key(*self._of)
        self.key: str | None = None

    def possible(self) -> bool:
        """Whether a link with the same command, inputs of the same names and sizes, is known."""
        return self._command is not None and any(
            key.startswith(self._command) for key in self._partition.entries()
        )

    def find(self) -> bool:
        """Put the known output in its place, whole; False when there is none.

        :raises Uncacheable: when what a module includes cannot be told.
        """
        self.know_contents()
        entry = self._partition.entries().get(self.key or "")
        if entry is None:
            return False
        intact = self._partition.intact(entry)
        if intact is None:
            self._partition.drop(entry.key)
            return False
        if intact is not entry:
            with self._partition.locked():
                self._partition.append([intact])
        aside = f"{self._output}.klto-{os.getpid()}"
        try:
            shutil.copyfile(self._partition.path(entry.key), aside)
            shutil.copymode(self._partition.path(entry.key), aside)
            os.replace(aside, self._output)
        except OSError:
            _unlink(aside)
            return False  # Pruned since, or no space: the linker will say so.
        return True

    def know_contents(self) -> None:
        """Ask for the contents of the inputs as they are now: before the linker reads them, or after it when all are
        known to be what they were.

        :raises Uncacheable: when what a module includes cannot be told.
        """
        if self._command is not None:
            self.key = self._command + _contents_key(self._inputs, self._scan)

    def keep(self) -> None:
        """Take the output in, when all that is in the key is the same still as when it was made.

        :raises OSError: when there is no space, or an input is gone; nothing is kept then.
        """
        if self.key is None or os.path.getsize(self._output) > LIMIT // 4:
            return
        if (_command_key(*self._of) or "") + _contents_key(self._inputs, self._scan) != self.key:
            return
        aside = os.path.join(self._partition.folder, f"index.new-{os.getpid()}")
        with self._partition.locked():
            try:
                shutil.copyfile(self._output, aside)
                shutil.copymode(self._output, aside)
                self._partition.append([self._partition.put(self.key, aside)])
            except OSError:
                _unlink(aside)
                raise
            _keep_latest(self._partition)


def _command_key(linker_sha256: str, request: LinkRequest, inputs: Inputs) -> str | None:
    """A SHA-256 over all but the contents of inputs; None when the link is not one that can be known."""
    if inputs.files is None or not all(_is_known(word) for word in _options(request.words)):
        return None
    if any(module.path is None for module in inputs.modules):
        return None  # Members of full archives may include files, and are not looked at one by one here.
    if "LLD_REPRODUCE" in os.environ or not os.path.isdir(os.path.dirname(request.output) or "."):
        return None
    digest = hashlib.sha256("\0".join((linker_sha256, *request.words)).encode("utf-8", "surrogateescape"))
    for word, content in argument_digests(request.words, frozenset(request.inputs), scripts=True):
        digest.update(b"\0" + os.fsencode(word) + b"\0" + content)
    if any(_reads_more(script) for script in _scripts(request.words)):
        return None
    for path in inputs.files:
        digest.update(f"\0{path}\0{os.path.getsize(path)}".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _contents_key(inputs: Inputs, scan: Scan) -> str:
    """A SHA-256 over the contents of inputs and of what their assembly includes."""
    digest = hashlib.sha256()
    bitcode = {module.path for module in inputs.modules}
    for path in inputs.files or ():
        seen = scan.look(path, bitcode=path in bitcode)
        digest.update(f"\0{path}\0{seen.sha256}".encode("utf-8", "surrogateescape"))
        if seen.names:
            from klto.link.includes import digest_of  # Late: few links have such modules.

            digest.update(digest_of(seen.names, path))
    return digest.hexdigest()


def _options(words: tuple[str, ...]) -> Iterable[str]:
    """The options, those of LLVM's own by their names, without values that stand apart."""
    from klto.link.request import takes_value

    rest = iter(words)
    for word in rest:
        if word in ("-mllvm", "-plugin-opt", "--plugin-opt"):
            yield f"-mllvm={next(rest, '')}"
        elif word.startswith("-"):
            yield word
            if takes_value(word):
                next(rest, None)


def _is_known(word: str) -> bool:
    name, _, value = word.lstrip("-").partition("=")
    if name in ("mllvm", "plugin-opt"):
        return not any(telling in value.partition("=")[0].lower() for telling in _TELLING)
    return name in _KNOWN or word.startswith(("-melf", "-maarch64", "-z"))


def _scripts(words: tuple[str, ...]) -> Iterable[str]:
    rest = iter(words)
    for word in rest:
        name, equals, value = word.lstrip("-").partition("=")
        if name in ("T", "script"):
            yield value if equals else next(rest, "")


def _reads_more(script: str) -> bool:
    try:
        with open(script, "rb") as stream:
            text = stream.read()
    except OSError:
        return True
    return any(command in text for command in _READING)


def _keep_latest(partition: Partition) -> None:
    """Remove links beyond the limit, those made longest ago first."""
    held, left = 0, []
    for entry in reversed(list(partition.entries().values())):
        held += entry.size
        if held <= LIMIT:
            left.append(entry)
        else:
            partition.drop(entry.key)
    partition.rewrite(left[::-1])


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        return
