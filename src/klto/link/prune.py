"""Looking after the link cache as a whole: what it holds, whether it is intact, keeping it within bounds."""

from __future__ import annotations

import os

from klto.link.store import DEFAULT_LIMIT, LINKS, Entry, Partition, adopt_abandoned

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

#: When the store is over its limit it is brought to this share of it, so that not every link prunes.
_AFTER = 0.9


class Stats:
    """Entries and bytes of a store, and of how many partitions."""

    __slots__ = ("bytes", "entries", "partitions")

    def __init__(self, partitions: int, entries: int, size: int) -> None:
        self.partitions = partitions
        self.entries = entries
        self.bytes = size


def partitions(root: str) -> Iterator[Partition]:
    """All partitions of the store."""
    try:
        names = sorted(os.listdir(os.path.join(root, "partitions")))
    except FileNotFoundError:
        return
    for name in names:
        yield Partition(root, name)


def _objects(partition: Partition) -> Iterator[tuple[str, os.stat_result]]:
    """(key, status) of every object file of a partition, in the index or not."""
    for item in os.scandir(partition.folder):
        if not item.name.startswith("index"):
            try:
                yield item.name, item.stat()
            except FileNotFoundError:
                continue  # Pruned by another klto meanwhile.


def stats(root: str) -> Stats:
    """Count what is there."""
    count = entries = size = 0
    for partition in partitions(root):
        count += partition.name != LINKS
        for _, status in _objects(partition):
            entries += 1
            size += status.st_size
    return Stats(count, entries, size)


def verify(root: str, note: Callable[[str], None]) -> tuple[int, int]:
    """Compare every entry with its SHA-256 and drop what differs: (entries looked at, entries dropped)."""
    adopt_abandoned(root, note)
    looked = dropped = 0
    for partition in partitions(root):
        with partition.locked():
            known = partition.entries()
            good: list[Entry] = []
            for key, _ in list(_objects(partition)):
                entry, fresh = known.get(key), partition.hashed(key)
                if entry is None:
                    partition.drop(key)  # Its link was killed before it had said what it is.
                    continue
                looked += 1
                if fresh is not None and fresh.sha256 == entry.sha256:
                    good.append(fresh)
                else:
                    dropped += 1
                    partition.drop(key)
                    note(f"dropped {partition.path(key)}: it is not what was stored")
            partition.rewrite(good)
    return looked, dropped


def prune(root: str, limit: int = DEFAULT_LIMIT) -> tuple[int, int]:
    """Remove the entries used longest ago until ``limit`` bytes are kept: (entries removed, bytes removed).

    When an entry was used is its access time, or when it was made where the file system keeps none.
    """
    everything = []
    total = 0
    for partition in partitions(root):
        for key, status in _objects(partition):
            total += status.st_size
            everything.append((max(status.st_atime_ns, status.st_mtime_ns), status.st_size, partition, key))
    removed = freed = 0
    if total > limit:
        everything.sort(key=lambda item: item[0])
        for _, size, partition, key in everything:
            if total - freed <= limit * _AFTER:
                break
            partition.drop(key)
            removed += 1
            freed += size
    for partition in partitions(root):
        with partition.locked():
            left = {key for key, _ in _objects(partition)}
            entries = partition.entries()
            if len(left & entries.keys()) < len(entries):
                partition.rewrite([entry for key, entry in entries.items() if key in left])
    return removed, freed
