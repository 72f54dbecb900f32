"""What the fuzzer damages: small objects of every format that clang 14, 19 and 22 make, and pieces of kernels."""

from __future__ import annotations

import struct
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path

from klto.objects.kind import kind_of

LLVMS = (14, 19, 22)

SOURCE = r"""
asm(".section .init,\"a\"\n__initcall__kmod_fuzz__1_2_start6:\n\t.long start - .\n"
    "\t.incbin \"/dev/null\"\n\t.previous");
extern int out(int); __attribute__((weak)) int weak(void) { return 1; } int common; static int data = 5;
__attribute__((used)) static int start(void) {
    asm volatile("call out%=" ::: "memory");
    asm volatile(".include \"/dev/null\"");
    return data;
}
int f(int x) { asm("nop # %0" : : "r"(x)); return out(x) + start() + weak(); }
int alias(int) __attribute__((alias("f")));
"""
#: A vmlinux with an initcall in each of its two tables.
VMLINUX = r"""
asm(".section .init,\"a\"\n"
    "__con_initcall_start:\n__initcall__kmod_a__3_4_startcon:\n\t.long start - .\n__con_initcall_end:\n"
    "__initcall_start:\n__initcall__kmod_b__5_6_start6s:\n\t.long start - .\n__initcall_end:\n\t.previous");
int start(void) { return 0; }
"""
#: Many symbols, and one name so long that together they must not all have it.
NAMES = "".join(f"int s{number};" for number in range(80)) + f"int {'n' * 2000};"

#: Pieces of kernels are no larger than this: what an input costs grows with it.
_PIECE_BYTES = 6000
#: How many of each kind a kernel gives.
_PIECES = {"*.o": 6, "*.ko": 2, "*.so": 1, "*.a": 3}


def seeds(llvms: Iterable[int] = LLVMS, kernels: Iterable[Path] = ()) -> list[bytes]:
    """Small objects of each kind by each LLVM that is there, and pieces of built kernels.

    :raises FileNotFoundError: when no LLVM is there.
    """
    folders = [path for version in llvms if (path := Path(f"/usr/lib/llvm-{version}/bin/clang")).exists()]
    if not folders:
        raise FileNotFoundError(f"no clang in /usr/lib/llvm-N, N one of {LLVMS}")
    # numpy loads parts of itself when it first meets a table without entries.
    found = [b"\x7fELF\2\1\1" + bytes(57)]
    for clang in folders:
        found += _made_by(clang.parent)
    for build_dir in kernels:
        found += pieces(build_dir)
    return list(dict.fromkeys(found))


def _made_by(llvm: Path) -> list[bytes]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        def run(*command: str) -> None:
            program = str(llvm / command[0])
            subprocess.run([program, *command[1:]], cwd=folder, check=True, stdin=subprocess.DEVNULL)

        (folder / "s.c").write_text(SOURCE)
        (folder / "portable.c").write_text(SOURCE.replace('"call', '"nop # call'))
        (folder / "v.c").write_text(VMLINUX)
        (folder / "a rather long name for a member.o").write_bytes(b"x" * 99)
        clang = ("clang", "-c", "-w", "-O1", "s.c", "--target=x86_64-linux-gnu", "-o")
        run(*clang, "thin.o", "-flto=thin")
        run(*clang, "full.o", "-flto", "-g")
        run(*clang, "elf.o", "-ffunction-sections", "-g")
        run(*clang, "elf32.o", "-ffunction-sections", "-m32")
        run("clang", "-c", "-w", "-O1", "portable.c", "--target=powerpc64-linux-gnu", "-o", "big.o")
        if llvm.parent.name == "llvm-22":
            run(*clang, "crel.o", "-Wa,--crel,--allow-experimental-crel")
        lenient = ("--unresolved-symbols=ignore-all", "-z", "notext", "-e", "0")
        run("ld.lld", "elf.o", "-o", "pie.o", "-pie", "--pack-dyn-relocs=relr", "--build-id", *lenient)
        run("clang", "-c", "-w", "v.c", "--target=x86_64-linux-gnu", "-o", "v.o")
        run("ld.lld", "v.o", "-o", "vmlinux.o", *lenient)
        (folder / "v.o").unlink()
        (folder / "n.c").write_text(NAMES)
        run("clang", "-c", "n.c", "--target=x86_64-linux-gnu", "-o", "names.o")
        run("llvm-ar", "rcS", "full.a", "thin.o", "elf.o")
        run("llvm-ar", "rcs", "named.a", "elf32.o", "a rather long name for a member.o")
        run("llvm-ar", "rcST", "thin.a", "thin.o", "elf.o", "/dev/null")
        run("llvm-ar", "qcS", "nested.a", "named.a", "thin.o")
        run("llvm-ar", "--format=bsd", "rcS", "bsd.a", "elf32.o")
        thin = (folder / "thin.o").read_bytes()
        wrapped = struct.pack("<5I", 0x0B17C0DE, 0, 20, len(thin), 7) + thin
        return [wrapped, *(path.read_bytes() for path in sorted(folder.glob("*.[oa]")))]


def pieces(build_dir: Path) -> list[bytes]:
    """Small files of a built kernel, of every kind and size that it has, the same ones every time."""
    found = []
    for pattern, count in _PIECES.items():
        by_kind: dict[str, list[tuple[int, Path]]] = {}
        for path in build_dir.rglob(pattern):
            if path.is_file() and 100 < (size := path.stat().st_size) <= _PIECE_BYTES:
                by_kind.setdefault(kind_of(path), []).append((size, path))
        for paths in by_kind.values():
            paths.sort()
            found += [paths[number * len(paths) // count][1].read_bytes() for number in range(count)]
    return list(dict.fromkeys(found))
