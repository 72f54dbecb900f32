"""A small LTO link that is the same everywhere: how fast this machine's linker generates code.

Its source is made here, so that estimates of a kernel's link can be given as a multiple of it.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import msgspec

from klto import process
from klto.files import make_directory, user_cache_dir, write_whole

#: Functions of the one module, each a loop around a switch: under a second of code generation.
_FUNCTIONS = 120
_CASES = 12

#: Links; the fastest counts, since other work on the machine only slows them.
_LINKS = 3

#: Seconds; a hundred times what it takes.
_DEADLINE = 120.0


class Reference(msgspec.Struct, frozen=True):
    """``linker`` is what it says of itself, ``processor`` the model."""

    linker: str
    processor: str
    seconds: float


def source_text() -> str:
    """The module, C."""
    functions = []
    for number in range(_FUNCTIONS):
        cases = "\n".join(
            f"case {case}: sum += p[i] * {case * 7 + number} ^ (sum >> {case + 1}); q[(i + {case}) & 63] = sum; break;"
            for case in range(_CASES)
        )
        functions.append(
            f"unsigned long f{number}(unsigned long *p, unsigned long *q, int n) {{\n"
            f"unsigned long sum = {number};\nfor (int i = 0; i < n; i++) switch (p[i] % {_CASES + 1}) {{\n{cases}\n"
            f"default: sum = sum * 31 + f{(number + 1) % _FUNCTIONS}(q, p, (int)(sum & 3)); }}\nreturn sum; }}"
        )
    heads = "\n".join(
        f"unsigned long f{n}(unsigned long *, unsigned long *, int);" for n in range(_FUNCTIONS)
    )
    return heads + "\n" + "\n".join(functions) + "\n"


def measure_reference(clang: str, linker: str) -> float:
    """CPU seconds of the reference link with this toolchain.

    :raises CommandFailed: when the toolchain cannot do it.
    """
    with tempfile.TemporaryDirectory(prefix="klto-reference-") as folder:
        source, module = Path(folder, "reference.c"), Path(folder, "reference.o")
        source.write_text(source_text())
        process.run([clang, "-O2", "-flto=thin", "-c", source, "-o", module], timeout=_DEADLINE)
        command: list[process.Arg] = [
            linker,
            "-r",
            "-o",
            Path(folder, "out.o"),
            module,
            "--threads=1",
            "--thinlto-jobs=1",
        ]
        return min(process.run(command, timeout=_DEADLINE).usage.cpu_seconds for _ in range(_LINKS))


def reference_seconds(clang: str, linker: str, linker_version: str) -> float:
    """As :func:`measure_reference`, measured once for each linker and processor and then kept.

    :raises CommandFailed: when the toolchain cannot do it.
    """
    kept = user_cache_dir() / "reference.json"
    processor = _processor()
    for known in _read(kept):
        if (known.linker, known.processor) == (linker_version, processor):
            return known.seconds
    found = Reference(linker_version, processor, measure_reference(clang, linker))
    make_directory(kept.parent)
    write_whole(kept, msgspec.json.encode([*_read(kept), found]))
    return found.seconds


def _read(path: Path) -> list[Reference]:
    try:
        return msgspec.json.decode(path.read_bytes(), type=list[Reference])
    except (OSError, msgspec.DecodeError):
        return []


def _processor() -> str:
    """The processor's model as /proc/cpuinfo has it (x86: "model name", arm64: "CPU part")."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("model name", "CPU part"):
            return value.strip()
    return "unknown"
