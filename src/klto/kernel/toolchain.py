"""Which LLVM builds the kernel, how make is told, and what it can do.

A toolchain has a *spelling*, the argument that make gets: ``LLVM=1`` (the tools by their plain names, found
in PATH), ``LLVM=-19`` (``clang-19``, ``ld.lld-19``...) or ``LLVM=/dir/`` (top Makefile, 6.1 and 6.12). Kbuild
saves the commands it ran, so another spelling of the same tools recompiles everything: a build dir keeps the
one that it was made with.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

from klto.errors import UsageError
from klto.files import user_cache_dir
from klto.kernel import toolchain_probe as probe
from klto.kernel.toolchain_made import MadeWith, made_with
from klto.kernel.tree import TARGETS, KernelTree

#: What LLVM=1 makes Kbuild run (top Makefile, 6.1 and 6.12), with the Debian package of each.
TOOLS = {
    "clang": "clang",
    "ld.lld": "lld",
    "llvm-ar": "llvm",
    "llvm-nm": "llvm",
    "llvm-objcopy": "llvm",
    "llvm-objdump": "llvm",
    "llvm-readelf": "llvm",
    "llvm-strip": "llvm",
}

#: Where Debian and Ubuntu (and apt.llvm.org) put LLVM N: the programs without suffix.
_DEBIAN_DIRS = Path("/usr/lib")


@dataclass(frozen=True)
class Candidate:
    """A place and spelling that may be a toolchain; not asked anything yet."""

    spelling: str
    #: Directory that must come first in PATH for the spelling to mean these tools.
    path_prefix: Path | None
    found: tuple[tuple[str, Path], ...]
    missing: tuple[str, ...]

    @property
    def complete(self) -> bool:
        """Whether every tool is there."""
        return not self.missing

    def path(self, tool: str) -> Path:
        """Where ``tool`` (a name of :data:`TOOLS`) is."""
        return dict(self.found)[tool]

    @property
    def label(self) -> str:
        """How a user names it with ``-t``: ``llvm``, ``llvm-19`` or a directory."""
        if self.path_prefix is not None:
            debian = re.fullmatch(re.escape(str(_DEBIAN_DIRS)) + r"/(llvm-\d+)/bin", str(self.path_prefix))
            return debian[1] if debian else str(self.path_prefix)
        value = self.spelling.removeprefix("LLVM=")
        return "llvm" if value == "1" else f"llvm{value}" if value.startswith("-") else value

    def install_hint(self) -> str:
        """The command that installs what is missing."""
        number = re.fullmatch(r"llvm-(\d+)", self.label)
        suffix = f"-{number[1]}" if number else ""
        packages = dict.fromkeys(TOOLS[tool] + suffix for tool in self.missing)
        return "install it: apt-get install " + " ".join(packages)


@dataclass(frozen=True)
class Toolchain:
    """A complete LLVM whose tools run and understand each other. Made by :func:`find_toolchain`."""

    #: Make's argument: ``LLVM=1``, ``LLVM=-19`` or ``LLVM=/dir/``.
    spelling: str
    path_prefix: Path | None
    clang: Path
    ld_lld: Path
    llvm_ar: Path
    llvm_nm: Path
    llvm_objcopy: Path
    llvm_objdump: Path
    llvm_readelf: Path
    llvm_strip: Path
    #: Kconfig's CC_VERSION_TEXT: ``Debian clang version 19.1.7 (3~deb12u1)``.
    clang_text: str
    clang_version: tuple[int, int, int]
    lld_text: str
    lld_version: tuple[int, int, int]

    def make_args(self) -> list[str]:
        """What make is told: the spelling."""
        return [self.spelling]

    @property
    def suffix(self) -> str:
        """``-19`` of ``LLVM=-19``, else empty."""
        value = self.spelling.removeprefix("LLVM=")
        return value if value.startswith("-") else ""

    @property
    def bin_dir(self) -> Path:
        """The directory of the programs themselves, behind Debian's links."""
        return Path(os.path.realpath(self.clang)).parent

    def linker_name(self) -> str:
        """What Kbuild will call as ``$(LD)``: ``ld.lld``, ``ld.lld-19`` or an absolute path."""
        if self.spelling.endswith("/"):
            return str(self.ld_lld)
        return "ld.lld" + self.suffix

    def compiler_name(self) -> str:
        """What Kbuild will call as ``$(CC)``: ``clang``, ``clang-19`` or an absolute path."""
        return str(self.clang) if self.spelling.endswith("/") else "clang" + self.suffix

    def search_path(self) -> str:
        """PATH for make: this process's, with :attr:`path_prefix` in front."""
        path = os.environ.get("PATH", os.defpath)
        return f"{self.path_prefix}{os.pathsep}{path}" if self.path_prefix else path

    def supports(self, *options: str) -> bool:
        """Whether the linker takes these options: ``supports("-mllvm", "-import-instr-limit=5")``."""
        return bool(
            _answers().get(
                "accepts " + " ".join(options),
                [self.ld_lld],
                lambda: probe.linker_accepts(self.ld_lld, options),
            )
        )

    def would_recompile(self, build_dir: Path) -> str | None:
        """Why building with this toolchain compiles everything in ``build_dir`` anew, or None.

        One line that names both toolchains; None also when nothing was compiled there yet.
        """
        made = made_with(build_dir)
        if made is None or not made.compiled:
            return None
        if made.version_text is not None and made.version_text != self.clang_text:
            return f"{build_dir} was made with {made.version_text}, this is {self.clang_text}"
        if made.spelling is None:
            return f"{build_dir} was made with a compiler that is not LLVM's, this is {self.clang_text}"
        if made.spelling != self.spelling:
            return f"{build_dir} was made with make {made.spelling}, this is make {self.spelling}"
        return None


