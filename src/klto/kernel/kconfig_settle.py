"""Lets a tree's own kconfig settle many configurations: what ``make olddefconfig`` makes of each.

``make olddefconfig`` takes two to ten seconds, nearly all of them for reading the Kconfig files and trying the
compiler; ``kconfig_settle.c`` does that once, and then needs some 30 ms for a configuration.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import PIPE
from typing import IO

from klto import process
from klto.errors import KltoError
from klto.kernel.kconfig_ask import compile_program
from klto.kernel.kconfig_make import Kconfig

SOURCE = Path(__file__).with_name("kconfig_settle.c")


class Settler:
    """A running ``kconfig_settle``, for any number of threads. Use :func:`settling`."""

    def __init__(self, questions: IO[bytes], answers: IO[bytes], log: Path, folder: Path) -> None:
        self._questions = questions
        self._answers = answers
        self._log = log
        self._folder = folder
        self._lock = threading.Lock()

    def prompts(self) -> dict[str, tuple[str, ...]]:
        """Every symbol that somebody can set, with the other members of its choice, if it is in one.

        :raises KltoError: the program ended.
        """
        choices: dict[str, list[str]] = {}
        found: dict[str, str] = {}
        with self._lock:
            self._questions.write(b"?\n")
            self._questions.flush()
            while (line := self._answers.readline()) != b"ok\n":
                if not line:
                    raise self._ended()
                name, choice = line.decode().split()
                if name not in found:
                    found[name] = choice
                    choices.setdefault(choice, []).append(name)
        return {
            name: tuple(other for other in choices[choice] if other != name) if choice != "0" else ()
            for name, choice in found.items()
        }

    def settle(self, config: bytes) -> bytes:
        """The configuration file that kconfig makes of ``config``.

        :raises KltoError: kconfig failed on it.
        """
        asked, result = self._folder / "settle.asked", self._folder / "settle.result"
        with self._lock:
            asked.write_bytes(config)
            result.unlink(missing_ok=True)
            try:
                self._questions.write(os.fsencode(f"{asked.absolute()}\t{result.absolute()}\n"))
                self._questions.flush()
                answer = self._answers.readline()
            except BrokenPipeError:
                answer = b""
            if answer != b"ok\n":
                raise self._ended()
            return result.read_bytes()

    def _ended(self) -> KltoError:
        said = self._log.read_text("utf-8", "replace").splitlines()
        return KltoError("the tree's kconfig failed on a configuration", details=tuple(said[-10:]))


@contextmanager
def settling(kconfig: Kconfig) -> Iterator[Settler]:
    """Somebody who settles configurations, for the length of the ``with`` block.

    :param kconfig: its folder must be prepared; programs and objects are built where missing.
    :raises UsageError: the tree's kconfig cannot be built.
    """
    environment = kconfig.environment()
    program = compile_program(kconfig, SOURCE)
    log = kconfig.folder / "kconfig_settle.log"
    read_end, write_end = os.pipe()
    with (
        open(write_end, "wb") as questions,
        open(read_end, "rb") as stdin,
        log.open("wb") as stderr,
        process.started(
            [program], cwd=kconfig.build_dir, env=environment, stdin=stdin, stdout=PIPE, stderr=stderr
        ) as child,
    ):
        stdin.close()
        assert child.stdout is not None
        yield Settler(questions, child.stdout, log, kconfig.folder)
