"""``klto build`` beside plain make on the same tree, config and toolchain."""

from __future__ import annotations

import shutil
import subprocess
import sys
from itertools import count
from pathlib import Path

from bench.pairs import HEADER, in_turn, quiet
from klto.files import user_cache_dir
from klto.machine import usable_cpus

ROOT = Path(__file__).parent.parent
FOLDER = user_cache_dir() / "bench"
CLEAN_PAIRS, IDLE_PAIRS, CHANGE_PAIRS = 1, 7, 3


class Sides:
    """One tree of our own, and a build dir for each of klto and make."""

    def __init__(self) -> None:
        self.tree = FOLDER / "linux"
        self.dirs = {name: FOLDER / name for name in ("klto", "make")}
        self.cache = FOLDER / "link-cache"
        self._versions = count(1)

    def klto(self) -> None:
        """A build by klto."""
        quiet([*self._klto(), "-q"])

    def make(self) -> None:
        """A build by make."""
        quiet(["make", "-C", self.tree, f"O={self.dirs['make']}", "LLVM=-19", f"-j{usable_cpus()}"])

    def _klto(self) -> list[str | Path]:
        command: list[str | Path] = [
            sys.executable,
            "-m",
            "klto",
            "build",
            "-C",
            self.tree,
            "-b",
            self.dirs["klto"],
        ]
        return [*command, "-t", "llvm-19", "--cache-dir", self.cache]

    def prepare(self) -> None:
        """The tree is one of hard links, so that a change in it leaves the original alone."""
        shutil.rmtree(FOLDER, ignore_errors=True)
        FOLDER.mkdir(parents=True)
        asked: list[str | Path] = [ROOT / "scripts/unpack-linux.sh", "6.12"]
        original = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
        quiet(["cp", "-al", original, self.tree])
        config = ROOT / "configs/x86_64-6.12.config"
        quiet([*self._klto(), "-q", "-k", "allnoconfig", "-K", config, "scripts/mod/empty.o"])
        (FOLDER / "config").write_bytes((self.dirs["klto"] / ".config").read_bytes())

    def clean(self, name: str) -> None:
        """A build dir with a configuration and nothing else, and an empty link cache."""
        shutil.rmtree(self.dirs[name], ignore_errors=True)
        shutil.rmtree(self.cache, ignore_errors=True)
        self.dirs[name].mkdir(parents=True)
        (self.dirs[name] / ".config").write_bytes((FOLDER / "config").read_bytes())

    def change(self) -> None:
        """One more line in kernel/sys.c."""
        source = self.tree / "kernel/sys.c"
        text = source.read_text()
        source.unlink()  # The hard link's other name keeps its content.
        source.write_text(f"{text}int klto_bench_{next(self._versions)} = {len(text)};\n")


def main() -> None:
    """From clean, with nothing to do, after a one-line change."""
    sides = Sides()
    sides.prepare()

    def clean_klto() -> None:
        sides.clean("klto")
        sides.klto()

    def clean_make() -> None:
        sides.clean("make")
        sides.make()

    def changed_klto() -> None:
        sides.change()
        sides.klto()

    print(HEADER)
    # make first: clean() empties the link cache, which klto's later builds want to find.
    clean = in_turn("make / klto build, from clean", clean_make, clean_klto, CLEAN_PAIRS, warm_up=False)
    print(clean.swapped("klto build / make, from clean").row(1.02), flush=True)
    idle = in_turn("klto build / make, nothing to do", sides.klto, sides.make, IDLE_PAIRS)
    print(idle.row(1.15), flush=True)
    changed = in_turn("klto build / make, one line changed", changed_klto, sides.make, CHANGE_PAIRS)
    print(changed.row(0.40))


if __name__ == "__main__":
    main()
