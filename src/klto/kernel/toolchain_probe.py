"""Questions to LLVM's tools, and a cache of the answers.

Nothing here comes from a table of versions: every fact is what the tool itself did or said.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from klto import process
from klto.errors import UsageError
from klto.files import make_directory, write_whole

#: Seconds that a tool has for ``--version`` or a module of ten lines.
ANSWER_SECONDS = 30.0

#: Answers kept; the oldest go first.
_CACHE_ENTRIES = 400
_CACHE_SCHEMA = "klto/toolchain/1"

#: A module that uses what kernels use (attributes of pointer arguments, a switch, atomics, inline assembly,
#: debug information), since a reader of another version fails on the features and not on the container.
_MODULE = """\
struct s { int a; struct s *next; };
extern int (*hook)(struct s *, const char *);
static __attribute__((noinline)) int walk(const struct s *p, int *count)
{
    int sum = 0;
    for (; p; p = p->next) { sum += p->a; ++*count; }
    return sum;
}
int klto_probe(struct s *p, const char *text, unsigned long size)
{
    int count = 0;
    char copy[64];
    __builtin_memcpy(copy, text, size & 63);
    __asm__ volatile("" : : "r"(copy) : "memory");
    switch (p->a) {
    case 1: return hook(p, copy);
    case 2: return walk(p, &count) + count;
    case 3: __builtin_trap();
    }
    return __atomic_add_fetch(&p->a, 1, __ATOMIC_SEQ_CST);
}
"""


@dataclass
class AnswerCache:
    """Answers by question, kept in a JSON file.

    A question names the binaries that it was put to by path, time and size, so an updated tool is asked anew.
    A missing, foreign or damaged file is an empty cache; one that cannot be written is none.
    """

    path: Path
    _answers: dict[str, Any] | None = field(default=None, repr=False)

    def get(self, question: str, binaries: Sequence[Path], ask: Callable[[], Any]) -> Any:
        """The kept answer, or what ``ask`` returns (a JSON value), which is kept if the binaries allow it."""
        identities = [_identity(binary) for binary in binaries]
        if None in identities:
            return ask()
        key = "\n".join([question, *(str(i) for i in identities)])
        answers = self._load()
        if key not in answers:
            answer = ask()
            self._answers = answers = self._read()  # another klto may have written meanwhile
            answers[key] = answer
            self._write(dict(list(answers.items())[-_CACHE_ENTRIES:]))
        return answers[key]

    def _load(self) -> dict[str, Any]:
        if self._answers is None:
            self._answers = self._read()
        return self._answers

    def _read(self) -> dict[str, Any]:
        try:
            found = json.loads(self.path.read_bytes())
        except (OSError, ValueError, RecursionError):
            return {}
        if not isinstance(found, dict) or found.get("schema") != _CACHE_SCHEMA:
            return {}
        answers = found.get("answers")
        return answers if isinstance(answers, dict) else {}

    def _write(self, answers: dict[str, Any]) -> None:
        try:
            make_directory(self.path.parent)
            write_whole(self.path, json.dumps({"schema": _CACHE_SCHEMA, "answers": answers}))
        except UsageError:
            # A read-only or full home directory costs the next run a second, nothing else.
            return


def _identity(binary: Path) -> str | None:
    """What tells one installed tool from another, or None when its file does not say what will run.

    A wrapper (a script, ccache under the name of clang) stays the same while the tool behind it changes.
    """
    real = Path(os.path.realpath(binary))
    try:
        status = real.stat()
        with real.open("rb") as file:
            magic = file.read(4)
    except OSError:
        return None
    known = re.match(r"clang|ld\.lld|lld|llvm-", real.name)
    if magic != b"\x7fELF" or known is None:
        return None
    return f"{binary}={real}:{status.st_mtime_ns}:{status.st_size}"


def version_line(tool: Path) -> str:
    """The first line that says a version of ``tool --version`` (llvm-nm begins with its own name).

    :raises UsageError: the tool does not run.
    """
    done = _ask([tool, "--version"])
    lines = [line.strip() for line in done.stdout.splitlines() if line.strip()]
    if done.returncode != 0 or not lines:
        said = (done.stderr.strip().splitlines() or ["it printed nothing"])[-1]
        raise UsageError(
            f"{tool} does not work: '{tool.name} --version' gave {process.describe_status(done.returncode)}"
            f" ({said})",
            "reinstall it, or name another LLVM with -t",
        )
    return next((line for line in lines if "version" in line or "LLD" in line), lines[0])


def clang_facts(clang: Path) -> tuple[str, tuple[int, int, int]]:
    """Kconfig's CC_VERSION_TEXT (first line of ``$(CC) --version`` without ``#``: top Makefile, 6.1 and 6.12)
    and the version as numbers.

    :raises UsageError: it does not run, or is another compiler.
    """
    text = version_line(clang).replace("#", "")
    if "clang" not in text:
        raise UsageError(
            f"{clang} is not clang: it calls itself '{text}'", "name an LLVM with -t, such as -t llvm-19"
        )
    return text, _numbers(r"(\d+)\.(\d+)\.(\d+)", _ask([clang, "-dumpversion"]).stdout, clang)


def lld_facts(lld: Path) -> tuple[str, tuple[int, int, int]]:
    """What ``ld.lld --version`` says and the number behind LLD, as scripts/ld-version.sh takes it."""
    text = version_line(lld)
    return text, _numbers(r"LLD (\d+)\.(\d+)\.(\d+)", text, lld)


def _numbers(pattern: str, text: str, tool: Path) -> tuple[int, int, int]:
    found = re.search(pattern, text)
    if found is None:
        raise UsageError(f"{tool} does not say its version: '{text.strip()}'", "name another LLVM with -t")
    return int(found[1]), int(found[2]), int(found[3])


def reading_failure(clang: Path, lld: Path, nm: Path, target: str) -> str | None:
    """Compile a module for ``target`` to ThinLTO bitcode, link it and list its symbols.

    :returns: None when all three understand each other; else the complaint of the first that does not.
    """
    with tempfile.TemporaryDirectory(prefix="klto-probe-") as folder:
        source, module = Path(folder, "probe.c"), Path(folder, "probe.o")
        source.write_text(_MODULE)
        compile_: list[process.Arg] = [
            clang,
            f"--target={target}",
            "-O2",
            "-g",
            "-flto=thin",
            "-ffreestanding",
            "-c",
            source,
        ]
        steps: tuple[list[process.Arg], ...] = (
            [*compile_, "-o", module],
            [lld, "-r", "-o", Path(folder, "linked.o"), module],
            [nm, module],
        )
        for argv in steps:
            done = _ask(argv)
            if done.returncode != 0:
                lines = done.stderr.strip().splitlines() or [process.describe_status(done.returncode)]
                return next((line for line in lines if "error:" in line), lines[0]).replace(f"{folder}/", "")
    return None


def linker_accepts(lld: Path, options: Sequence[str]) -> bool:
    """Whether ld.lld takes these options, values included.

    Without inputs ld.lld (14, 19 and 22) reads all options, ``-mllvm`` ones too, then stops at "no input
    files": any other complaint is about the options. It takes 15 ms and writes nothing.
    """
    with tempfile.TemporaryDirectory(prefix="klto-probe-") as folder:
        done = _ask([lld, *options], cwd=Path(folder))
    complaints = [line for line in done.stderr.splitlines() if "warning:" not in line]
    return len(complaints) == 1 and complaints[0].endswith("error: no input files")


def _ask(argv: Sequence[process.Arg], cwd: Path | None = None) -> process.Finished:
    try:
        return process.run(argv, check=False, timeout=ANSWER_SECONDS, cwd=cwd)
    except process.CommandTimeout as error:
        raise UsageError(error.message, "name another LLVM with -t") from error
    except UsageError as error:
        raise UsageError(error.message, "reinstall it, or name another LLVM with -t") from error
