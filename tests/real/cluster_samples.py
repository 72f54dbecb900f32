"""What the tests of clusters share."""

from __future__ import annotations

from pathlib import Path

#: A fake worker whose objects are altered after their digest was taken.
ALTERING = """
import msgspec, sys
from klto.cluster import remote
real = remote.run_backend
def altered(*arguments):
    outcome = real(*arguments)
    return msgspec.structs.replace(outcome, object=outcome.object[:-1] + b"!") if outcome.object else outcome
remote.run_backend = altered
from klto.cli import main
sys.exit(main())
"""


def ring_of_files(folder: Path, count: int) -> list[str]:
    """Write a program of ``count`` files, each of which calls the next one; the files' names without their ends."""
    for number in range(count):
        follower = (number + 1) % count
        (folder / f"f{number}.c").write_text(
            f"int g{number}; int f{follower}(int);\n"
            f"static int h(int x) {{ return x * {number} + g{number}; }}\n"
            f"int f{number}(int x) {{ return x <= 0 ? h(x) : h(x) + f{follower}(x - 1); }}\n"
        )
    return [f"f{number}" for number in range(count)]
