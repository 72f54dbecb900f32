"""``klto plan``'s predictions, held against links of the test kernels; and how they are calibrated.

``python -m bench plan`` predicts and measures. ``python -m bench.plan calibrate DIR... `` measures links of other
build dirs, of all their modules and of parts of them, and writes src/klto/report/calibration.json.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from bench.pairs import first_line
from klto import process
from klto.files import user_cache_dir
from klto.kernel.kconfig import lto_of
from klto.link.imports import link_options
from klto.link.reference import measure_reference
from klto.link.saved import link_inputs, saved_link
from klto.objects.archive import leaves, read_archive
from klto.report.estimate import AfterLink, Calibration, Coefficients, Objtool, estimate, load_calibration
from klto.report.units import size

CLANG, LINKER = "/usr/lib/llvm-19/bin/clang", "/usr/lib/llvm-19/bin/ld.lld"
TEST_KERNELS = ("x86_64-6.12", "arm64-6.12", "x86_64-6.1", "x86_64-6.12-full")
#: What is linked of the calibrating builds, and by how many backends.
THIN_PARTS = ((1.0, 2), (0.5, 2), (0.25, 2), (0.5, 1))
FULL_PARTS = ((0.25, 1), (0.125, 1))
OUTPUT = Path(__file__).parent.parent / "src/klto/report/calibration.json"


@dataclass(frozen=True)
class Measured:
    """One link."""

    version: str
    mode: str
    jobs: int
    modules: tuple[int, ...]
    wall: float
    cpu: float
    peak: int
    vmlinux_o: int
    objtool_peak: int | None


def measure(build: Path, share: float, jobs: int) -> Measured:
    """Link a share of a build dir's modules as Kbuild does, and run objtool over the result if Kbuild does."""
    members = [m for archive in link_inputs(build) for m in leaves(read_archive(archive))]
    wanted = members[:: round(1 / share)]
    bitcode = tuple(
        Path(m.path).stat().st_size for m in wanted if m.path is not None and m.kind() == "bitcode"
    )
    with tempfile.TemporaryDirectory(dir=user_cache_dir()) as folder:
        listing, out = Path(folder, "members"), Path(folder, "vmlinux.o")
        listing.write_text("\n".join(f'"{Path(m.path or "").absolute()}"' for m in wanted))
        options = link_options(saved_link(build)[1:])
        argv: list[process.Arg] = [
            LINKER,
            *options,
            "-r",
            "-o",
            out,
            "--whole-archive",
            f"@{listing}",
            "--no-whole-archive",
        ]
        used = process.run([*argv, f"--threads={jobs}", f"--thinlto-jobs={jobs}"], cwd=build).usage
        length = out.stat().st_size
        checked = _objtool(build, out)
    return Measured(
        version_of(build),
        lto_of(build / ".config"),
        jobs,
        bitcode,
        used.wall_seconds,
        used.cpu_seconds,
        used.peak_bytes,
        length,
        checked,
    )


def _objtool(build: Path, out: Path) -> int | None:
    saved = (build / ".vmlinux.o.cmd").read_text().splitlines()[0].partition(";")[2].strip()
    if not saved:
        return None
    words = [str(out) if word == "vmlinux.o" else word for word in saved.split(";")[0].split()]
    return process.run(words, cwd=build).usage.peak_bytes


def calibrate(builds: list[Path]) -> None:
    """Measure and fit; prints every link."""
    reference = measure_reference(CLANG, LINKER)
    print(f"reference link {reference:.2f} s of CPU")
    links = []
    for build in builds:
        for share, jobs in THIN_PARTS if lto_of(build / ".config") == "thin" else FULL_PARTS:
            links.append(measure(build, share, jobs))
            _print(build.name, links[-1])
    modes = {mode: _fit([m for m in links if m.mode == mode], reference) for mode in ("thin", "full")}
    versions = {m.version for m in links if m.objtool_peak is not None}
    per = {mode: _mean([m.vmlinux_o / sum(m.modules) for m in links if m.mode == mode]) for mode in modes}
    on = [_describe(b) for b in builds]
    found = Calibration(
        on=f"{'; '.join(on)}; whole or in parts; {first_line(LINKER, '--version')}",
        modes=modes,
        after=AfterLink(
            vmlinux_o_per_byte=per,
            objtool={name: _fit_objtool([m for m in links if m.version == name]) for name in versions},
            disk_per_byte=_mean([_disk(b) / (b / "vmlinux.o").stat().st_size for b in builds]),
            cache_per_byte=per["thin"],
        ),
    )
    OUTPUT.write_bytes(msgspec.json.format(msgspec.json.encode(found), indent=2) + b"\n")
    print(OUTPUT.read_text())


