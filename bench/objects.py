"""The readers of klto.objects beside the kernel's script and LLVM's tools, on one built kernel."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from statistics import median

from bench.pairs import HEADER, in_turn, quiet
from klto.files import user_cache_dir
from klto.objects.archive import read_archive

ROOT = Path(__file__).parent.parent
LLVM = Path("/usr/lib/llvm-19/bin")
PAIRS = 15
#: Seven seconds of the kernel's script a pair.
LONG_PAIRS = 5

#: Everything that llvm-readelf -S -s -r prints, as values: names, numbers, relocations.
READ_ELF = """
import sys
from klto.objects.elf import Elf
from klto.objects.relocations import RelocationReader
from klto.objects.source import read_whole
def read(path):
    elf = Elf(read_whole(path), path)
    table = elf.symtab
    return elf.section_names, elf.sections, table.names, table.section, RelocationReader(elf).all
read(sys.argv[1])
"""
#: Names and flags of the symbols of each object in a list of paths, as columns; and as a value for each symbol.
READ_COLUMNS = """
import sys
from klto.objects.bitcode import Bitcode
from klto.objects.source import read_whole
def read(paths):
    return [Bitcode(read_whole(path), path).symbol_table.columns() for path in paths]
read(open(sys.argv[1]).read().split())
"""
READ_BITCODE = READ_COLUMNS.replace(".symbol_table.columns()", ".symbols()")


def _kernel() -> tuple[Path, Path]:
    """Tree and build dir of the x86_64 kernel of the tests; built when it is not there."""
    command: list[str | Path] = [ROOT / "scripts/unpack-linux.sh", "6.12"]
    tree = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    given = os.environ.get("KLTO_BENCH_BUILD_DIR")
    build_dir = Path(given) if given else user_cache_dir() / "test/x86_64-6.12"
    if not (build_dir / "vmlinux.a").exists():
        config = ROOT / "configs/x86_64-6.12.config"
        klto: list[str | Path] = [
            sys.executable,
            "-m",
            "klto",
            "build",
            "-q",
            "-C",
            tree,
            "-b",
            build_dir,
            "-t",
            "llvm-19",
        ]
        quiet([*klto, "-k", "allnoconfig", "-K", config])
    return Path(tree), build_dir


def _ten_times(archive: Path, folder: Path) -> Path:
    """A thin archive of ten times the members, each of them another path to the same objects."""
    members = [Path(member.path or "").resolve() for member in read_archive(archive).members]
    build_dir = archive.parent.resolve()
    for number in range(10):
        (folder / f"copy{number}").symlink_to(build_dir)
    names = [f"copy{n}/{path.relative_to(build_dir)}" for n in range(10) for path in members]
    (folder / "members").write_text("\n".join(names))
    subprocess.run([LLVM / "llvm-ar", "rcST", "ten.a", "@members"], cwd=folder, check=True)
    return folder / "ten.a"


def main() -> None:
    """Four ratios; the last two are readers within a process beside whole processes."""
    tree, build_dir = _kernel()
    script = tree / "scripts/generate_initcall_order.pl"
    environment = {**os.environ, "NM": str(LLVM / "llvm-nm"), "objtree": "."}
    here = {"cwd": build_dir, "env": environment}
    klto = [sys.executable, "-m", "klto", "initcalls"]
    count = len(read_archive(build_dir / "vmlinux.a").members)
    print(HEADER)

    def by_script(archive: str) -> None:
        quiet(["perl", script, archive], **here)

    def by_klto(archive: str) -> None:
        quiet([*klto, archive], **here)

    one = in_turn(
        f"klto initcalls / script, {count} objects",
        lambda: by_klto("vmlinux.a"),
        lambda: by_script("vmlinux.a"),
        PAIRS,
    )
    print(one.row(1 / 6), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        ten = _ten_times(build_dir / "vmlinux.a", Path(folder))
        # The script puts $objtree/ before a name.
        relative = os.path.relpath(ten, build_dir)
        many = in_turn(
            f"klto initcalls / script, {10 * count} objects",
            lambda: by_klto(relative),
            lambda: by_script(relative),
            LONG_PAIRS,
        )
        print(many.row(1 / 10), flush=True)
        _tables(build_dir, Path(folder))


def _tables(build_dir: Path, folder: Path) -> None:
    vmlinux_o = str(build_dir / "vmlinux.o")
    objects = [
        member.path or ""
        for member in read_archive(build_dir / "vmlinux.a").members
        if member.kind() == "bitcode"
    ]
    (folder / "objects").write_text("\n".join(objects))
    inside: dict[str, object] = {}
    listed = str(folder / "objects")
    for code, argument in ((READ_ELF, vmlinux_o), (READ_COLUMNS, listed), (READ_BITCODE, listed)):
        namespace: dict[str, object] = {}
        saved, sys.argv = sys.argv, ["", argument]
        exec(code, namespace)
        sys.argv = saved
        inside[code] = namespace["read"]

    def readelf() -> None:
        quiet([LLVM / "llvm-readelf", "-S", "-s", "-r", "-W", vmlinux_o])

    def nm() -> None:
        quiet([LLVM / "llvm-nm", f"@{folder / 'objects'}"], cwd=build_dir)

    read_elf = inside[READ_ELF]
    assert callable(read_elf)
    elf = in_turn("vmlinux.o's tables / llvm-readelf -S -s -r", lambda: read_elf(vmlinux_o), readelf, PAIRS)
    print(elf.row(1 / 8), flush=True)
    for what, code in (("columns", READ_COLUMNS), ("symbols", READ_BITCODE)):
        name = f"{what} of {len(objects)} bitcode objects / llvm-nm"
        reader = inside[code]
        assert callable(reader)
        row = in_turn(name, partial(reader, objects), nm, PAIRS)
        print(row.row(1 / 5), flush=True)
    # What a process of its own would add to ours; theirs have it in them.
    for what, code, argument in (("numpy", READ_ELF, vmlinux_o), ("the reader", READ_BITCODE, os.devnull)):
        empty = [sys.executable, "-c", code.replace("\nread(", "\nlen("), argument]
        start = in_turn(f"  Python's start with {what} / without", partial(quiet, empty), _bare, PAIRS)
        print(f"{start.name:<44} {1000 * median(start.a):>10.1f} {1000 * median(start.b):>10.1f}", flush=True)


def _bare() -> None:
    quiet([sys.executable, "-c", "pass"])


if __name__ == "__main__":
    main()
