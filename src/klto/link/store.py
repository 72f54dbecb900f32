"""The link cache on disk: native objects of ThinLTO backends, kept by LLVM's own key within a partition.

LLVM's in-process cache links whatever lies under a key's name. So no link is given the store itself: it gets a
*view*, a folder of its own with links to those entries alone that were found unaltered, and writes new ones into it.
What the link added is taken into the store afterwards, with its SHA-256; what a killed link added is taken over
by the next one. Links at the same time, of any build dir, have different views and cannot harm each other.

Layout below the cache's root::

    partitions/<partition>/index          one line an entry: key size sha256 inode mtime_ns ctime_ns boot
    partitions/<partition>/<key>          an entry, a native object
    views/<name>.owner                    locked while the link lives; its partition and the machine's boot
    views/<name>/objects/llvmcache-<key>  what LLVM sees
    views/<name>/stderr                   what the linker says, by which a killed link's errors are known
    views/<name>/unsettled                as long as it is not known whether the linker was given the right inputs
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import os
import shutil
from contextlib import contextmanager

from klto.link.output import is_tainted

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

#: The names of LLVM's cache entries (llvm/lib/LTO/LTO.cpp and llvm/lib/Support/Caching.cpp, 14 to 22).
ENTRY_PREFIX = "llvmcache-"

#: The partition of finished links (klto.link.whole); all others are of modules.
LINKS = "links"

#: Behind a view's name: the file that says whose it is.
_OWNER = ".owner"

#: In a view: it is not known yet whether the linker was given the right inputs.
_UNSETTLED = "unsettled"

#: Entries that one link is offered, those used last first. A kernel has a thousand to twenty thousand modules.
MOST_OFFERED = 20_000

#: Nanoseconds: a file whose time stamp is younger may change once more with the same stamp (the kernel's clock
#: ticks every 10 ms at the slowest, CONFIG_HZ_100).
TOO_YOUNG = 50_000_000

#: Bytes that the store may hold when nothing else is said.
DEFAULT_LIMIT = 5 << 30


class Entry:
    """One line of an index. ``status``: inode, mtime_ns and ctime_ns of the file when its content was hashed.

    ``boot``: the machine's boot in which it was hashed. What a file holds after a power loss its stamps do not tell.
    """

    __slots__ = ("boot", "key", "sha256", "size", "status")

    def __init__(self, key: str, size: int, sha256: str, status: tuple[int, int, int], boot: str) -> None:
        self.key = key
        self.size = size
        self.sha256 = sha256
        self.status = status
        self.boot = boot

    def line(self) -> str:
        """The index's line."""
        return f"{self.key} {self.size} {self.sha256} {' '.join(map(str, self.status))} {self.boot}\n"


class Partition:
    """The entries for one linker and one set of options."""

    def __init__(self, root: str, name: str) -> None:
        self.name = name
        self.folder = os.path.join(root, "partitions", name)
        self._index = os.path.join(self.folder, "index")

    def entries(self) -> dict[str, Entry]:
        """All entries by key, as the index has them; torn or foreign lines are left out."""
        found: dict[str, Entry] = {}
        try:
            with open(self._index, encoding="ascii", errors="replace") as stream:
                for line in stream:
                    fields = line.split()
                    if len(fields) == 7 and line.endswith("\n") and fields[0].isalnum():
                        key, size, sha256, *stamps, boot = fields
                        try:
                            status = (int(stamps[0]), int(stamps[1]), int(stamps[2]))
                            entry = Entry(key, int(size), sha256, status, boot)
                        except ValueError:
                            continue
                        found.pop(key, None)  # Its place is that of its last line.
                        found[key] = entry
        except FileNotFoundError:
            return {}
        return found

    def path(self, key: str) -> str:
        """Where the entry's object lies."""
        return os.path.join(self.folder, key)

    def intact(self, entry: Entry) -> Entry | None:
        """The entry, if its file is what was put there; with new stamps when its content had to be read for that.

        Its stamps are compared, ctime among them, which no program can set. When they differ its content is, and
        once after each start of the machine: a file system may keep a file's stamps and lose its content.
        """
        try:
            status = os.stat(self.path(entry.key))
        except FileNotFoundError:
            return None
        if status.st_size != entry.size:
            return None
        if _stamps(status) == entry.status and entry.boot == boot_id():
            return entry
        fresh = self.hashed(entry.key)
        return fresh if fresh is not None and fresh.sha256 == entry.sha256 else None

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Nobody else changes the partition meanwhile."""
        os.makedirs(self.folder, exist_ok=True)
        descriptor = os.open(
            os.path.join(self.folder, "index.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644
        )
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def append(self, entries: list[Entry]) -> None:
        """Add lines to the index; with the partition locked."""
        if entries:
            with open(self._index, "a", encoding="ascii") as stream:
                # An empty line first: the last one may be torn.
                stream.write("\n" + "".join(entry.line() for entry in entries))

    def put(self, key: str, source: str, sha256: str | None = None) -> Entry:
        """Move a new object into the store; its entry, not yet in the index.

        :param sha256: of its content, when it is known.
        """
        sha256, size = sha256 or _sha256(source), os.path.getsize(source)
        os.replace(source, self.path(key))
        return Entry(key, size, sha256, _stamps(os.stat(self.path(key))), boot_id())

    def hashed(self, key: str) -> Entry | None:
        """An entry made from the file as it is now; None when there is none."""
        try:
            status = os.stat(self.path(key))
            return Entry(key, status.st_size, _sha256(self.path(key)), _stamps(status), boot_id())
        except FileNotFoundError:
            return None

    def drop(self, key: str) -> None:
        """Remove an entry's file; its line in the index is void then."""
        try:
            os.unlink(self.path(key))
        except FileNotFoundError:
            return  # Another link was faster.

    def rewrite(self, entries: list[Entry]) -> None:
        """Replace the index; with the partition locked."""
        aside = f"{self._index}.{os.getpid()}"
        with open(aside, "w", encoding="ascii") as new:
            new.write("".join(entry.line() for entry in entries))
        os.replace(aside, self._index)


