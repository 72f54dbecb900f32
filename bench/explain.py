"""``klto explain`` on 100 MB logs, against ``grep -c error`` on the same."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from bench.pairs import in_turn, quiet

SIZE = 100_000_000
PAIRS = 3
#: Seconds on top of three times grep's.
ALLOWED = 1.0


def main() -> None:
    """Logs of a clean build, of equal warnings, of errors, of one line, with colours, and random bytes."""
    with tempfile.TemporaryDirectory() as folder:
        for name, lines in _logs().items():
            log = Path(folder) / "log"
            with log.open("wb") as stream:
                written = 0
                for line in lines:
                    written += stream.write(line)
                    if written >= SIZE:
                        break
            _measure(name, log)


def _measure(name: str, log: Path) -> None:
    explain: list[str | Path] = [sys.executable, "-m", "klto", "explain", log]
    # Through cat: grep ends at the first match when it sees that it writes to /dev/null.
    grep: list[str | Path] = ["sh", "-c", 'LC_ALL=C grep -c error "$0" | cat', log]
    found = in_turn(name, lambda: quiet(explain), lambda: quiet(grep), PAIRS)
    a, b = statistics.median(found.a), statistics.median(found.b)
    limit = 3 * b + ALLOWED
    peak = _peak(explain)
    verdict = "met" if a <= limit else "MISSED"
    print(f"explain, {name:<10} {a:.2f} s (grep {b:.2f} s)  <= {limit:.2f} s {verdict}   peak {peak} MB")


def _peak(argv: list[str | Path]) -> int:
    """Peak resident MB of a command, by a small process of its own that waits for it."""
    code = (
        "import resource, subprocess, sys; subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, check=True); "
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1000)"
    )
    done = subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True, check=True)
    return int(done.stdout)


def _logs() -> dict[str, Iterator[bytes]]:
    numbers = range(SIZE)
    return {
        "clean": (b"  CC [M]  drivers/net/ethernet/intel/ice/ice_%d.o\n" % i for i in numbers),
        "warnings": (
            b"drivers/x%d.lto.o: warning: objtool: .text.fn_%d: unexpected end of section\n" % (i % 977, i)
            for i in numbers
        ),
        "errors": (
            b"drivers/foo/bar%d.c:1:3: error: use of undeclared identifier 'x'\n" % i for i in numbers
        ),
        "one line": (b"error undefined symbol: x " for _ in numbers),
        "colours": (
            b"\x1b[1mld.lld: \x1b[0;1;31merror: \x1b[0mundefined symbol: foo%d\x1b[0m\r\n" % i
            for i in numbers
        ),
        "random": (bytes((i * 167 + j * j * 31) % 256 for j in range(4096)) for i in numbers),
    }


if __name__ == "__main__":
    main()
