"""The proof ``config``: the running kernel's /proc/config.gz is the build's ``.config``."""

from __future__ import annotations

import zlib

from klto.boot.proofs import Facts, Finding, Heard, Step
from klto.boot.subject import Subject

#: Lines of a difference that are shown.
_SHOWN = 8


def prepare(subject: Subject) -> tuple[Step, ...]:
    """Remember the build's ``.config``.

    :raises NotApplicable: when only an image was given.
    """
    path = subject.needed_build_dir() / ".config"
    built = path.read_bytes()

    def check(heard: Heard) -> Finding:
        return compare(built, heard.facts)

    return (Step("config", check),)


def compare(built: bytes, facts: Facts) -> Finding:
    """Compare what init has sent of /proc/config.gz with the build's configuration."""
    packed = b""
    for key, digits in facts.items():
        if key.startswith("@"):
            if int(key[1:]) != len(packed):
                return Finding(f"a part of /proc/config.gz was lost: nothing at byte {len(packed)}")
            packed += bytes.fromhex(digits)
    try:
        running = zlib.decompress(packed, wbits=31)  # 16 + 15: a gzip wrapper, zlib.h inflateInit2
    except zlib.error as error:
        return Finding(f"/proc/config.gz cannot be unpacked: {error}")
    if running == built:
        count = sum(not line.startswith(b"#") for line in built.splitlines() if line)
        return Finding(None, (f"/proc/config.gz is the build's .config: {count} options set",))
    ours, theirs = _options(built), _options(running)
    names = sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
    if not names:
        return Finding(None, ("/proc/config.gz has the options of the build's .config, comments differ",))
    lines = [
        f"{name} is {theirs.get(name, 'n')} in the running kernel, {ours.get(name, 'n')} in .config"
        for name in names
    ]
    more = (f"and {len(lines) - _SHOWN} more",) if len(lines) > _SHOWN else ()
    return Finding(lines[0], (*lines[1:_SHOWN], *more))


def _options(config: bytes) -> dict[str, str]:
    """``CONFIG_X`` to its value, options that are not set left out."""
    lines = config.decode("utf-8", "replace").splitlines()
    pairs = (line.partition("=") for line in lines if line.startswith("CONFIG_"))
    return {name: value for name, _, value in pairs}