@cache
def _answers() -> probe.AnswerCache:
    return probe.AnswerCache(user_cache_dir() / "toolchain.json")


def _candidate(spelling: str, path_prefix: Path | None = None) -> Candidate:
    """Look for the tools of a spelling. With ``path_prefix`` only that directory counts: a toolchain that the
    user named is not completed from another."""
    value = spelling.removeprefix("LLVM=")
    suffix = value if value.startswith("-") else ""
    folder = path_prefix or (Path(value) if value.endswith("/") else None)
    search = os.environ.get("PATH", os.defpath) if folder is None else str(folder)
    found = tuple(
        (tool, Path(where).absolute())
        for tool in TOOLS
        if (where := shutil.which(tool + suffix, path=search)) is not None
    )
    names = {tool for tool, _ in found}
    return Candidate(spelling, path_prefix, found, tuple(tool for tool in TOOLS if tool not in names))


def candidates(tree: KernelTree | None = None) -> list[Candidate]:
    """Every LLVM in sight: PATH's plain names, then suffixed names in PATH and Debian's directories, newest
    first. Places where some tools are missing count too, places without both clang and ld.lld do not.

    :param tree: the kernel that the spellings are for; None for one that knows all of them.
    """
    found = [_candidate("LLVM=1")]
    numbers = set(_suffixes_in_path()) | set(_debian_numbers())
    found += [_numbered(number, tree) for number in sorted(numbers, reverse=True)]
    return [c for c in found if {"clang", "ld.lld"} & {tool for tool, _ in c.found}]


def _numbered(number: int, tree: KernelTree | None) -> Candidate:
    """LLVM N: by suffixed names when all are in PATH, else Debian's directory put first in PATH."""
    suffixed = _candidate(f"LLVM=-{number}")
    if suffixed.complete and (tree is None or tree.has_llvm_suffix):
        return suffixed
    folder = _DEBIAN_DIRS / f"llvm-{number}/bin"
    return _candidate("LLVM=1", folder) if folder.is_dir() else suffixed


def _suffixes_in_path() -> Iterator[int]:
    for folder in os.environ.get("PATH", os.defpath).split(os.pathsep):
        try:
            names = [entry.name for entry in os.scandir(folder or ".")]
        except OSError:
            continue  # PATH may name directories that are not there
        yield from (int(m[1]) for name in names if (m := re.fullmatch(r"clang-(\d+)", name)))


def _debian_numbers() -> Iterator[int]:
    for folder in _DEBIAN_DIRS.glob("llvm-*/bin"):
        if (number := re.fullmatch(r"llvm-(\d+)", folder.parent.name)) is not None:
            yield int(number[1])


def find_toolchain(
    tree: KernelTree | None = None, build_dir: Path | None = None, request: str | None = None
) -> Toolchain:
    """The toolchain to build with.

    :param tree: its architecture is what the toolchain must be able to build (None: not asked).
    :param build_dir: what it was made with is kept, in its spelling, unless ``request`` names another LLVM.
    :param request: ``-t``: ``llvm``, ``llvm-19``, a directory; None: the build dir's, PATH's, the newest.
    :raises UsageError: none found, a tool is missing or broken, or the tools do not understand each other.
    """
    made = made_with(build_dir) if build_dir is not None else None
    chosen = _requested(request, tree) if request else _default(made, tree)
    if not chosen.complete:
        raise _incomplete(chosen)
    if request and made is not None and made.spelling is not None:
        chosen = _respelled(chosen, made.spelling)
    return toolchain_of(chosen, tree.arch if tree is not None else None)


def _requested(request: str, tree: KernelTree | None) -> Candidate:
    if request == "llvm":
        return _candidate("LLVM=1")
    numbered = re.fullmatch(r"llvm-(\d+)", request)
    if numbered:
        return _numbered(int(numbered[1]), tree)
    folder = Path(request).expanduser().absolute()
    if not folder.is_dir():
        raise UsageError(
            f"no toolchain '{request}': neither llvm, nor llvm-NUMBER, nor a directory", _known_hint()
        )
    return _candidate("LLVM=1", folder)


