"""``klto plan``'s predictions, held against links of whole kernels; and how they are calibrated.

``python -m bench plan`` predicts and measures the test kernels, ``python -m bench.plan DIR...`` any build dirs.
``python -m bench.plan calibrate DIR...`` measures links of other build dirs, of all their modules and of parts of
them, and writes src/klto/link/calibration.json. configs/calibration.config says which build dirs.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import msgspec

from bench.pairs import first_line
from klto import process
from klto.files import user_cache_dir
from klto.kernel.kconfig import lto_of, read_config
from klto.kernel.saved_link import link_inputs, saved_link
from klto.link.imports import link_options
from klto.link.memory import kernel_key
from klto.link.memory_model import CALIBRATION, MemoryModel
from klto.link.reference import measure_reference
from klto.objects.archive import leaves, read_archive
from klto.objects.elf import Elf
from klto.objects.source import read_whole
from klto.report.estimate import Calibration, Estimate, Subject, estimate, load_calibration
from klto.report.plan import look_at
from klto.units import size

CLANG, LINKER = "/usr/lib/llvm-19/bin/clang", "/usr/lib/llvm-19/bin/ld.lld"
TEST_KERNELS = ("x86_64-6.12", "arm64-6.12", "x86_64-6.1", "x86_64-6.12-full", "x86_64-6.12-defconfig")
#: What is linked of the calibrating builds, and by how many backends; 0: everything from the cache.
THIN_PARTS = ((1.0, 2), (1.0, 0), (0.5, 4), (0.5, 1), (0.25, 2), (0.25, 0))
FULL_PARTS = ((1.0, 1), (0.5, 1), (0.25, 1))
#: elf(5).
_STT_FUNC = 2
#: Bytes for each byte of an input without bitcode: itself and the output. Not fitted: they are few.
PER_NATIVE = 2.0


@dataclass(frozen=True)
class Measured:
    """One link. ``jobs`` is 0 when everything came from the cache; ``reference``: CPU seconds of the reference link
    just before; ``left``: functions in vmlinux.o for each in the modules' summaries."""

    name: str
    subject: Subject
    mode: str
    jobs: int
    wall: float
    cpu: float
    peak: int
    vmlinux_o: int
    objtool_peak: int | None
    reference: float
    left: float

    @property
    def bitcode(self) -> int:
        """Bytes."""
        return sum(self.subject.modules)


def measure(build: Path, share: float, jobs: int, reference: float) -> Measured:
    """Link a share of a build dir's modules as Kbuild does, and run objtool over the result if Kbuild does."""
    members = [m for archive in link_inputs(build) for m in leaves(read_archive(archive))]
    wanted = members[:: round(1 / share)]
    seen = [look_at(m) for m in wanted if m.path is not None]
    subject = Subject(
        tuple(each.size for each in seen if each.kind == "bitcode"),
        sum(each.size for each in seen if each.kind == "elf"),
        sum(each.instructions for each in seen),
        kernel_of(build),
        patchable=sum(each.patchable for each in seen),
    )
    with tempfile.TemporaryDirectory(dir=user_cache_dir()) as folder:
        listing, out = Path(folder, "members"), Path(folder, "vmlinux.o")
        listing.write_text("\n".join(f'"{Path(m.path or "").absolute()}"' for m in wanted))
        options = link_options(saved_link(build)[1:])
        cache = [f"--thinlto-cache-dir={folder}/cache"] if jobs == 0 else []
        parallel = [f"--threads={jobs or 2}", f"--thinlto-jobs={jobs or 2}"]
        inputs = ["--whole-archive", f"@{listing}", "--no-whole-archive"]
        argv: list[process.Arg] = [LINKER, *options, "-r", "-o", out, *inputs, *parallel, *cache]
        if cache:
            process.run(argv, cwd=build)
        used = process.run(argv, cwd=build).usage
        length = out.stat().st_size
        left = _functions(out) / max(1, sum(each.functions for each in seen))
        checked = _objtool(build, out) if jobs else None
    found = used.wall_seconds, used.cpu_seconds, used.peak_bytes, length, checked, reference, left
    return Measured(build.name, subject, lto_of(build / ".config"), jobs, *found)


def _objtool(build: Path, out: Path) -> int | None:
    saved = (build / ".vmlinux.o.cmd").read_text().splitlines()[0].partition(";")[2].strip()
    if not saved:
        return None
    words = [str(out) if word == "vmlinux.o" else word for word in saved.split(";")[0].split()]
    return process.run(words, cwd=build).usage.peak_bytes


def _functions(path: Path) -> int:
    """Functions of compiled code that an object defines: each is in a section of its own (LTO implies
    -ffunction-sections), with whatever else kCFI names there."""
    table = Elf(read_whole(path), str(path)).symtab
    if table is None:
        return 0
    sections = table.section[table.table["st_info"] & 15 == _STT_FUNC]
    return len(set(sections.tolist()) - {0, -1})