class View:
    """A folder in which one link finds intact entries and leaves new ones. A context manager."""

    def __init__(self, root: str, partition: Partition, note: Callable[[str], None]) -> None:
        self._root, self._partition, self._note = root, partition, note
        name = f"{os.getpid()}-{os.urandom(6).hex()}"
        self.folder = os.path.join(root, "views", name)
        self.objects = os.path.join(self.folder, "objects")
        self.offered: dict[str, Entry] = {}
        #: Paths of new objects that are not to be kept: LLVM stores a module although its assembly had errors.
        self.wrong: set[str] = set()
        #: Nothing that is added may be kept as it stands now.
        self.unsettled = False
        #: Somebody has looked at what the linker said, and ``wrong`` is all that must go.
        self.judged = False
        #: By the path of a new object: its stamps when it was read, and the SHA-256 of its content.
        self._read: dict[str, tuple[tuple[int, int, int], str]] = {}
        self._lock = -1

    def __enter__(self) -> View:
        os.makedirs(self._partition.folder, exist_ok=True)
        os.makedirs(os.path.dirname(self.folder), exist_ok=True)
        adopt_abandoned(self._root, self._note)
        self._lock = _own(self.folder, self._partition.name)
        os.makedirs(self.objects)
        self._offer()
        return self

    def _offer(self) -> None:
        """Link the intact entries, the ones used last first; drop the others."""
        altered, read_again = [], []
        for known in reversed(list(self._partition.entries().values())):
            if len(self.offered) >= MOST_OFFERED:
                break
            entry, path = self._partition.intact(known), self._partition.path(known.key)
            if entry is not None:
                os.symlink(path, self.path(entry.key))
                self.offered[entry.key] = entry
                if entry is not known:
                    read_again.append(entry)
            elif os.path.lexists(path):
                self._partition.drop(known.key)
                altered.append(known.key)
        if read_again:
            with self._partition.locked():
                self._partition.append(read_again[::-1])
        if altered:
            self._note(
                f"{len(altered)} entries of the link cache were damaged: dropped, and made again ({altered[0]})"
            )

    def drop_wrong(self) -> None:
        """Remove the objects that are not to be kept."""
        for path in self.wrong:
            os.unlink(path)
        self.wrong.clear()

    def unsettle(self) -> None:
        """What is added from now on is kept only if :meth:`settle` is called; a killed link's is not."""
        self.unsettled = True
        with open(os.path.join(self.folder, _UNSETTLED), "w"):
            pass

    def settle(self) -> None:
        """What was added may be kept."""
        self.unsettled = False
        os.unlink(os.path.join(self.folder, _UNSETTLED))

    def drop_generated(self) -> None:
        """Remove what this link has added so far."""
        for key in list(self.generated()):
            os.unlink(self.path(key))

    def path(self, key: str) -> str:
        """Where the linker sees an entry."""
        return os.path.join(self.objects, ENTRY_PREFIX + key)

    def generated(self) -> Iterator[str]:
        """Keys of the objects that this link has added so far."""
        for item in os.scandir(self.objects):
            if item.name.startswith(ENTRY_PREFIX) and not item.is_symlink():
                yield item.name[len(ENTRY_PREFIX) :]

    def read_ahead(self, path: str) -> None:
        """Hash a new object now and not at the end. Its stamps must not be younger than ``TOO_YOUNG``."""
        self._read[path] = _stamps(os.stat(path)), _sha256(path)

    def __exit__(self, *exc: object) -> None:
        try:
            self.drop_wrong()
            if self.unsettled or (not self.judged and is_tainted(self.folder)):
                return
            if _take_over(self._partition, self.objects, self._read):
                _keep_within(self._root, DEFAULT_LIMIT)
        finally:
            _remove(self.folder)
            os.close(self._lock)


