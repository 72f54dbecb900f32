"""Linux 6.1 trims exports by building modules, looking at what they need, and building again what changes.
A whitelist of ``klto ksyms needed`` spares the second time; the journal shows it."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from klto.events import LinkStarted, Step, read_journal
from klto.files import user_cache_dir
from klto.record import read_record
from tests.real.conftest import run_klto

pytestmark = pytest.mark.real

#: The smallest kernel whose two modules need each other's and vmlinux's exports.
CONFIG = """
CONFIG_64BIT=y
CONFIG_EXPERT=y
CONFIG_MODULES=y
CONFIG_MODVERSIONS=y
CONFIG_TRIM_UNUSED_KSYMS=y
CONFIG_FUSE_FS=m
CONFIG_CUSE=m
"""
AUTOKSYMS = "include/generated/autoksyms.h"
#: A "sh" whose scripts/gen_autoksyms.sh does not leave __this_module out.
UNFILTERED_SHELL = """#!/bin/sh
case "$1" in
*/gen_autoksyms.sh)
	sed '/__this_module/s/.*/cat |/' "$1" > "$0.copy"
	shift
	exec /bin/sh "$0.copy" "$@" ;;
esac
exec /bin/sh "$@"
"""


@dataclass(frozen=True)
class Trimmed:
    """A build dir of the trimmed kernel."""

    tree: Path
    folder: Path

    def build(self, *arguments: str | Path) -> Journal:
        """Build it, or a part."""
        (self.folder / "small.config").write_text(CONFIG)
        options = ("-C", self.tree, "-b", self.build_dir, "-a", "x86_64", "-t", "llvm-19", "--lto", "thin")
        base = ("-k", "allnoconfig", "-K", self.folder / "small.config")
        done = run_klto("build", "-q", *options, *base, *arguments)
        assert done.status == 0, done.err
        return Journal(self.build_dir)

    @property
    def build_dir(self) -> Path:
        return self.folder / "build"


class Journal:
    """What a run did, counted from its journal, and that its record says the same."""

    def __init__(self, build_dir: Path) -> None:
        events = read_journal(build_dir / ".klto/events.jsonl")
        steps = [event for event in events if isinstance(event, Step)]
        self.compiled = Counter(step.target for step in steps if step.verb in ("CC", "AS"))
        self.linked = Counter(event.output for event in events if isinstance(event, LinkStarted))
        self.lists = sum(step.verb == "UPD" and step.target == AUTOKSYMS for step in steps)
        record = read_record(build_dir / ".klto/record.json")
        assert set(record.compiled_twice) == self.compiled_twice
        assert set(record.linked_twice) == self.linked_twice

    @property
    def compiled_twice(self) -> set[str]:
        return {name for name, count in self.compiled.items() if count > 1}

    @property
    def linked_twice(self) -> set[str]:
        return {name for name, count in self.linked.items() if count > 1}


@pytest.fixture
def trimmed(linux_6_1: Path) -> Iterator[Trimmed]:
    folder = user_cache_dir() / "test" / f"trim-{os.getpid()}"
    folder.mkdir(parents=True)
    yield Trimmed(linux_6_1, folder)
    shutil.rmtree(folder)


def test_whitelist_spares_the_second_time(trimmed: Trimmed, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, build_dir = trimmed.folder, trimmed.build_dir
    whitelist = folder / "whitelist"
    request = f'CONFIG_UNUSED_KSYMS_WHITELIST="{whitelist}"'

    # The modules alone are enough for the list.
    trimmed.build("fs/fuse/")
    assert run_klto("ksyms", "needed", build_dir / "fs/fuse", "-o", whitelist).status == 0
    names = whitelist.read_text().split()
    assert len(names) > 200
    assert "__this_module" not in names

    shutil.rmtree(build_dir)
    clean = trimmed.build("-K", request)
    assert sum(clean.compiled.values()) > 500
    assert clean.compiled_twice == clean.linked_twice == set()
    assert clean.linked["vmlinux.o"] == clean.linked["fs/fuse/fuse.o"] == 1
    assert clean.lists == 0
    assert run_klto("ksyms", "audit", "-b", build_dir).status == 0

    # Red: with a generator that does not leave __this_module out, the list is found wrong once more.
    shell = folder / "bin/sh"
    shell.parent.mkdir()
    shell.write_text(UNFILTERED_SHELL)
    shell.chmod(0o755)
    (build_dir / AUTOKSYMS).unlink()
    with monkeypatch.context() as patched:
        # Kbuild runs its scripts with CONFIG_SHELL, which is "sh".
        patched.setenv("PATH", f"{shell.parent}:{os.environ['PATH']}")
        unfiltered = trimmed.build("-K", request)
    assert unfiltered.lists == 1

    # Red: the same modules without the list.
    (build_dir / AUTOKSYMS).unlink()
    for path in (build_dir / "fs/fuse").glob("*.o"):
        path.unlink()
    without = trimmed.build("-K", 'CONFIG_UNUSED_KSYMS_WHITELIST=""')
    assert without.lists == 1
    assert {"fs/fuse/dev.o", "fs/fuse/file.o"} <= without.compiled_twice
    assert "fs/fuse/fuse.o" in without.linked_twice
