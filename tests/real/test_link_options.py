"""Every option that the linker says it takes, in all its spellings: linked through a cache that knows the other
options' objects, everything is as without a cache. No kernel is needed; it takes a minute for each LLVM."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from klto.link import entry
from tests.fast.test_link_cache import SOURCES

pytestmark = pytest.mark.real

#: Values for options whose help says no more than <value>; others get 2.
_VALUES = {
    "lto": "thin",
    "lto-aa-pipeline": "basic-aa",
    "lto-newpm-passes": "default<O1>",
    "lto-basic-block-sections": "all",
    "lto-partitions": "1",
    "lto-known-safe-vtables": "x",
    "mllvm": "-align-all-functions=6",
    "plugin-opt": "-align-all-functions=6",
    "plugin-opt=mcpu": "x86-64-v3",
    "plugin-opt=": "-align-all-functions=6",
    "plugin-opt=thinlto-prefix-replace": "a;b",
    "plugin-opt=thinlto-object-suffix-replace": "a;b",
    "plugin-opt=opt-remarks-format": "yaml",
    "opt-remarks-format": "yaml",
    "thinlto-prefix-replace": "a;b",
    "thinlto-object-suffix-replace": "a;b",
    "thinlto-cache-policy": "prune_after=1h",
    "thinlto-cache-dir": "own-cache",
    "plugin-opt=cache-dir": "own-cache",
    "save-temps": "preopt",
    "thinlto-single-module": "plain1",
}

#: Options that are about code generation or its results; the rest, which no backend ever sees, is in make soak.
CODE = re.compile(
    r"lto|plugin-opt|mllvm|remarks|save-temps|time-trace|threads|icf|call-graph|shuffle|^-O|strip|pie"
)

#: What no link that ends comes from: they print or wait, or are not about one link.
_LEFT_OUT = re.compile(
    r"^-*(help|version|v|verbose|reproduce|repro|error-handling-script|chroot|sysroot|fuse-ld)\b"
)


def spellings(linker: Path) -> list[list[str]]:
    """The options that ``ld.lld --help`` lists, with values, each with one dash and with two, joined and apart."""
    text = subprocess.run([linker, "--help"], capture_output=True, text=True, check=True).stdout
    found: dict[tuple[str, ...], None] = {}
    for line in text.splitlines():
        head = re.match(r"^  (-\S+)( <[^>]+>)?", line)
        if head is None or _LEFT_OUT.match(head[1]):
            continue
        for words in _with_value(head[1], apart=head[2] is not None):
            for word in _dashes(words[0]):
                found[word, *words[1:]] = None
    return [list(words) for words in found]


def _with_value(option: str, *, apart: bool) -> Iterator[tuple[str, ...]]:
    name, bracket, _ = re.sub(r"[<\[].*", "\0", option).partition("\0")
    plain = name.lstrip("-").rstrip("=")
    value = _VALUES.get(plain, "1" if "CGO" in plain or plain.endswith("O") else "2")
    if bracket:
        yield (name + value,)
    elif apart:
        yield (name, value)
        if len(plain) > 1:
            yield (f"{name}={value}",)
    else:
        yield (name,)


def _dashes(word: str) -> list[str]:
    plain = word.lstrip("-")
    # -o... and single letters have one dash only.
    return (
        [word] if word.startswith("-") and len(plain.partition("=")[0]) == 1 else [f"-{plain}", f"--{plain}"]
    )


class Linked:
    """Links of the same modules, each in a folder of its own."""

    def __init__(self, folder: Path, llvm: int) -> None:
        self.folder, self.linker = folder, Path(f"/usr/lib/llvm-{llvm}/bin/ld.lld")
        self._included(folder)
        for name, text in SOURCES.items():
            (folder / f"{name}.c").write_text(text)
            command = [f"clang-{llvm}", "-O2", "-flto=thin", "-fsplit-lto-unit", "-c", f"{name}.c"]
            subprocess.run(command, cwd=folder, check=True)

    @staticmethod
    def _included(folder: Path) -> None:
        for name, text in (
            ("data.bin", "data"),
            ("nested.bin", "nested"),
            ("more.s", '.incbin "nested.bin"\n'),
        ):
            (folder / name).write_text(text)

    def link(self, options: list[str], cache: str, place: str) -> tuple[int, dict[str, bytes]]:
        """(status, all files that it leaves)."""
        here = self.folder / place
        here.mkdir()
        for name, text in (
            ("data.bin", "data"),
            ("nested.bin", "nested"),
            ("more.s", '.incbin "nested.bin"\n'),
        ):
            (here / name).write_text(text)
        objects = [os.path.relpath(self.folder / f"{name}.o", here) for name in SOURCES]
        done = subprocess.run(
            [
                *(sys.executable, "-I", "-S", entry.__file__, str(self.linker), "-r", *objects),
                *("-o", "out.o", *options),
            ],
            cwd=here,
            env={**os.environ, "KLTO_CACHE": cache, "KLTO_MODULE_TIMEOUT": "0"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=False,
            timeout=60,
        )
        left = {
            str(path.relative_to(here)): path.read_bytes()
            for path in here.rglob("*")
            if path.is_file() and "own-cache" not in path.parts
        }
        for name in left:
            if any("time-trace" in option for option in options) and not name.endswith((".o", ".s", ".bin")):
                left[name] = b"times are never the same"
        return done.returncode, left


def check_options(folder: Path, llvm: int, options: list[list[str]]) -> int:
    """Link with each option without a cache and with one that all of them share; how many the linker took."""
    links = Linked(folder, llvm)
    cache = str(folder / "cache")
    assert links.link([], cache, "first")[0] == 0

    def both(number: int) -> tuple[list[str], bool, bool]:
        plain = links.link(options[number], "", f"plain-{number}")
        cached = links.link(options[number], cache, f"cached-{number}")
        return options[number], plain[0] == 0, plain == cached

    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(both, range(len(options))))
    assert [words for words, _, same in results if not same] == []
    return sum(taken for _, taken, _ in results)


@pytest.mark.parametrize("llvm", [19])  # 14 and 22: make soak.
def test_options_about_code(tmp_path: Path, llvm: int) -> None:
    linker = Path(f"/usr/lib/llvm-{llvm}/bin/ld.lld")
    options = [words for words in spellings(linker) if CODE.search(words[0])]
    assert len(options) > 80
    # The linker takes at least half of them in the spelling that is tried; the others fail alike.
    assert check_options(tmp_path, llvm, options) > len(options) // 2
