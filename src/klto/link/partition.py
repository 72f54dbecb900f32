"""Divides the link cache by everything that decides about generated code and that LLVM's own keys leave out.

LLVM's key of a cache entry covers the modules, their imports and some of the configuration
(llvm/lib/LTO/LTO.cpp, computeLTOCacheKey), but no option that reaches the code generator by ``-mllvm`` or
``-plugin-opt=-``, and some of lld's ``--lto-`` options neither. So each combination of linker and options has a
cache of its own. Unknown options divide it too: what is not known to be harmless is taken as harmful.
"""

from __future__ import annotations

import hashlib
import json
import os

from klto.link.includes import Uncacheable
from klto.objects.kind import kind_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

#: Options that say where results go, how many threads work, or what happens after code generation. Their value
#: is the next argument or stands behind ``=``.
_OUTSIDE = frozenset(
    (
        *("o", "output", "Map", "dependency-file", "reproduce", "threads", "thinlto-jobs", "time-trace"),
        *("time-trace-granularity", "thinlto-cache-dir", "thinlto-cache-policy"),
    )
)
#: Linker scripts: a symbol that a script names is kept, which LLVM's key sees as the symbol's visibility. A
#: kernel's script of initcalls changes with line numbers in any source file.
_SCRIPTS = frozenset(["T", "script", "default-script", "version-script", "dynamic-list"])


def partition_of(linker: str, arguments: tuple[str, ...], inputs: frozenset[str], memo: str) -> str:
    """The name of the cache's part for a link: a SHA-256 in hexadecimal.

    :param arguments: the linker's, response files expanded.
    :param inputs: the arguments among them that are input files.
    :param memo: a file that remembers digests of linkers.
    """
    digest = hashlib.sha256(linker_digest(linker, memo).encode())
    for word, content in argument_digests(arguments, inputs):
        digest.update(b"\0" + word.encode("utf-8", "surrogateescape") + b"\0" + content)
    return digest.hexdigest()


def argument_digests(
    arguments: tuple[str, ...], inputs: frozenset[str], *, scripts: bool = False
) -> Iterator[tuple[str, bytes]]:
    """The arguments that count, but for inputs, each with a digest of the file it names, if it names one.

    :param scripts: linker scripts count as what they hold, not as their names alone.
    """
    words = iter(arguments)
    for word in words:
        name, equals, value = word.lstrip("-").partition("=")
        if word.startswith("-") and name in _OUTSIDE:
            if not equals and name != "time-trace":
                next(words, None)
            continue
        if word in inputs:
            continue
        if word.startswith("-") and name in _SCRIPTS:
            file = value if equals else next(words, "")
            yield word, b""
            yield file, _named_file(file) if scripts else b""
            continue
        yield word, _named_file(word) or _named_file(value)


def _named_file(name: str) -> bytes:
    """The digest of a file that an option names (a profile, a list of functions), empty when there is none."""
    for candidate in (name, name.rpartition("=")[2]):
        if candidate and os.path.isfile(candidate):
            with open(candidate, "rb") as stream:
                return hashlib.file_digest(stream, "sha256").digest()
    return b""


def linker_digest(linker: str, memo: str) -> str:
    """A digest of the linker's bytes and of the shared libraries' that it loads (LLVM itself is one of them)."""
    path = os.path.realpath(linker)
    if kind_of(path) != "elf":
        raise Uncacheable(f"{linker} is no program but a script: what it runs cannot be told")
    known = _read_memo(memo)
    # Other libraries, other code: LLVM itself is one of them.
    loader = f"{os.environ.get('LD_LIBRARY_PATH', '')}\0{os.environ.get('LD_PRELOAD', '')}"
    name = f"{path}\0{loader}"
    digest_known, identities_known = known.get(name, ("", {}))
    if identities_known and all(_identity(file) == identity for file, identity in identities_known.items()):
        return digest_known
    files = [path, *_libraries(path)]
    identities = {file: _identity(file) for file in files}
    digest = hashlib.sha256()
    for file in files:
        with open(file, "rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    known[name] = (digest.hexdigest(), identities)
    aside = f"{memo}.{os.getpid()}"
    try:
        with open(aside, "w", encoding="utf-8") as out:
            json.dump(known, out)
        os.replace(aside, memo)
    except OSError:
        return digest.hexdigest()  # It is made again the next time.
    return digest.hexdigest()


def _read_memo(memo: str) -> dict[str, tuple[str, dict[str, list[int] | None]]]:
    """Linker to (digest, identities of the files it was made from)."""
    try:
        with open(memo, encoding="utf-8") as stream:
            known = json.load(stream)
    except (OSError, ValueError):
        return {}
    entries = known.items() if isinstance(known, dict) else ()
    return {
        name: (entry[0], entry[1])
        for name, entry in entries
        if isinstance(entry, list) and [type(part) for part in entry] == [str, dict]
    }


def _identity(file: str) -> list[int] | None:
    try:
        status = os.stat(file)
    except OSError:
        return None
    return [status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def _libraries(program: str) -> list[str]:
    """The shared libraries that the dynamic loader would load, by asking it; none for a static program."""
    import subprocess  # Late: once for each linker.

    listed = subprocess.run(
        ["ldd", program], capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False
    )
    found = []
    for line in listed.stdout.splitlines():
        words = line.split()
        path = words[2] if len(words) > 2 and words[1] == "=>" else words[0] if words else ""
        if path.startswith("/") and os.path.isfile(path):
            found.append(os.path.realpath(path))
    return sorted(found)
