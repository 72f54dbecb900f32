"""Mutation fuzzer over real objects: ``python -m tests.fuzz.objects --inputs 200000``.

Every reader of klto.objects, and what reads objects through them for ``klto initcalls`` and ``klto ksyms``, is
let loose on damaged ELF files, bitcode files and archives. Nothing but klto's own errors may come out, no input
may take 2 s, and none more memory than ten times its size (plus what the smallest input takes). A failing
input is written to a file; its number makes it again from the same corpus.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import resource
import signal
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

from klto.errors import UsageError
from klto.kernel.initcall_tables import read_tables
from klto.kernel.initcalls import read_initcalls
from klto.kernel.ksyms import find_modules
from klto.objects.archive import Archive, leaves
from klto.objects.bitcode import Bitcode
from klto.objects.elf import SHT_NOBITS, Elf
from klto.objects.errors import MalformedObject
from klto.objects.kind import kind_of_bytes
from klto.objects.module_hash import salted
from klto.objects.nm import ElfSymbols
from klto.objects.object_file import parse_object
from klto.objects.relocations import RelocationReader
from tests.fuzz.corpus import seeds
from tests.fuzz.mutations import mutated

MOST_SECONDS = 2.0
MOST_TIMES_SIZE = 10
#: What reading takes whatever the size: an ELF file of 992 bytes with relocations took 34,205, damaged ones of
#: 5,000 bytes up to 106,521.
FLOOR_BYTES = 100_000
#: A reader that does not end is stopped, and one that asks for memory without end gets no more than this.
GIVE_UP_SECONDS = 20.0
GIVE_UP_BYTES = 2 << 30

#: Which part of the inputs is made from objects of a kind; bitcode takes more than twice as long as ELF.
_SHARES = {"elf": 0.4, "bitcode": 0.2, "archive": 0.3, "thin-archive": 0.1, "other": 0.0}

#: Inputs that a process takes from the queue at once, and failures after which it gives up.
_SLICE = 1000
_ENOUGH = 20

#: Inputs that have to be files need no disk.
MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None


class Failure(NamedTuple):
    """An input on which a reader went wrong."""

    number: int
    problem: str
    data: bytes


class TookTooLong(BaseException):
    """No reader can catch this."""


def read_everything(data: bytes) -> None:
    """All that the readers offer of one input, whatever it says it is."""
    obj = parse_object(data, "fuzzed")
    calls: list[Callable[[], object]] = [lambda: obj.target, lambda: obj.producer, obj.symbols]
    if obj.elf is not None:
        calls += _of_elf(obj.elf, data)
    if obj.bitcode is not None:
        calls += _of_bitcode(obj.bitcode, data)
    if obj.archive is not None:
        calls += [lambda: _leaves(data)]
    for call in calls:
        try:
            call()
        except MalformedObject:
            continue
    _as_file(data, linked=obj.elf is not None)


def _of_elf(elf: Elf, data: bytes) -> list[Callable[[], object]]:
    return [
        lambda: elf.section_names,
        lambda: [(table.names, table.section, table.by_name) for table in elf.symbol_tables],
        lambda: list(elf.notes()),
        lambda: RelocationReader(elf).all,
        lambda: [RelocationReader(elf).relr(index) for index in RelocationReader(elf).relr_indexes],
        lambda: list(ElfSymbols(data, "fuzzed").matching(b"")),
        lambda: _contents(elf),
    ]


def _of_bitcode(bitcode: Bitcode, data: bytes) -> list[Callable[[], object]]:
    return [
        lambda: [module.properties for module in bitcode.modules],
        lambda: [symbol for module in bitcode.modules for symbol in module.symbols()],
        bitcode.includes,
        bitcode.names_in_inline_asm,
        bitcode.asm_labels,
        lambda: salted(data, "fuzzed", b"salt"),
        lambda: _blobs(bitcode),
    ]


def _contents(elf: Elf) -> None:
    """A section's content is as long as its header says, so none of it lies behind the file."""
    for index, row in enumerate(elf.sections):
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


