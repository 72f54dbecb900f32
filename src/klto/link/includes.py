"""Files that the assembly of bitcode modules includes, which LLVM's cache keys do not cover.

``.incbin`` and ``.include`` are carried out when a backend assembles, in the folder the link runs in. A module
that has one, and every module that imports the function it stands in, would be taken from the cache though the
file has changed. Here such modules are found and a digest of what they include is made.
"""

from __future__ import annotations

import hashlib
import os
import signal
import time

from klto.link.store import TOO_YOUNG, boot_id
from klto.objects.assembly_bits import may_hold_in_any_case
from klto.objects.errors import MalformedObject
from klto.objects.source import read_whole

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from klto.objects.source import Buffer

#: All directives of LLVM's assembler that read a file, in any case (llvm/lib/MC/MCParser/AsmParser.cpp,
#: DK_INCBIN, DK_INCLUDE), and those that can compose such names.
_WORDS = (b"incbin", b"include", b".macro", b".irp")

#: Files that include each other deeper than this are refused.
_MAX_DEPTH = 16


class Uncacheable(Exception):
    """What a module includes cannot be told; its link must not use a cache. The message says which and why."""


def may_include(data: bytes) -> bool:
    """Whether a module's bytes hold one of the words anywhere, in any case; False rules the module out."""
    return may_hold_in_any_case(data, _WORDS)


def included_names(data: Buffer, where: str) -> list[str]:
    """The files that a bitcode file's assembly names, as written.

    :raises Uncacheable: when a name cannot be told.
    :raises MalformedObject: when the file cannot be read as bitcode.
    """
    # Late: few links need the reader, and this process must start fast.
    from klto.objects.assembly import expand_template, included_files
    from klto.objects.bitcode import Bitcode, InlineAsm

    names = []
    for module in Bitcode(data, where).modules:
        for item in module.assembly():
            text = expand_template(item.text) if isinstance(item, InlineAsm) else item
            for include in included_files(text):
                if include.path is None:
                    raise Uncacheable(f"{where} includes a file that cannot be told: {include.text}")
                names.append(include.path)
    return names


def digest_of(names: Iterable[str], where: str) -> bytes:
    """A digest of the files' contents as a backend would find them now.

    :raises Uncacheable: when an included file includes others that cannot be told.
    """
    digest = hashlib.sha256()
    for name in names:
        _digest_file(digest, name, where, _MAX_DEPTH)
    return digest.digest()


def _digest_file(digest: hashlib._Hash, name: str, where: str, depth: int) -> None:
    from klto.objects.assembly import included_files

    if depth == 0:
        raise Uncacheable(f"{where}: files include each other deeper than {_MAX_DEPTH}: {name}")
    try:
        data = bytes(read_whole(name))
    except MalformedObject:
        digest.update(f"missing {name}\0".encode("utf-8", "surrogateescape"))
        return
    digest.update(f"{len(data)} {name}\0".encode("utf-8", "surrogateescape") + data)
    # A binary file may hold such words by accident: more is digested then than needed, never less.
    for include in included_files(data):
        if include.path is not None and include.path != name:
            _digest_file(digest, include.path, where, depth - 1)
        elif include.path is None:
            digest.update(b"unknown\0" + str(time.time_ns()).encode())


#: Inputs to look at that are worth a second process: a kernel's first link has a thousand, a later one a few.
_WORTH_A_PROCESS = 100

#: Bytes of the modules that are looked at before the linker starts, when the others are looked at beside it. A module
#: that includes a file seldom has much else (kernel/configs.c, kernel/kheaders.c of 6.12: 8 KiB of bitcode).
_SMALL = 10 << 10


def _write_json(descriptor: int, value: object) -> None:
    import json

    with open(descriptor, "w", encoding="utf-8", errors="surrogateescape") as stream:
        json.dump(value, stream)


#: In the memo, in place of an included file's name (no file has such a one): what it includes cannot be told.
_UNTOLD = "\0"


def _leave_with_parent() -> None:
    """End when klto does, and hold none of make's pipes."""
    import ctypes  # Late: for the other process alone.

    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


#: include/uapi/linux/prctl.h.
_PR_SET_PDEATHSIG = 1


class Seen:
    """What is known of one input: a SHA-256 of its bytes, and the files its assembly includes. A value."""

    __slots__ = ("names", "sha256")

    def __init__(self, sha256: str, names: list[str]) -> None:
        self.sha256 = sha256
        self.names = names


