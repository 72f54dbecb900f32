"""Mutation fuzzer over real objects: ``python tests/fuzz/objects.py --inputs 200000``.

Every reader of klto.objects is let loose on damaged ELF files, bitcode files and archives. Nothing but
MalformedObject may come out, no input may take 2 s, and none more memory than ten times its size (plus what
the smallest input takes). A failing input is written to a file, and its number makes it again.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import struct
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[2] / "src")]

from klto.errors import UsageError  # noqa: E402
from klto.kernel.initcalls import NoInitcalls, read_initcalls  # noqa: E402
from klto.objects.archive import Archive, leaves  # noqa: E402
from klto.objects.bitcode import Bitcode  # noqa: E402
from klto.objects.elf import SHT_NOBITS, Elf  # noqa: E402
from klto.objects.errors import MalformedObject  # noqa: E402
from klto.objects.nm import ElfSymbols  # noqa: E402
from klto.objects.object_file import parse_object  # noqa: E402
from klto.objects.relocations import RelocationReader  # noqa: E402

MOST_SECONDS = 2.0
MOST_TIMES_SIZE = 10
#: What reading takes whatever the size: numpy's buffers, caches, the tables of names.
FLOOR_BYTES = 200_000

#: Inputs that have to be files need no disk.
MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None

SOURCE = r"""
asm(".section .init,\"a\"\n__initcall__kmod_fuzz__1_2_start6:\n\t.long start - .\n"
    "\t.incbin \"/dev/null\"\n\t.previous");
extern int out(int); __attribute__((weak)) int weak(void) { return 1; } int common; static int data = 5;
static int start(void) {
    asm volatile("call out%=" ::: "memory");
    asm volatile(".include \"/dev/null\"");
    return data;
}
int f(int x) { asm("nop # %0" : : "r"(x)); return out(x) + start() + weak(); }
int alias(int) __attribute__((alias("f")));
"""


def seeds() -> list[bytes]:
    """Small objects of each kind, made by the newest LLVM that is there."""
    llvm = next(path for v in (22, 19, 14) if (path := Path(f"/usr/lib/llvm-{v}/bin")).is_dir())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        def run(*command: str) -> None:
            program = str(llvm / command[0])
            subprocess.run([program, *command[1:]], cwd=folder, check=True, stdin=subprocess.DEVNULL)

        (folder / "s.c").write_text(SOURCE)
        (folder / "portable.c").write_text(SOURCE.replace('"call', '"nop # call'))
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
        run("llvm-ar", "rcS", "full.a", "thin.o", "elf.o")
        run("llvm-ar", "rcs", "named.a", "elf32.o", "a rather long name for a member.o")
        run("llvm-ar", "rcST", "thin.a", "thin.o", "elf.o", "/dev/null")
        run("llvm-ar", "qcS", "nested.a", "named.a", "thin.o")
        run("llvm-ar", "--format=bsd", "rcS", "bsd.a", "elf32.o")
        thin = (folder / "thin.o").read_bytes()
        wrapped = struct.pack("<5I", 0x0B17C0DE, 0, 20, len(thin), 7) + thin
        # numpy loads parts of itself when it first meets a table without entries.
        bare = b"\x7fELF\2\1\1" + bytes(57)
        return [bare, wrapped, *(path.read_bytes() for path in sorted(folder.glob("*.[oa]")))]


#: Numbers at which readers tend to go wrong.
SPECIAL = [0, 1, 2, 3, 4, 7, 8, 0xFF, 0xFFF1, 0xFFFF, 0x10000, 0x7FFFFFFF, 0xFFFFFFFF, 1 << 63, (1 << 64) - 1]


def mutated(data: bytes, others: list[bytes], rng: random.Random) -> bytes:
    """``data`` with some damage: bits, numbers, pieces moved, doubled, cut out or taken from elsewhere."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
        if not out:
            return bytes(out)
        at = rng.randrange(len(out))
        match rng.randrange(8):
            case 0:
                out[at] ^= 1 << rng.randrange(8)
            case 1:
                out[at] = rng.randrange(256)
            case 2 | 3:
                kind = rng.choice(("<I", "<Q", "<H", ">I"))
                at &= ~3
                if at + struct.calcsize(kind) <= len(out):
                    value = rng.choice((*SPECIAL, len(out), at, rng.getrandbits(32)))
                    struct.pack_into(kind, out, at, value & ((1 << 8 * struct.calcsize(kind)) - 1))
            case 4:
                del out[at:]
            case 5:
                del out[at : at + rng.choice((1, 4, 8, 64))]
            case 6:
                piece = bytes(out[at : at + rng.choice((1, 4, 64, 500))])
                out[at:at] = piece * rng.choice((1, 1, 2, 20))
            case 7:
                other = rng.choice(others)
                begin = rng.randrange(len(other))
                piece = other[begin : begin + rng.choice((4, 16, 64, 300))]
                out[at : at + len(piece)] = piece
    return bytes(out)


