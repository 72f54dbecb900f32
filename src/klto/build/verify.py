"""Is the result an LTO kernel? Looks at what the build left, never at what was asked."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from klto.kernel.initcalls import NoInitcalls, in_run_order, read_initcalls
from klto.kernel.saved_link import link_inputs
from klto.objects.archive import Member, leaves, read_archive
from klto.objects.elf_header import Header
from klto.objects.elf_sections import section_names
from klto.objects.errors import MalformedObject
from klto.objects.kind import kind_of
from klto.objects.source import read_whole
from klto.record import Artifact, Initcall, Verification

#: Sections in which clang embeds bitcode (``-fembed-bitcode``, ``-ffat-lto-objects``):
#: llvm/lib/Bitcode/Writer/BitcodeWriter.cpp, embedBitcodeInModule; llvm/lib/Object/ObjectFile.cpp.
_BITCODE_SECTIONS = frozenset((".llvmbc", ".llvm.lto"))

#: Names shown of many alike.
_SHOWN = 5


def verify_build(
    build_dir: Path,
    lto: str,
    vmlinux_o_links: int,
    *,
    with_modules: bool,
    without_lto: frozenset[str] = frozenset(),
) -> Verification:
    """Compare the build with what LTO in mode ``lto`` (thin, full, none) must give.

    * every member of vmlinux.a whose saved command has ``-flto`` is bitcode, and some are;
    * vmlinux and every kernel module is ELF without bitcode in it;
    * the vmlinux.o link ran at most once in this run.

    :param without_lto: objects, relative to the build dir, that are native code because ``--no-lto`` says so.
    """
    problems, warnings = [], []
    if not (build_dir / "vmlinux.a").exists():
        warnings.append(
            "there is no vmlinux.a (Linux before 6.1 has none): the link's inputs are not verified"
        )
        bitcode, native, lost = 0, 0, list[str]()
    else:
        bitcode, native, lost = _archive_members(build_dir)
        lost = [name for name in lost if os.path.normpath(name) not in without_lto]
    if lost:
        problems.append(f"{len(lost)} objects were compiled with -flto and are native code: {_some(lost)}")
    if lto != "none" and bitcode == 0 and not warnings:
        problems.append("vmlinux.a holds no bitcode: nothing was left for the LTO link to do")
    if lto == "none" and bitcode:
        problems.append(f"vmlinux.a holds {bitcode} bitcode objects though LTO is off")
    modules = list(_kernel_modules(build_dir)) if with_modules else []
    for path in [build_dir / "vmlinux", *modules]:
        problem = _not_final(path)
        if problem:
            problems.append(f"{path.relative_to(build_dir)}: {problem}")
    if vmlinux_o_links > 1:
        warnings.append(f"vmlinux.o was linked {vmlinux_o_links} times in one build")
    return Verification(
        lto=lto,
        bitcode=bitcode,
        native=native,
        kernel_modules=len(modules),
        vmlinux_o_links=vmlinux_o_links,
        problems=problems,
        warnings=warnings,
        promoted_names=_promoted_names(build_dir / "vmlinux.o") if lto == "thin" else None,
    )


#: What ThinLTO calls a local symbol that it has made global: ModuleSummaryIndex::getGlobalNameForLocal
#: (llvm/include/llvm/IR/ModuleSummaryIndex.h).
_PROMOTED = re.compile(rb"\0[^\0]+\.llvm\.\d+(?=\0)")


def _promoted_names(path: Path) -> int | None:
    """How many of an object's symbols are promoted locals; None when there is no such object."""
    try:
        header = Header(read_whole(path), str(path))
        strings = header.section(section_names(path).index(".strtab"))
    except (MalformedObject, ValueError):
        return None
    table = bytes(header.data[strings[4] : strings[4] + strings[5]])
    return len(set(_PROMOTED.findall(table)))


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _archive_members(build_dir: Path) -> tuple[int, int, list[str]]:
    """(bitcode, native, native ones whose saved command has ``-flto``) of the vmlinux.o link's archives.

    :raises MalformedObject: when one cannot be read.
    """
    bitcode, native, lost = 0, 0, []
    for archive in link_inputs(build_dir):
        for member in leaves(read_archive(archive)):
            if member.kind() == "bitcode":
                bitcode += 1
                continue
            native += 1
            if _has_lto_flag(member):
                lost.append(member.name)
    return bitcode, native, lost


#: ``-flto`` or ``-flto=thin``, which ``-fno-lto`` later in the command switches off.
_LTO_FLAG = re.compile(rb" -(fno-lto|flto(?:=\w+)?)(?= )")


def _has_lto_flag(member: Member) -> bool:
    """Whether the command that Kbuild saved for a native member asks for LTO."""
    if member.path is None:
        return False
    folder, name = os.path.split(member.path)
    try:
        with open(os.path.join(folder, f".{name}.cmd"), "rb") as stream:
            command = stream.readline()
    except OSError:
        return False  # No saved command: not an object that Kbuild compiled (an archive's, a linked one).
    flags = _LTO_FLAG.findall(command)
    return bool(flags) and flags[-1] != b"fno-lto" and b" -c " in command


def _kernel_modules(build_dir: Path) -> Iterator[Path]:
    """The kernel modules of the build, from modules.order (6.1 lists ``*.ko``, 6.12 ``*.o``)."""
    try:
        lines = (build_dir / "modules.order").read_text().split()
    except OSError:
        return
    for line in lines:
        yield build_dir / re.sub(r"\.o$", ".ko", line)


def _not_final(path: Path) -> str | None:
    """What is wrong with a file that must be native code."""
    try:
        kind = kind_of(path)
        if kind != "elf":
            return f"expected ELF, found {kind}"
        found = _BITCODE_SECTIONS & set(section_names(path))
    except MalformedObject as error:
        return error.problem
    return f"holds bitcode in section {', '.join(sorted(found))}" if found else None


def compare_initcalls(build_dir: Path) -> tuple[list[Initcall], list[str]]:
    """The initcalls of the vmlinux.o link's inputs in the order in which a kernel runs them, and how vmlinux's own
    tables differ from that, one line each.

    :raises MalformedObject: when an object or vmlinux cannot be read.
    """
    from klto.kernel.initcall_tables import differences, read_tables  # Late: it needs numpy.

    try:
        found = read_initcalls([str(path) for path in link_inputs(build_dir)])
    except NoInitcalls:
        return [], []  # Not a Linux kernel that does anything; what the link had is verified all the same.
    order = [Initcall(level=i.level, function=i.function, object=i.object) for i in in_run_order(found)]
    return order, differences(found, read_tables(build_dir / "vmlinux"))


def artifacts(build_dir: Path, image: Path, *, with_modules: bool) -> list[Artifact]:
    """The files that matter after a build, with sizes in bytes and SHA-256; no image of an earlier vmlinux."""
    found = []
    vmlinux = build_dir / "vmlinux"
    modules = _kernel_modules(build_dir) if with_modules else ()
    for path in [vmlinux, image, build_dir / "System.map", *modules]:
        if path.is_file() and (path != image or path.stat().st_mtime_ns >= vmlinux.stat().st_mtime_ns):
            with path.open("rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
            relative = str(path.relative_to(build_dir))
            found.append(Artifact(path=relative, bytes=path.stat().st_size, sha256=digest))
    return found