#: Sections in link order of the synthetic links; the least of them is as many as a small distribution kernel has.
ORDERED = (20_000, 40_000)


def link_order_per_pair(reference: float) -> float:
    """What ``ld.lld -r`` takes for each two sections with SHF_LINK_ORDER of one name, in reference links of CPU."""
    found = []
    with tempfile.TemporaryDirectory(dir=user_cache_dir()) as folder:
        for count in ORDERED:
            seconds = {}
            for flags in ("ao", "a"):
                source, made = Path(folder, "f.s"), Path(folder, "f.o")
                with source.open("w") as out:
                    for n in range(count):
                        out.write(f'.section .text.f{n},"ax",@progbits\nf{n}: ret\n')
                        order = f",.text.f{n}" if flags == "ao" else ""
                        out.write(
                            f'.section __patchable_function_entries,"{flags}",@progbits{order}\n.quad 0\n'
                        )
                process.run([CLANG, "-c", source, "-o", made])
                seconds[flags] = process.run([LINKER, "-r", made, "-o", Path(folder, "o")]).usage.cpu_seconds
            found.append((seconds["ao"] - seconds["a"]) / (count**2 / 2) / reference)
            print(f"{count} sections in link order: {seconds['ao']:.1f} s, in one: {seconds['a']:.1f} s")
    return statistics.fmean(found)


def kernel_of(build: Path) -> str:
    """Which kernel it is, from its .config, whose third line is ``# Linux/x86 6.12.117 Kernel Configuration``."""
    _, kernel, version = (build / ".config").read_text().splitlines()[2].split()[:3]
    arch = kernel.partition("/")[2].replace("x86", "x86_64")
    return kernel_key(version, arch, read_config(build / ".config").get("DEBUG_INFO") == "y")


def predict(link: Measured, calibration: Calibration) -> Estimate:
    """What klto plan would have said, on a machine that has linked nothing yet."""
    return estimate(link.mode, link.jobs, link.subject, link.reference, calibration, measured=None)


def calibrate(builds: list[Path]) -> None:
    """Measure and fit; prints every link."""
    links = []
    for build in builds:
        reference = measure_reference(CLANG, LINKER)
        print(f"reference link {reference:.2f} s of CPU")
        for share, jobs in THIN_PARTS if lto_of(build / ".config") == "thin" else FULL_PARTS:
            links.append(measure(build, share, jobs, reference))
            print_link(links[-1])
    if any(m.subject.patchable for m in links):
        sys.exit(
            "functions are patchable in one of these builds: their ordering would be taken for code generation"
        )
    by_mode = {mode: [m for m in links if m.mode == mode and m.jobs] for mode in ("thin", "full")}
    cached = [m for m in links if not m.jobs]
    versions = sorted({_version(m) for m in links if m.objtool_peak is not None})
    objtool = {each: _fit_objtool([m for m in links if _version(m) == each]) for each in versions}
    # Versions that are not among these builds stay as they were measured.
    before = json.loads(Path(CALIBRATION).read_text())["memory"]["objtool"]
    memory = _fit(links) | {"objtool": before | objtool}
    model = MemoryModel(memory)
    cpu = {mode: statistics.median(_cpu(m) for m in of) for mode, of in by_mode.items()}
    found = Calibration(
        on="; ".join(
            [
                *map(_describe, builds),
                *(
                    f"objtool of {each} on an earlier kernel"
                    for each in sorted(before.keys() - objtool.keys())
                ),
                "whole and in parts",
                first_line(LINKER, "--version"),
            ]
        ),
        cpu_per_instruction=cpu,
        serial_per_instruction=statistics.median(_cpu(m) for m in cached),
        link_order_per_pair=link_order_per_pair(links[0].reference),
        functions_left={k: max(of, key=lambda m: m.bitcode).left for k, of in by_mode.items()},
        instructions_per_byte=statistics.fmean((m.subject.instructions or 0) / m.bitcode for m in links),
        memory_error={k: max(abs(_expected(model, m) / m.peak - 1) for m in of) for k, of in by_mode.items()},
        cpu_error={k: max(abs(cpu[k] / _cpu(m) - 1) for m in of) for k, of in by_mode.items()},
        vmlinux_o_per_byte={
            k: statistics.fmean(m.vmlinux_o / m.bitcode for m in of) for k, of in by_mode.items()
        },
        disk_per_byte=statistics.fmean(_disk(b) / (b / "vmlinux.o").stat().st_size for b in builds),
    )
    written = {**msgspec.to_builtins(found), "memory": memory}
    Path(CALIBRATION).write_text(json.dumps(written, indent=2) + "\n")
    print(Path(CALIBRATION).read_text())


def _cpu(link: Measured) -> float:
    """Reference links for each instruction."""
    return link.cpu / (link.subject.instructions or 0) / link.reference


def _version(link: Measured) -> str:
    return link.subject.kernel.split()[0]


def _expected(model: MemoryModel, link: Measured) -> float:
    subject = link.subject
    return model.link(subject.modules, subject.native_bytes, full=link.mode == "full", jobs=link.jobs)