def _incomplete(chosen: Candidate) -> UsageError:
    others = [c.label for c in candidates() if c.complete]
    instead = f"; or use what is here: -t {others[0]}" if others else ""
    if not {"clang", "ld.lld"} & {tool for tool, _ in chosen.found}:
        where = "in PATH" if chosen.label == "llvm" else f"in {chosen.label}"
        what = (
            f"{chosen.label} is not installed"
            if re.fullmatch(r"llvm-\d+", chosen.label)
            else f"no LLVM {where}"
        )
        return UsageError(f"{what}: neither clang nor ld.lld", chosen.install_hint() + instead)
    return UsageError(
        f"the toolchain {chosen.label} is not complete: no {', no '.join(chosen.missing)}",
        chosen.install_hint() + instead,
    )


def _known_hint() -> str:
    known = [c.label for c in candidates() if c.complete]
    return f"found here: {', '.join(known)}" if known else "install one: apt-get install clang lld llvm"


def _default(made: MadeWith | None, tree: KernelTree | None) -> Candidate:
    """The build dir's own toolchain, else PATH's, else the newest complete one."""
    if made is not None and made.spelling is not None:
        kept = _as_made(made.spelling, made.version_text)
        if kept is not None:
            return kept
    found = candidates(tree)
    if not found:
        raise UsageError("no LLVM found: neither clang nor clang-NUMBER in PATH", _known_hint())
    return next((c for c in found if c.complete), found[0])


def _as_made(spelling: str, version_text: str | None) -> Candidate | None:
    """What the spelling meant when the build dir was made, as far as it is still here and complete."""
    options = [_candidate(spelling)]
    if spelling == "LLVM=1":
        # The name clang depends on the PATH of that day: the version text says which it was.
        options += [_candidate("LLVM=1", _DEBIAN_DIRS / f"llvm-{n}/bin") for n in sorted(_debian_numbers())]
    complete = [c for c in options if c.complete]
    for candidate in complete:
        if version_text is None or _clang_facts(candidate.path("clang"))[0] == version_text:
            return candidate
    # Updated since: the same name is the likeliest heir. LLVM=1 without PATH's clang has none.
    return complete[0] if complete and complete[0].path_prefix is None else None


def _respelled(chosen: Candidate, spelling: str) -> Candidate:
    """``chosen`` in the build dir's spelling when that means the very same programs."""
    same = _candidate(spelling)
    if not _same_programs(same, chosen) and spelling == "LLVM=1" and chosen.complete:
        same = _candidate(spelling, Path(os.path.realpath(chosen.path("clang"))).parent)
    return same if _same_programs(same, chosen) else chosen


def _same_programs(one: Candidate, other: Candidate) -> bool:
    if not (one.complete and other.complete):
        return False
    return all(os.path.realpath(one.path(t)) == os.path.realpath(other.path(t)) for t in TOOLS)


def _clang_facts(clang: Path) -> tuple[str, tuple[int, int, int]]:
    text, numbers = _answers().get("clang", [clang], lambda: probe.clang_facts(clang))
    return text, tuple(numbers)  # JSON has lists only


def _lld_facts(lld: Path) -> tuple[str, tuple[int, int, int]]:
    text, numbers = _answers().get("lld", [lld], lambda: probe.lld_facts(lld))
    return text, tuple(numbers)


def toolchain_of(chosen: Candidate, arch: str | None = None) -> Toolchain:
    """Ask every tool of a complete candidate whether it runs, and those that meet bitcode whether they agree.

    :param arch: the architecture that they must agree on; None: they are not asked.
    :raises UsageError: a tool is broken, or they do not understand each other.
    """
    at = dict(chosen.found)
    clang_text, clang_version = _clang_facts(at["clang"])
    lld_text, lld_version = _lld_facts(at["ld.lld"])
    for path in at.values():
        _answers().get("version", [path], partial(probe.version_line, path))
    toolchain = Toolchain(
        spelling=chosen.spelling,
        path_prefix=chosen.path_prefix,
        clang=at["clang"],
        ld_lld=at["ld.lld"],
        llvm_ar=at["llvm-ar"],
        llvm_nm=at["llvm-nm"],
        llvm_objcopy=at["llvm-objcopy"],
        llvm_objdump=at["llvm-objdump"],
        llvm_readelf=at["llvm-readelf"],
        llvm_strip=at["llvm-strip"],
        clang_text=clang_text,
        clang_version=clang_version,
        lld_text=lld_text,
        lld_version=lld_version,
    )
    if arch is not None:
        _check_agreement(toolchain, TARGETS[arch])
    return toolchain


def _check_agreement(toolchain: Toolchain, target: str) -> None:
    binaries = (toolchain.clang, toolchain.ld_lld, toolchain.llvm_nm)
    failure = _answers().get(f"reads {target}", binaries, partial(probe.reading_failure, *binaries, target))
    if failure is not None:
        clang, lld = (".".join(map(str, v)) for v in (toolchain.clang_version, toolchain.lld_version))
        raise UsageError(
            f"clang {clang} ({toolchain.clang}) and LLD {lld} ({toolchain.ld_lld}) do not fit together "
            f"for {target}: {failure}",
            "use the tools of one LLVM; " + _known_hint(),
        )
