"""What hunts have tried and found, in an SQLite file that several of them may share.

Write-ahead logging and a busy timeout let hunts wait for each other (sqlite.org/wal.html, sqlite.org/pragma.html);
every change is one short transaction.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from klto import procfs
from klto.errors import UsageError
from klto.files import make_directory

#: Seconds to wait for another hunt's transaction.
_BUSY = 30.0

_SCHEMA = """
create table if not exists runs (
    campaign text not null, seed integer not null, owner text not null, begun real not null,
    outcome text, objects integer, seconds real, signature text, detail text,
    primary key (campaign, seed)
);
create table if not exists findings (
    signature text primary key, number integer not null unique, title text not null, stage text,
    campaign text not null, seed integer not null,
    state text not null, owner text not null, folder text not null, options integer
);
"""

#: Outcomes of a seed. The first two are no kernels: they do not count.
TOO_LARGE, BASE_LOST, PASSED, FAILED, UNRESOLVED = "too large", "base lost", "passed", "failed", "unresolved"
_NO_KERNEL = (TOO_LARGE, BASE_LOST)

#: States of a finding.
NEW, MINIMISED, NOT_MINIMISED = "new", "minimised", "not minimised"


@dataclass(frozen=True)
class Run:
    """A seed that was tried, or is; ``outcome`` None while it is."""

    seed: int
    outcome: str | None
    objects: int | None
    seconds: float | None
    signature: str | None
    detail: str | None


@dataclass(frozen=True)
class Finding:
    """A failure, met once or more often. ``options``: how many its minimal fragment has."""

    signature: str
    number: int
    title: str
    stage: str | None
    campaign: str
    seed: int
    seen: int
    state: str
    folder: Path
    options: int | None


class HuntStore:
    """The SQLite file in a hunt's folder.

    :param campaign: names the configurations that seeds stand for; other campaigns' seeds are others.
    :raises UsageError: it cannot be opened, or is none.
    """

    def __init__(self, folder: Path, campaign: str) -> None:
        self.path = make_directory(folder) / "hunt.sqlite"
        self.campaign = campaign
        self._owner = _identity(os.getpid())
        with self._change() as database:
            for statement in _SCHEMA.split(";"):
                database.execute(statement)

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        try:
            # A connection each time: it is cheap, and none is held over a fork or a long build.
            with closing(sqlite3.connect(self.path, timeout=_BUSY, isolation_level=None)) as database:
                database.execute("pragma journal_mode=wal")
                yield database
        except sqlite3.Error as error:
            raise UsageError(f"cannot use {self.path}: {error}", "name another folder with --dir") from error

    @contextmanager
    def _change(self) -> Iterator[sqlite3.Connection]:
        with self._open() as database:
            database.execute("begin immediate")
            try:
                yield database
            except BaseException:
                database.execute("rollback")
                raise
            database.execute("commit")

    def claim(self, first: int, count: int | None) -> int | None:
        """A seed to try: one that a hunt left behind when it was killed, or the next one.

        :param first: the first seed of all.
        :param count: how many kernels the campaign has in all; None for no end.
        :returns: None when all are done or being done.
        """
        with self._change() as database:
            rows = database.execute(
                "select seed, owner, outcome from runs where campaign = ?", (self.campaign,)
            ).fetchall()
            seed = next((s for s, owner, outcome in rows if outcome is None and not _lives(owner)), None)
            if seed is None:
                kernels = sum(outcome not in _NO_KERNEL for _, _, outcome in rows)
                if count is not None and kernels >= count:
                    return None
                taken = {row[0] for row in rows}
                seed = next(n for n in range(first, first + len(taken) + 1) if n not in taken)
            database.execute(
                "insert or replace into runs (campaign, seed, owner, begun) values (?, ?, ?, ?)",
                (self.campaign, seed, self._owner, time.time()),
            )
        return int(seed)

    def release(self, seed: int) -> None:
        """Give a claimed seed back: it was not tried to the end."""
        with self._change() as database:
            database.execute(
                "delete from runs where campaign = ? and seed = ? and outcome is null and owner = ?",
                (self.campaign, seed, self._owner),
            )

    def finish(self, run: Run) -> None:
        """What came of a claimed seed."""
        with self._change() as database:
            database.execute(
                "update runs set outcome = ?, objects = ?, seconds = ?, signature = ?, detail = ?"
                " where campaign = ? and seed = ?",
                (run.outcome, run.objects, run.seconds, run.signature, run.detail, self.campaign, run.seed),
            )

    def meet(self, signature: str, title: str, stage: str | None, seed: int) -> tuple[Finding, bool]:
        """A failure was met: its finding, and whether it is new (and this hunt's to minimise)."""
        with self._change() as database:
            known = database.execute("select 1 from findings where signature = ?", (signature,)).fetchone()
            if known is None:
                number = database.execute("select coalesce(max(number), 0) + 1 from findings").fetchone()[0]
                folder = f"finding-{number:03d}"
                database.execute(
                    "insert into findings (signature, number, title, stage, campaign, seed, state, owner, folder)"
                    " values (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    (signature, number, title, stage, self.campaign, seed, NEW, self._owner, folder),
                )
        return self.finding(signature), known is None

    def take_over(self) -> list[Finding]:
        """New findings of this campaign whose hunt ended before it had minimised them: this hunt's now."""
        taken = []
        with self._change() as database:
            rows = database.execute(
                "select signature, owner from findings where state = ? and campaign = ?", (NEW, self.campaign)
            ).fetchall()
            for signature, owner in rows:
                if owner == self._owner or not _lives(owner):
                    database.execute(
                        "update findings set owner = ? where signature = ?", (self._owner, signature)
                    )
                    taken.append(signature)
        return [self.finding(signature) for signature in taken]

    def forget(self, signature: str) -> None:
        """Drop a finding: it will be new when it is met again."""
        with self._change() as database:
            database.execute("delete from findings where signature = ?", (signature,))

    def settle(self, signature: str, state: str, options: int | None = None) -> None:
        """What came of minimising a finding."""
        with self._change() as database:
            database.execute(
                "update findings set state = ?, options = ? where signature = ?", (state, options, signature)
            )

    def finding(self, signature: str) -> Finding:
        """One finding."""
        return next(finding for finding in self.findings() if finding.signature == signature)

    def findings(self) -> list[Finding]:
        """All findings of the file, in the order in which they were met first."""
        with self._open() as database:
            rows = database.execute(
                "select signature, number, title, stage, campaign, seed,"
                " (select count(*) from runs where runs.signature = findings.signature), state, folder, options"
                " from findings order by number"
            ).fetchall()
        here = self.path.parent
        return [Finding(*(here / word if n == 8 else word for n, word in enumerate(row))) for row in rows]

    def runs(self) -> list[Run]:
        """The campaign's seeds so far."""
        with self._open() as database:
            rows = database.execute(
                "select seed, outcome, objects, seconds, signature, detail from runs where campaign = ? order by seed",
                (self.campaign,),
            ).fetchall()
        return [Run(*row) for row in rows]


def _identity(pid: int) -> str:
    """A process, told apart from a later one of the same number: by host, number and start."""
    return f"{os.uname().nodename} {pid} {procfs.start_time(pid) or 0}"


def _lives(owner: str) -> bool:
    """Whether a hunt still runs. One on another host may: its seeds are left to it."""
    host, pid, _ = owner.split(" ")
    return host != os.uname().nodename or _identity(int(pid)) == owner