def _keep_within(root: str, limit: int) -> None:
    """Prune the store when its indexes say that it is too large."""
    names = os.listdir(os.path.join(root, "partitions"))
    held = sum(entry.size for name in names for entry in Partition(root, name).entries().values())
    if held > limit:
        from klto.link.prune import prune  # Late: seldom needed.

        prune(root, limit)


def _take_over(
    partition: Partition, objects: str, read: Mapping[str, tuple[tuple[int, int, int], str]] | None = None
) -> int:
    """Put what a link added into the store; how many.

    :param read: by path, an object's stamps when its content was read and the SHA-256 of that.
    """
    new = []
    with partition.locked():
        for item in os.scandir(objects):
            if item.name.startswith(ENTRY_PREFIX) and not item.is_symlink() and item.stat().st_size:
                stamps, sha256 = (read or {}).get(item.path, (None, None))
                unaltered = sha256 if stamps == _stamps(item.stat()) else None
                new.append(partition.put(item.name[len(ENTRY_PREFIX) :], item.path, unaltered))
        partition.append(new)
    return len(new)


def adopt_abandoned(root: str, note: Callable[[str], None]) -> None:
    """Take over what killed links have left behind: each object appeared by a rename when it was whole.

    Only of links since the machine was started: what a power loss leaves of a file nobody can tell.
    """
    views = os.path.join(root, "views")
    try:
        names = os.listdir(views)
    except FileNotFoundError:
        return
    for name in names:
        if not name.endswith(_OWNER):
            continue
        folder = os.path.join(views, name.removesuffix(_OWNER))
        with _abandoned(folder) as owner:
            if owner is None:
                continue
            partition, boot = owner
            try:
                unsettled = os.path.lexists(os.path.join(folder, _UNSETTLED))
                if boot == boot_id() and partition.isalnum() and not unsettled and not is_tainted(folder):
                    count = _take_over(Partition(root, partition), os.path.join(folder, "objects"))
                    if count:
                        note(f"{count} modules that a killed link had finished are used again")
            except OSError:
                pass  # Half made or half removed by its owner: what is left of it is of no use.
            _remove(folder)


def _own(folder: str, partition: str) -> int:
    """Claim a view before it is made; the descriptor that holds the lock."""
    while True:
        descriptor = os.open(folder + _OWNER, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.path.exists(folder + _OWNER):
            os.write(descriptor, f"{partition} {boot_id()}\n".encode())
            return descriptor
        os.close(descriptor)  # Another link took it for abandoned before it was locked.


def _remove(folder: str) -> None:
    """Remove a view, then its owner's file, which is locked."""
    shutil.rmtree(folder, ignore_errors=True)
    try:
        os.unlink(folder + _OWNER)
    except FileNotFoundError:
        return


@contextmanager
def _abandoned(folder: str) -> Iterator[tuple[str, str] | None]:
    """(partition, boot) of a view whose owner is gone, locked meanwhile; None when it lives or has just begun."""
    try:
        descriptor = os.open(folder + _OWNER, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        yield None
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fields = os.read(descriptor, 4096).decode("ascii", "replace").split()
        yield (fields[0], fields[1]) if len(fields) == 2 else ("", "")
    except BlockingIOError:
        yield None
    finally:
        os.close(descriptor)


@functools.cache
def boot_id() -> str:
    """What tells one start of the machine from another (Documentation/admin-guide/sysctl/kernel.rst)."""
    with open("/proc/sys/kernel/random/boot_id") as stream:
        return stream.read().strip()


def _stamps(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_ino, status.st_mtime_ns, status.st_ctime_ns


def _sha256(path: str) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