class Scan:
    """Remembers what the inputs of one link are, and which files each module includes.

    What was found counts as long as the file has the same inode, size and time stamps; ctime among them, which
    no program can set; and until the machine is started again, since a power loss may leave stamps and no content.
    """

    def __init__(self, memo: str) -> None:
        self._memo = memo
        self._known: dict[str, list[object]] = {}
        self._now: dict[str, list[object]] = {}
        self._changed = False
        self._boot = boot_id()
        self._helper, self._results = 0, -1
        self._ours: dict[str, bool] = {}
        #: What the helper looks at beside the linker; every input as it was before the linker began.
        self._pending: dict[str, bool] = {}
        self._before: dict[str, list[object]] = {}
        self._load()

    def _load(self) -> None:
        import json

        try:
            with open(self._memo, encoding="utf-8", errors="surrogateescape") as stream:
                known = json.load(stream)
        except (OSError, ValueError):
            return  # Nothing is known; everything is looked at.
        if isinstance(known, dict):
            self._known = known

    def _identity(self, status: os.stat_result) -> list[object]:
        return [status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns, self._boot]

    def worth_a_process(self, paths: Iterable[str]) -> bool:
        """Whether there is much to look at."""
        return sum(not self._is_known(path) for path in paths) >= _WORTH_A_PROCESS

    def begin(self, paths: dict[str, bool]) -> None:
        """Have another process look at half of the inputs that are not known. :meth:`finish` looks at the other half.

        :param paths: input to whether it is bitcode.
        """
        unknown = [path for path in paths if not self._is_known(path)]
        if len(unknown) < _WORTH_A_PROCESS:
            return
        self._ours = {path: paths[path] for path in unknown[1::2]}
        self._start({path: paths[path] for path in unknown[::2]})

    def begin_beside(self, paths: dict[str, bool]) -> None:
        """Have another process look at the inputs that are not known, but for small modules, while the linker runs.

        :meth:`settle` says which of them include files, :meth:`changed` which inputs are others than now.
        """
        self._before = {path: self._identity(os.stat(path)) for path in paths}
        self._pending = {
            path: bitcode
            for path, bitcode in paths.items()
            if not self._is_known(path) and (not bitcode or os.path.getsize(path) > _SMALL)
        }
        self._start(self._pending)

    def _start(self, paths: dict[str, bool]) -> None:
        results = os.memfd_create("klto-scan", os.MFD_CLOEXEC)
        self._helper = os.fork()
        if self._helper:
            self._results = results
            return
        try:
            _leave_with_parent()
            self._look_at(paths)
            young = {path: bitcode for path, bitcode in paths.items() if path not in self._now}
            if young:
                time.sleep(TOO_YOUNG / 1e9)
                self._look_at(young)
            _write_json(results, self._now)
        finally:
            os._exit(0)

    def finish(self) -> None:
        """Look at our half, then wait for the other process, if there is one. What it has not looked at is looked at
        when it is asked for."""
        if self._helper:
            self._look_at(self._ours)
            self._take(0)

    def is_pending(self, path: str) -> bool:
        """Whether another process looks at it beside the linker, and has not said yet what it is."""
        return path in self._pending

    def arrived(self) -> bool:
        """Whether the other process has looked at everything. Neither waits nor reads an input."""
        if self._helper and not self._take(os.WNOHANG):
            return False
        return all(self._before[path] == (self._known.get(path) or [])[:5] for path in self._pending)

    def settle(self) -> set[str]:
        """Wait for what :meth:`begin_beside` began; the inputs among it that include files.

        :raises Uncacheable: when what one includes cannot be told.
        :raises MalformedObject: when one that may include something cannot be read.
        """
        if self._helper:
            self._take(0)
        including = {
            path for path, bitcode in self._pending.items() if self.look(path, bitcode=bitcode).names
        }
        self._pending = {}
        return including

    def changed(self) -> str | None:
        """An input that is not what it was when :meth:`begin_beside` was called."""
        for path, identity in self._before.items():
            try:
                if self._identity(os.stat(path)) != identity:
                    return path
            except OSError:
                return path
        return None

    def _take(self, options: int) -> bool:
        """Take in what the other process has found, if it has ended."""
        if not os.waitpid(self._helper, options)[0]:
            return False
        import json

        self._helper = 0
        os.lseek(self._results, 0, os.SEEK_SET)
        with open(self._results, encoding="utf-8", errors="surrogateescape") as stream:
            try:
                found = json.load(stream)
            except ValueError:
                return True  # It was killed.
        self._known.update(found)
        self._changed = True
        return True

    def stop(self) -> None:
        """End the other process, whatever it has found."""
        if self._helper:
            os.kill(self._helper, signal.SIGKILL)
            os.waitpid(self._helper, 0)
            os.close(self._results)
            self._helper = 0

    def _look_at(self, paths: dict[str, bool]) -> None:
        for path, bitcode in paths.items():
            try:
                self.look(path, bitcode=bitcode)
            except (Uncacheable, MalformedObject, OSError):
                continue  # Who asks for it will meet the same.

    def _is_known(self, path: str) -> bool:
        try:
            known = self._known.get(path)
            return known is not None and known[:5] == self._identity(os.stat(path))
        except OSError:
            return True  # Nothing to look at.

    def look(self, path: str, *, bitcode: bool) -> Seen:
        """Look at an input.

        :raises Uncacheable: when what it includes cannot be told.
        :raises OSError: when the file cannot be read.
        """
        status = os.stat(path)
        identity = self._identity(status)
        known = self._now.get(path) or self._known.get(path)
        if known is not None and known[:5] == identity:
            self._now[path] = known
            sha256, *names = map(str, known[5:])
            if names[:1] == [_UNTOLD]:
                raise Uncacheable(names[1])
            return Seen(sha256, names)
        with open(path, "rb") as stream:
            data = stream.read()
        untold: Uncacheable | None = None
        try:
            names = included_names(data, path) if bitcode and may_include(data) else []
        except Uncacheable as problem:
            names, untold = [_UNTOLD, str(problem)], problem
        sha256 = hashlib.sha256(data).hexdigest()
        if time.time_ns() - max(status.st_mtime_ns, status.st_ctime_ns) > TOO_YOUNG:
            self._now[path] = [*identity, sha256, *names]
            self._changed = True
        if untold is not None:
            raise untold
        return Seen(sha256, names)

    def save(self, inputs: Iterable[str]) -> None:
        """Keep what is known of these inputs."""
        found = self._known | self._now
        kept = {path: found[path] for path in inputs if path in found}
        if not self._changed and len(kept) == len(self._known):
            return
        import json

        aside = f"{self._memo}.{os.getpid()}"
        with open(aside, "w", encoding="utf-8", errors="surrogateescape") as stream:
            json.dump(kept, stream)
        os.replace(aside, self._memo)
        self._changed = False