def _as_file(data: bytes, *, linked: bool) -> None:
    """What takes files: ``klto initcalls``, and of ELF ``klto ksyms needed`` and vmlinux's initcall tables."""
    with tempfile.NamedTemporaryFile(dir=MEMORY) as file:
        file.write(data)
        file.flush()
        calls: list[Callable[[], object]] = [lambda: read_initcalls([file.name])]
        if linked:
            path = Path(file.name)
            calls += [lambda: find_modules([path]), lambda: read_tables(path)]
        for call in calls:
            try:
                call()
            except UsageError:
                continue


def check(data: bytes) -> str | None:
    """What is wrong with how an input was read; None when nothing is. Needs tracemalloc to be started."""
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    begun = time.process_time()
    signal.setitimer(signal.ITIMER_PROF, GIVE_UP_SECONDS)
    try:
        read_everything(data)
    except MalformedObject:
        pass
    except TookTooLong:
        return f"did not end within {GIVE_UP_SECONDS:g} s"
    except Exception as error:  # noqa: BLE001  what the fuzzer is looking for
        return f"{type(error).__name__}: {error}"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    seconds = time.process_time() - begun
    peak = tracemalloc.get_traced_memory()[1] - before
    if seconds > MOST_SECONDS:
        return f"took {seconds:.1f} s"
    if peak > MOST_TIMES_SIZE * len(data) + FLOOR_BYTES:
        return f"took {peak} bytes for {len(data)}"
    return None


def _too_long(number: int, frame: object) -> None:
    raise TookTooLong


def worker(inputs: range, corpus: list[bytes]) -> list[Failure]:
    """Try the inputs of these numbers; the failures, at most so many that it is clear."""
    _prepare(corpus)
    failures = []
    kinds = [kind_of_bytes(data) for data in corpus]
    weights = [_SHARES[kind] / kinds.count(kind) for kind in kinds]
    for number in inputs:
        rng = random.Random(number)
        (data,) = rng.choices(corpus, weights)
        # The first inputs are the objects as they are.
        data = corpus[number] if number < len(corpus) else mutated(data, corpus, rng)
        # Python's own caches fill now and then in the middle of an input: what is real is there the next time, too.
        if check(data) and (problem := check(data)):
            failures.append(Failure(number, problem, data))
            if len(failures) >= _ENOUGH:
                break
    return failures


def _prepare(corpus: list[bytes]) -> None:
    """Once a process: limits; then each object as it is, so that what is imported late counts for no input."""
    if not tracemalloc.is_tracing():
        signal.signal(signal.SIGPROF, _too_long)
        tracemalloc.start()
        for data in corpus:
            check(data)


def _limit_memory() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (GIVE_UP_BYTES, GIVE_UP_BYTES))


def fuzz(corpus: list[bytes], inputs: range, jobs: int) -> Iterator[Failure]:
    """Try inputs on several processors; failures as they come."""
    slices = [inputs[begin : begin + _SLICE] for begin in range(0, len(inputs), _SLICE)]
    with multiprocessing.get_context("fork").Pool(jobs, _limit_memory) as pool:
        for failures in pool.imap_unordered(partial(worker, corpus=corpus), slices):
            yield from failures


def keep(failure: Failure, folder: Path) -> str:
    """Write a failing input to a file; one line about it."""
    path = folder / f"klto-fuzz-{failure.number}"
    path.write_bytes(failure.data)
    return f"input {failure.number}: {failure.problem}: {path}"


def main() -> int:
    """Run the fuzzer; 1 when an input failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--inputs", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=0, help="first input's number")
    parser.add_argument("-j", dest="jobs", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument(
        "--kernel", action="append", default=[], type=Path, help="build dir with more to damage"
    )
    parser.add_argument(
        "--keep", type=Path, default=Path(tempfile.gettempdir()), help="folder for failing inputs"
    )
    args = parser.parse_args()
    corpus = seeds(kernels=args.kernel)
    begun = time.monotonic()
    failed = 0
    for failure in fuzz(corpus, range(args.seed, args.seed + args.inputs), args.jobs):
        print(keep(failure, args.keep), flush=True)
        failed += 1
    seconds = time.monotonic() - begun
    print(f"{args.inputs} inputs from {len(corpus)} objects, {failed} failed, {seconds:.0f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
