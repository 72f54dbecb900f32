"""Who imports functions from whom in a ThinLTO link: asked of the linker itself, by its thin link alone.

The thin link reads summaries only and takes half a second for a thousand modules. Its index files, one a
module, list every summary that the module's backend will use: those of other modules are what it imports
(llvm/lib/Bitcode/Writer/BitcodeWriter.cpp, IndexBitcodeWriter; llvm/include/llvm/Bitcode/LLVMBitCodes.h).
"""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from klto import process
from klto.errors import UsageError
from klto.kernel.saved_link import link_inputs, saved_link
from klto.objects.archive import leaves, read_archive
from klto.objects.bitstream import Abbrev, Bitstream, Block
from klto.objects.source import read_whole

# LLVMBitCodes.h: BlockIDs MODULE_BLOCK_ID, MODULE_STRTAB_BLOCK_ID, GLOBALVAL_SUMMARY_BLOCK_ID.
_MODULE, _MODULE_STRTAB, _SUMMARY = 8, 19, 20
#: ModulePathSymtabCodes, MST_CODE_ENTRY: [modid, namechar x N].
_ENTRY = 1
#: GlobalValueSummarySymtabCodes: FS_COMBINED, FS_COMBINED_PROFILE: [valueid, modid, flags, instcount, ...].
_FUNCTIONS = (4, 5)

#: Seconds. A hundred times what a kernel of a thousand modules takes.
_DEADLINE = 60.0

#: Bytes before the first block: the magic "BC" 0xC0DE.
_MAGIC_BITS = 32

#: ``-T FILE`` and ``-o FILE`` name files of the real link.
_WITH_FILE = ("-T", "-o")


@dataclass(frozen=True)
class Import:
    """One module imports from another. ``functions`` counts them, ``instructions`` is LLVM's own measure of
    their size (FunctionSummary::instCount)."""

    importer: str
    source: str
    functions: int
    instructions: int


def read_imports(build_dir: Path, linker: str) -> list[Import]:
    """The imports of a ThinLTO build's vmlinux.o link, by module paths relative to the build dir, most first.

    :param linker: the ld.lld that linked it.
    :raises UsageError: when the link's command or inputs are gone.
    :raises CommandFailed: when the linker fails.
    :raises MalformedObject: when an index cannot be read.
    """
    root = os.path.abspath(build_dir)
    command = saved_link(build_dir)
    if not command:
        raise UsageError(f"{build_dir} has no saved vmlinux.o link", "build it first")
    members = [
        os.path.abspath(member.path or archive)
        for archive in link_inputs(build_dir)
        for member in leaves(read_archive(archive))
    ]
    with tempfile.TemporaryDirectory(prefix="klto-imports-") as folder:
        for directory in {os.path.dirname(path) for path in members}:
            os.makedirs(folder + "/" + os.path.relpath(directory, root), exist_ok=True)
        listing = Path(folder, "members")
        listing.write_text("\n".join(f'"{path}"' for path in members))
        argv = [
            linker,
            *link_options(command[1:]),
            *("-o", f"{folder}/vmlinux.o", "--whole-archive", f"@{listing}", "--no-whole-archive"),
            *("--thinlto-index-only", f"--thinlto-prefix-replace={root};{folder}"),
        ]
        process.run(argv, cwd=build_dir, timeout=_DEADLINE)
        counts: Counter[tuple[str, str]] = Counter()
        sizes: Counter[tuple[str, str]] = Counter()
        for path in members:
            index = f"{folder}/{os.path.relpath(path, root)}.thinlto.bc"
            if os.path.exists(index):
                for source, instructions in _imported(index, path):
                    edge = (os.path.relpath(path, root), os.path.relpath(source, root))
                    counts[edge] += 1
                    sizes[edge] += instructions
    return [Import(*edge, count, sizes[edge]) for edge, count in counts.most_common()]


def link_options(words: list[str]) -> list[str]:
    """The saved link's options without its inputs, output and script."""
    kept: list[str] = []
    rest = iter(words)
    for word in rest:
        if word in _WITH_FILE:
            next(rest, None)
        elif word in ("-m", "-z", "-mllvm"):
            kept += [word, next(rest, "")]
        elif word.startswith("-") and word not in _GROUPING:
            kept.append(word)
    return kept


_GROUPING = ("--whole-archive", "--no-whole-archive", "--start-group", "--end-group")


def _imported(index: str, own: str) -> list[tuple[str, int]]:
    """(module, instructions) of each function that an index file lists and another module defines."""
    data = read_whole(index)
    stream = Bitstream(data, index)
    info: dict[int, list[Abbrev]] = {}
    modules: dict[int, str] = {}
    found: list[tuple[int, int]] = []
    for block in _blocks(stream, info):
        if block.block_id == _MODULE_STRTAB:
            for record in stream.items(block, info.get(_MODULE_STRTAB, []), (_ENTRY,), info):
                if not isinstance(record, Block):
                    modid, *name = record.values()
                    modules[modid] = bytes(name).decode("utf-8", "surrogateescape")
        elif block.block_id == _SUMMARY:
            for record in stream.items(block, info.get(_SUMMARY, []), _FUNCTIONS, info):
                if not isinstance(record, Block):
                    ops = record.ops(4)
                    found.append((ops[1], ops[3]))
    return [(modules[modid], size) for modid, size in found if modules.get(modid, own) != own]


def _blocks(stream: Bitstream, info: dict[int, list[Abbrev]]) -> list[Block]:
    """The blocks in the index's module block."""
    at = _MAGIC_BITS
    inner: list[Block] = []
    while at + 64 <= stream.limit:
        if stream.fixed(at, 2) != 1:  # ENTER_SUBBLOCK; the outermost abbreviation width is 2.
            break
        block = stream.block(at + 2)
        if block.block_id == _MODULE:
            inner += [item for item in stream.items(block, [], (), info) if isinstance(item, Block)]
        at = block.end
    return inner