def read_everything(data: bytes) -> None:
    """All that the readers offer of one input, whatever it says it is."""
    obj = parse_object(data, "fuzzed")
    calls: list[Callable[[], object]] = [
        lambda: obj.target,
        lambda: obj.producer,
        obj.symbols,
        lambda: _initcalls(data),
    ]
    if obj.elf is not None:
        calls += _of_elf(obj.elf, data)
    if obj.bitcode is not None:
        calls += _of_bitcode(obj.bitcode)
    if obj.archive is not None:
        calls += [lambda: _leaves(data)]
    for call in calls:
        try:
            call()
        except MalformedObject:
            continue


def _of_elf(elf: Elf, data: bytes) -> list[Callable[[], object]]:
    return [
        lambda: elf.section_names,
        lambda: [(table.names, table.section, table.by_name) for table in elf.symbol_tables],
        lambda: list(elf.notes()),
        lambda: RelocationReader(elf).all,
        lambda: [RelocationReader(elf).relr(index) for index in RelocationReader(elf).relr_indexes],
        lambda: list(ElfSymbols(data, "fuzzed").matching(b"")),
        lambda: [_content(elf, index) for index in range(len(elf.sections))],
    ]


def _of_bitcode(bitcode: Bitcode) -> list[Callable[[], object]]:
    return [
        lambda: [module.properties for module in bitcode.modules],
        lambda: [symbol for module in bitcode.modules for symbol in module.symbols()],
        bitcode.includes,
        bitcode.names_in_inline_asm,
        bitcode.asm_labels,
        lambda: _blobs(bitcode),
    ]


def _content(elf: Elf, index: int) -> None:
    """A section's content is as long as its header says, so none of it lies behind the file."""
    row = elf.sections[index]
    assert len(elf.content(index)) == (0 if row["sh_type"] == SHT_NOBITS else row["sh_size"])


def _blobs(bitcode: Bitcode) -> None:
    """Names are as long as the table says, and there is one for each symbol."""
    table = bitcode.symbol_table
    if table is not None:
        names = table.columns()[0]
        assert len(names) == len(table)
        assert {name for name, _ in table.named(b"a")} <= {name for name in names if name.startswith("a")}


def _leaves(data: bytes) -> None:
    for member in leaves(Archive("/nowhere/fuzzed.a", data)):
        assert member.path is not None or len(member.data()) == member.size


def _initcalls(data: bytes) -> None:
    with tempfile.NamedTemporaryFile(dir=MEMORY) as file:
        file.write(data)
        file.flush()
        try:
            read_initcalls([file.name])
        except (NoInitcalls, UsageError):
            return


def check(data: bytes) -> str | None:
    """What is wrong with how an input was read; None when nothing is."""
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    begun = time.process_time()
    try:
        read_everything(data)
    except MalformedObject:
        pass
    except Exception as error:  # noqa: BLE001  what the fuzzer is looking for
        return f"{type(error).__name__}: {error}"
    seconds = time.process_time() - begun
    peak = tracemalloc.get_traced_memory()[1] - before
    if seconds > MOST_SECONDS:
        return f"took {seconds:.1f} s"
    if peak > MOST_TIMES_SIZE * len(data) + FLOOR_BYTES:
        return f"took {peak} bytes for {len(data)}"
    return None


def worker(seed: int, count: int, corpus: list[bytes]) -> list[tuple[int, str, bytes]]:
    """Try ``count`` inputs; the failures with what makes them again."""
    tracemalloc.start()
    for data in corpus:
        check(data)
    failures = []
    for number in range(seed, seed + count):
        rng = random.Random(number)
        data = mutated(rng.choice(corpus), corpus, rng)
        problem = check(data)
        if problem:
            failures.append((number, problem, data))
            if len(failures) >= 20:
                break
    return failures


def main() -> int:
    """Run the fuzzer; 1 when an input failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--inputs", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=0, help="first input's number")
    parser.add_argument("-j", dest="jobs", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument(
        "--keep", type=Path, default=Path(tempfile.gettempdir()), help="folder for failing inputs"
    )
    args = parser.parse_args()
    corpus = seeds()
    slices = [
        (args.seed + begin, min(2000, args.inputs - begin), corpus) for begin in range(0, args.inputs, 2000)
    ]
    begun = time.monotonic()
    failures: list[tuple[int, str, bytes]] = []
    with multiprocessing.get_context("fork").Pool(args.jobs, maxtasksperchild=10) as pool:
        for found in pool.starmap(worker, slices, chunksize=1):
            failures += found
    for number, problem, data in failures:
        path = args.keep / f"klto-fuzz-{number}"
        path.write_bytes(data)
        print(f"input {number}: {problem}: {path}")
    seconds = time.monotonic() - begun
    print(f"{args.inputs} inputs from {len(corpus)} objects, {len(failures)} failed, {seconds:.0f} s")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
