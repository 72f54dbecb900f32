"""klto.process: the door to other programs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from klto import process
from klto.errors import UsageError


def test_run_keeps_output_status_and_usage() -> None:
    done = process.run(["sh", "-c", "echo out; echo err >&2; exit 3"], check=False)
    assert (done.returncode, done.stdout, done.stderr) == (3, "out\n", "err\n")
    assert done.usage.peak_bytes > 100_000
    assert done.usage.wall_seconds > 0


def test_peak_memory_is_the_childs() -> None:
    large = process.run([sys.executable, "-c", "x = b'x' * (200 << 20)"]).usage.peak_bytes
    assert 200 << 20 < large < 240 << 20


def test_failing_command_is_shown_quoted() -> None:
    with pytest.raises(process.CommandFailed) as caught:
        process.run(["sh", "-c", "echo 'it is broken' >&2; exit 7", "a b"])
    assert "exit status 7" in caught.value.message
    assert "'a b'" in caught.value.message
    assert caught.value.details == ("it is broken",)


def test_missing_program_names_it() -> None:
    with pytest.raises(UsageError, match="no-such-program"):
        process.run(["no-such-program"])


def test_stdin_is_closed_and_locale_fixed() -> None:
    done = process.run(["sh", "-c", 'cat; echo "$LC_ALL"'], timeout=10)
    assert done.stdout == "C\n"


def test_timeout_stops_the_whole_group() -> None:
    with pytest.raises(process.CommandTimeout):
        process.run(["sh", "-c", "sleep 987654 & sleep 987654"], timeout=0.3)
    assert _sleepers("987654") == []


def test_a_child_that_ignores_term_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process.Child.stop, "__defaults__", (0.3,))
    with pytest.raises(process.CommandTimeout):
        process.run(["sh", "-c", "trap '' TERM; sleep 987653; sleep 987653"], timeout=0.3)
    assert _sleepers("987653") == []


def test_children_end_when_klto_is_killed() -> None:
    script = (
        "from klto import process\n"
        "with process.started(['sleep', '987652']) as child:\n"
        "    print(child.pid, flush=True)\n"
        "    child.wait()\n"
    )
    klto = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert klto.stdout is not None
    pid = int(klto.stdout.readline())
    klto.kill()
    klto.wait()
    deadline = time.monotonic() + 5
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        if state == "Z":
            break
        time.sleep(0.01)
    else:
        assert not Path(f"/proc/{pid}").exists()


@pytest.mark.parametrize(
    ("returncode", "text"),
    [
        (2, "exit status 2"),
        (-9, "killed by SIGKILL"),
        (137, "exit status 137 (SIGKILL)"),
        (250, "exit status 250"),
    ],
)
def test_status_in_words(returncode: int, text: str) -> None:
    assert process.describe_status(returncode) == text


def test_signals_wait_while_children_are_stopped() -> None:
    """A second Ctrl-C during the clean-up must not leave a child behind."""
    script = (
        "import os, signal, threading\n"
        "from klto import process\n"
        "try:\n"
        "    with process.started(['sh', '-c', \"trap 'sleep 0.5; exit' TERM; sleep 987651 & wait\"]) as child:\n"
        "        child.wait(0.3)\n"
        "except process.CommandTimeout:\n"
        "    pass\n"
    )
    klto = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.DEVNULL)
    time.sleep(0.6)
    klto.send_signal(signal.SIGINT)
    klto.wait(timeout=20)
    assert _sleepers("987651") == []


def test_signal_that_comes_while_a_child_is_started() -> None:
    """Python ignores exceptions in what it runs around a fork, where this signal comes."""
    script = (
        "import os, signal\n"
        "from klto import process\n"
        "os.register_at_fork(after_in_parent=lambda: os.kill(os.getpid(), signal.SIGINT))\n"
        "try:\n"
        "    with process.started(['sleep', '987653']) as child:\n"
        "        print('not heard')\n"
        "except KeyboardInterrupt:\n"
        "    print('heard')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    assert (done.stdout, done.stderr) == ("heard\n", "")
    assert _sleepers("987653") == []


def _sleepers(argument: str) -> list[int]:
    """Living ``sleep argument`` processes."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                words = Path(f"/proc/{entry}/cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if words[:2] == [b"sleep", argument.encode()]:
                found.append(int(entry))
    return found