def _describe(build: Path) -> str:
    """``Linux/x86 6.12.117, full LTO, 993 objects``, the kernel as the third line of its .config names it."""
    kernel = (build / ".config").read_text().splitlines()[2].strip("# ").removesuffix(" Kernel Configuration")
    count = sum(1 for archive in link_inputs(build) for _ in leaves(read_archive(archive)))
    return f"{kernel}, {lto_of(build / '.config')} LTO, {count} objects"


def _disk(build: Path) -> int:
    """vmlinux.o, vmlinux and what scripts/link-vmlinux.sh leaves beside them."""
    return sum(p.stat().st_size for p in build.iterdir() if p.is_file() and "vmlinux" in p.name)


def _fit_objtool(links: list[Measured]) -> list[float]:
    import numpy as np  # Late: a child's peak is never less than its parent's (klto.process).

    sizes = [m.bitcode for m in links if m.objtool_peak]
    slope, base = np.polyfit(sizes, [m.objtool_peak for m in links if m.objtool_peak], 1)
    return [max(0.0, float(base)), float(slope)]


def _fit(links: list[Measured]) -> dict[str, float]:
    """Least squares of the relative error over all links at once, with no negative coefficient."""
    import numpy as np

    names = ("base", "per_bitcode", "pool", "per_backend", "per_full")
    rows = []
    for m in links:
        thin, at_work = m.mode == "thin", m.mode == "thin" and m.jobs > 0
        at_once = sum(sorted(m.subject.modules, reverse=True)[: m.jobs])
        rows.append([1, m.bitcode * thin, at_work, at_once * at_work, m.bitcode * (not thin)])
    matrix = np.array(rows, float)
    wanted = np.array([m.peak - PER_NATIVE * m.subject.native_bytes for m in links], float)
    peaks = np.array([m.peak for m in links], float)
    used = list(range(len(names)))
    while True:
        solution, *_ = np.linalg.lstsq(matrix[:, used] / peaks[:, None], wanted / peaks, rcond=None)
        if (solution >= 0).all():
            break
        used.pop(int(np.argmin(solution)))
    found = dict.fromkeys(names, 0.0) | {names[i]: float(x) for i, x in zip(used, solution, strict=True)}
    return {**found, "per_native": PER_NATIVE}


def print_link(m: Measured) -> None:
    """One line for a link."""
    checked = size(m.objtool_peak) if m.objtool_peak else "-"
    print(
        f"{m.name:<22} {m.mode} {len(m.subject.modules):5} modules {size(m.bitcode):>8} -j{m.jobs} "
        f"{m.wall:6.1f} s wall {m.cpu:6.1f} s CPU, peak {size(m.peak):>8}, vmlinux.o {size(m.vmlinux_o):>8}, "
        f"objtool {checked}",
        flush=True,
    )


def print_row(m: Measured, found: Estimate) -> None:
    """Predicted against measured, as docs/reports.md has it."""
    what = f"| {m.name}, {len(m.subject.modules)} modules, {m.mode}"
    memory = f"{size(found.link.middle)} | {size(m.peak)} | {_off(found.link.middle, m.peak)}"
    cpu = (
        f"{found.cpu.middle / m.reference:.1f} | {m.cpu / m.reference:.1f} | {_off(found.cpu.middle, m.cpu)}"
    )
    wall = f"{found.seconds.middle / m.reference:.1f} | {m.wall / m.reference:.1f} | "
    print(f"{what} | link's memory | {memory} |")
    print(f"{what} | link's CPU time, reference links | {cpu} |")
    print(f"{what} | link, {m.jobs} backends, reference links | {wall}{_off(found.seconds.middle, m.wall)} |")
    if m.objtool_peak and found.finish:
        objtool = f"{size(found.finish.middle)} | {size(m.objtool_peak)} | "
        print(f"{what} | objtool's memory | {objtool}{_off(found.finish.middle, m.objtool_peak)} |")
    sys.stdout.flush()


def _off(predicted: float, measured: float) -> str:
    return f"{100 * (predicted / measured - 1):+.0f} %"


def main(builds: list[Path] | None = None) -> None:
    """Predicted against measured, on kernels that took no part in the calibration."""
    calibration = load_calibration()
    print(f"calibrated on {calibration.on}")
    for build in builds or [user_cache_dir() / "test" / name for name in TEST_KERNELS]:
        if not (build / "vmlinux.a").exists():
            print(f"{build.name}: not built (make test-real and make soak build it)")
            continue
        found = measure(
            build, 1.0, 1 if lto_of(build / ".config") == "full" else 2, measure_reference(CLANG, LINKER)
        )
        print_link(found)
        print_row(found, predict(found, calibration))


if __name__ == "__main__":
    if sys.argv[1:2] == ["calibrate"]:
        calibrate([Path(name) for name in sys.argv[2:]])
    else:
        main([Path(name) for name in sys.argv[1:]])
