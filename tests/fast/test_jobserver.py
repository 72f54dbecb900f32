"""klto's jobserver with real make."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from klto.kernel.jobserver import Jobserver, Tokens

#: Each recipe notes when it runs; the sub-make has the same jobserver.
MAKEFILE = """
all: a b c sub
sub: ; @+$(MAKE) d e f
a b c d e f: ; @echo + >> log; sleep 0.2; echo - >> log
.PHONY: all sub a b c d e f
"""


def _most_at_once(log: Path) -> int:
    now = most = 0
    for line in log.read_text().split():
        now += 1 if line == "+" else -1
        most = max(most, now)
    return most


@pytest.mark.parametrize("jobs", [1, 2, 4])
def test_make_and_its_sub_makes_keep_to_the_jobs(tmp_path: Path, jobs: int) -> None:
    (tmp_path / "Makefile").write_text(MAKEFILE)
    with Jobserver(str(tmp_path / "fifo"), jobs) as server:
        done = subprocess.run(
            ["make", "--no-print-directory"],
            cwd=tmp_path,
            env={**os.environ, **server.environment()},
            pass_fds=server.descriptors,
            capture_output=True,
            text=True,
            check=True,
        )
        left = Tokens(server.path)
        assert left.acquire(10, 0) == jobs - 1
        left.release()
    assert done.stderr == "", "make must not say that the jobserver is unavailable"
    assert _most_at_once(tmp_path / "log") == jobs
    assert not (tmp_path / "fifo").exists()


def test_tokens_taken_by_a_link_are_missing_to_make(tmp_path: Path) -> None:
    (tmp_path / "Makefile").write_text(MAKEFILE)
    with Jobserver(str(tmp_path / "fifo"), 3) as server:
        link = Tokens(server.path)
        assert link.acquire(1, 0) == 1
        subprocess.run(
            ["make", "--no-print-directory"],
            cwd=tmp_path,
            env={**os.environ, **server.environment()},
            pass_fds=server.descriptors,
            check=True,
        )
        link.release()
    assert _most_at_once(tmp_path / "log") == 2


def test_acquire_takes_what_comes_back_while_it_waits(tmp_path: Path) -> None:
    with Jobserver(str(tmp_path / "fifo"), 2) as server:
        holder, waiter = Tokens(server.path), Tokens(server.path)
        assert holder.acquire(1, 0) == 1
        assert waiter.acquire(1, 0.05) == 0
        holder.release()
        assert waiter.acquire(1, 5) == 1
        assert len(waiter) == 1
        waiter.release()


def test_no_jobserver_means_one_job(tmp_path: Path) -> None:
    for path in (None, str(tmp_path / "gone")):
        tokens = Tokens(path)
        assert tokens.acquire(5, 1) == 0
        tokens.release()


def test_a_fifo_left_by_a_killed_run_is_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with Jobserver(str(tmp_path / "fifo"), 2) as server:
        assert re.search(r"-j2 --jobserver-auth=(\d+),\1$", server.environment()["MAKEFLAGS"])
