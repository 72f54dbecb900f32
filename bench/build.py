"""``klto build`` beside plain make on the same tree, config and toolchain."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from bench.pairs import HEADER, in_turn, quiet
from klto.files import user_cache_dir
from klto.machine import usable_cpus

ROOT = Path(__file__).parent.parent
CLEAN_PAIRS, IDLE_PAIRS = 1, 7


def main() -> None:
    """From clean, and with nothing to do."""
    tree = subprocess.run(
        [ROOT / "scripts/unpack-linux.sh", "6.12"], capture_output=True, text=True, check=True
    ).stdout.strip()
    folder = user_cache_dir() / "bench"
    dirs = {name: folder / name for name in ("klto", "make")}
    config = ROOT / "configs/x86_64-6.12.config"
    klto = [sys.executable, "-m", "klto", "build", "-q", "-C", tree, "-b", dirs["klto"], "-t", "llvm-19"]
    make = ["make", "-C", tree, f"O={dirs['make']}", "LLVM=-19", f"-j{usable_cpus()}"]

    def fresh(name: str) -> None:
        shutil.rmtree(dirs[name], ignore_errors=True)
        dirs[name].mkdir(parents=True)
        (dirs[name] / ".config").write_bytes((folder / "config").read_bytes())

    folder.mkdir(parents=True, exist_ok=True)
    quiet([*klto, "-k", "allnoconfig", "-K", config, "scripts/mod/empty.o"])
    (folder / "config").write_bytes((dirs["klto"] / ".config").read_bytes())

    def by_klto() -> None:
        fresh("klto")
        quiet(klto)

    def by_make() -> None:
        fresh("make")
        quiet(make)

    print(HEADER)
    clean = in_turn("klto build / make, from clean", by_klto, by_make, CLEAN_PAIRS, warm_up=False)
    print(clean.row(1.02), flush=True)
    idle = in_turn("klto build / make, nothing to do", lambda: quiet(klto), lambda: quiet(make), IDLE_PAIRS)
    print(idle.row(1.15))


if __name__ == "__main__":
    main()
