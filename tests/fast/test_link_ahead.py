"""Objects that were read before the linker had ended: what was found counts as long as they are what they were."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

import pytest

from klto.link import ahead, store
from klto.link.ahead import Ahead
from klto.link.store import ENTRY_PREFIX, Partition, View
from klto.link.tasks import Tasks

HASHED: list[str] = []


@pytest.fixture
def view(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> View:
    real = store._sha256
    HASHED.clear()
    monkeypatch.setattr(store, "_sha256", lambda path: HASHED.append(os.path.basename(path)) or real(path))
    monkeypatch.setattr(ahead, "TOO_YOUNG", 0)
    return View(str(tmp_path), Partition(str(tmp_path), "part"), print).__enter__()


def made(view: View, key: str, content: bytes) -> str:
    """As LLVM does it: an object appears by a rename."""
    aside = os.path.join(view.folder, key)
    Path(aside).write_bytes(content)
    os.rename(aside, view.path(key))
    return ENTRY_PREFIX + key


def kept(view: View, key: str) -> str:
    view.__exit__(None, None, None)
    return view._partition.entries()[key].sha256


def test_object_is_hashed_once(view: View) -> None:
    name = made(view, "a", b"one")
    look = Ahead(view, None).look
    look()
    look()
    assert [name] == HASHED
    assert kept(view, "a") == hashlib.sha256(b"one").hexdigest()
    assert [name] == HASHED


def test_object_that_was_altered_since_is_hashed_again(view: View) -> None:
    made(view, "a", b"one")
    Ahead(view, None).look()
    time.sleep(2 * store.TOO_YOUNG / 1e9)
    status = os.stat(view.path("a"))
    Path(view.path("a")).write_bytes(b"two")
    os.utime(view.path("a"), ns=(status.st_atime_ns, status.st_mtime_ns))
    assert kept(view, "a") == hashlib.sha256(b"two").hexdigest()


def test_young_object_is_left_for_later(view: View, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead, "TOO_YOUNG", 10**12)
    made(view, "a", b"one")
    look = Ahead(view, None).look
    look()
    assert HASHED == []
    monkeypatch.setattr(ahead, "TOO_YOUNG", 0)
    look()
    assert HASHED == [ENTRY_PREFIX + "a"]
    assert kept(view, "a") == hashlib.sha256(b"one").hexdigest()


def test_cached_objects_are_passed_over(view: View) -> None:
    cached = os.path.join(view.folder, "cached")
    Path(cached).write_bytes(b"x")
    os.symlink(cached, view.path("cached"))
    made(view, "made", b"y")
    Ahead(view, None).look()
    assert HASHED == [ENTRY_PREFIX + "made"]


def test_object_that_cannot_be_read_ends_it(view: View) -> None:
    made(view, "a", b"y")
    tasks = Tasks(view.folder, view.objects, [])

    def vanish(path: str) -> None:
        os.unlink(path)
        raise FileNotFoundError(path)

    tasks.read_ahead = vanish  # type: ignore[method-assign]
    look = Ahead(view, tasks).look
    look()
    made(view, "b", b"z")
    look()
    assert HASHED == [ENTRY_PREFIX + "a"]


def test_look_that_takes_long_goes_on_in_the_next(view: View, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead, "_LONGEST", -1.0)
    made(view, "a", b"y")
    look = Ahead(view, None).look
    look()
    assert HASHED == []
    monkeypatch.setattr(ahead, "_LONGEST", 1.0)
    look()
    assert HASHED == [ENTRY_PREFIX + "a"]