def _describe(build: Path) -> str:
    """``Linux/x86 6.12.117, full LTO, 993 objects``, the kernel as the third line of its .config names it."""
    kernel = (build / ".config").read_text().splitlines()[2].strip("# ").removesuffix(" Kernel Configuration")
    count = sum(1 for archive in link_inputs(build) for _ in leaves(read_archive(archive)))
    return f"{kernel}, {lto_of(build / '.config')} LTO, {count} objects"


def _disk(build: Path) -> int:
    """vmlinux.o, vmlinux and what scripts/link-vmlinux.sh leaves beside them."""
    return sum(p.stat().st_size for p in build.iterdir() if p.is_file() and "vmlinux" in p.name)


def _fit_objtool(links: list[Measured]) -> Objtool:
    lengths = [m.vmlinux_o for m in links if m.objtool_peak]
    slope, base = np.polyfit(lengths, [m.objtool_peak for m in links if m.objtool_peak], 1)
    return Objtool(base=max(0.0, float(base)), per_byte=float(slope))


def version_of(build: Path) -> str:
    """``6.12``, from the third line of the .config."""
    return ".".join((build / ".config").read_text().splitlines()[2].split()[2].split(".")[:2])


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _fit(links: list[Measured], reference: float) -> Coefficients:
    """Least squares of the relative error, with no negative coefficient."""
    totals = np.array([sum(m.modules) for m in links], float)
    peaks = np.array([m.peak for m in links], float)
    at_once = np.array([sum(sorted(m.modules)[-m.jobs :]) if m.mode == "thin" else 0 for m in links], float)
    columns = [np.ones(len(links)), totals, at_once]
    used = [0, 1, 2] if links[0].mode == "thin" else [0, 1]
    while True:
        matrix = np.column_stack([columns[i] for i in used]) / peaks[:, None]
        solution, *_ = np.linalg.lstsq(matrix, np.ones(len(links)), rcond=None)
        if (solution >= 0).all() or len(used) == 1:
            break
        used.pop(int(np.argmin(solution)))
    memory = dict.fromkeys((0, 1, 2), 0.0) | dict(zip(used, solution.tolist(), strict=True))
    predicted = sum(memory[i] * columns[i] for i in (0, 1, 2))
    cpu = np.array([m.cpu for m in links]) / totals / reference
    return Coefficients(
        base=memory[0],
        per_byte=memory[1],
        per_backend_byte=memory[2],
        cpu_per_byte=float(np.median(cpu)),
        memory_error=float(np.max(np.abs(predicted / peaks - 1))),
        cpu_error=float(np.max(np.abs(np.median(cpu) / cpu - 1))),
    )


def _print(name: str, m: Measured) -> None:
    checked = size(m.objtool_peak) if m.objtool_peak else "-"
    print(
        f"{name:<18} {m.mode} {len(m.modules):5} modules {size(sum(m.modules)):>8} -j{m.jobs} "
        f"{m.wall:6.1f} s wall {m.cpu:6.1f} s CPU, peak {size(m.peak):>8}, vmlinux.o {size(m.vmlinux_o):>8}, "
        f"objtool {checked}",
        flush=True,
    )


def main() -> None:
    """Predicted against measured, on kernels that took no part in the calibration."""
    calibration = load_calibration()
    reference = measure_reference(CLANG, LINKER)
    print(f"reference link {reference:.2f} s of CPU; calibrated on {calibration.on}")
    for name in TEST_KERNELS:
        build = user_cache_dir() / "test" / name
        if not (build / "vmlinux.a").exists():
            print(f"{name}: not built (make test-real builds it)")
            continue
        measured = measure(build, 1.0, 2)
        _print(name, measured)
        found = estimate(
            measured.mode,
            2,
            measured.modules,
            reference,
            calibration,
            objtool=measured.version if measured.objtool_peak else None,
        )
        cpu = calibration.modes[measured.mode].cpu_per_byte * sum(measured.modules) * reference
        memory = f"memory {100 * (found.link.middle / measured.peak - 1):+.0f}%"
        if measured.objtool_peak and found.objtool:
            memory += f", objtool {100 * (found.objtool.middle / measured.objtool_peak - 1):+.0f}%"
        print(f"{'':<18} predicted: {memory}, CPU time {100 * (cpu / measured.cpu - 1):+.0f}%", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["calibrate"]:
        calibrate([Path(name) for name in sys.argv[2:]])
    else:
        main()
