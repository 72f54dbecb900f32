"""``klto compare``, ``report`` and ``plan`` on real kernels, against llvm-size, bloat-o-meter and the linker."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from klto.kernel.saved_link import link_inputs, saved_link
from klto.link.imports import link_options, read_imports
from klto.objects.archive import leaves, read_archive
from klto.report.image import Image
from tests.browser import opened_browser
from tests.real.conftest import Kernel, run_klto

pytestmark = pytest.mark.real

_LINKER = "/usr/lib/llvm-19/bin/ld.lld"


def _output(*argv: str | Path, cwd: Path | None = None) -> str:
    return subprocess.run(argv, cwd=cwd, capture_output=True, text=True, check=True).stdout


def _bloat_o_meter(tree: Path, first: Path, second: Path) -> tuple[list[int], list[int]]:
    """(add, remove, grow, shrink, up, down, net), (before, after)."""
    lines = _output(sys.executable, tree / "scripts/bloat-o-meter", first, second).splitlines()
    return [int(n) for n in re.findall(r"-?\d+", lines[0])], [
        int(n) for n in re.findall(r"=(\d+)", lines[-1])
    ]


def _built_by_klto(*kernels: Kernel) -> None:
    """Other tests let plain make build in these folders: the records must be of what is there."""
    for kernel in kernels:
        assert kernel.klto("build", *kernel.options).status == 0


def test_totals_are_those_of_llvm_size_and_bloat_o_meter(
    x86_64_6_12: Kernel, x86_64_6_12_full: Kernel
) -> None:
    _built_by_klto(x86_64_6_12, x86_64_6_12_full)
    thin, full = x86_64_6_12.build_dir / "vmlinux", x86_64_6_12_full.build_dir / "vmlinux"
    done = run_klto("compare", "--json", x86_64_6_12.build_dir, x86_64_6_12_full.build_dir)
    found = json.loads(done.out)
    figures = {row["name"]: row["values"] for row in found["figures"]}
    for index, image in enumerate((thin, full)):
        words = _output("llvm-size-19", image).splitlines()[1].split()
        assert [figures[name][index] for name in ("text", "data", "bss")] == [int(word) for word in words[:3]]
        listed: dict[str, int] = {}
        for line in _output("llvm-size-19", "-A", image).splitlines()[2:]:
            name, *rest = line.split() or [""]
            if rest and name != "Total":
                listed[name] = listed.get(name, 0) + int(rest[0])
        assert {
            row["name"]: row["values"][index] for row in found["sections"] if row["name"] in listed
        } == listed
    symbols = found["pairs"][0]["symbols"]
    changes, totals = _bloat_o_meter(x86_64_6_12.tree, thin, full)
    assert [symbols["before"], symbols["after"]] == totals
    assert symbols["up"] + symbols["down"] == changes[6] == totals[1] - totals[0]
    # Names that ThinLTO promoted are no longer new and gone, as they are to bloat-o-meter's rule.
    kinds = [change["change"] for change in symbols["changes"]]
    assert kinds.count("new") < 50 < changes[0]
    assert not [c for c in symbols["changes"] if ".llvm." in c["name"]]
    assert kinds.count("inlined") > 50
    assert kinds.count("removed") == 0
    assert figures["functions imported"][0] > 500
    assert figures["functions imported"][1] is None


def test_planted_function_is_found_in_a_kernel(x86_64_6_12: Kernel, tmp_path: Path) -> None:
    source, planted = tmp_path / "planted.s", tmp_path / "planted.o"
    source.write_text(
        ".text\n.globl klto_planted\n.type klto_planted,@function\nklto_planted: .skip 4096, 0x90\n"
        ".size klto_planted, . - klto_planted\n"
    )
    _output("clang-19", "--target=x86_64-linux-gnu", "-c", source, "-o", planted)
    kernel = x86_64_6_12.build_dir / "vmlinux.o"
    images = []
    for name, objects in (("before.o", [kernel]), ("after.o", [kernel, planted])):
        images.append(tmp_path / name)
        _output(_LINKER, "-r", "-o", images[-1], *objects)
    symbols = json.loads(run_klto("compare", "--json", *images).out)["pairs"][0]["symbols"]
    assert [(c["name"], c["after"] - c["before"], c["change"]) for c in symbols["changes"]] == [
        ("klto_planted", 4096, "new")
    ]


def _functions_by_llvm(index: Path, build: Path, importer: str) -> dict[str, tuple[int, int]]:
    """Functions and instructions by module in an index file, from llvm-bcanalyzer's dump; not the importer's own."""
    modules: dict[int, str] = {}
    found: dict[str, tuple[int, int]] = {}
    for line in _output("llvm-bcanalyzer-19", "--dump", index).splitlines():
        ops = [int(op) for op in re.findall(r"op\d+=(-?\d+)", line)]
        if line.lstrip().startswith("<ENTRY "):
            modules[ops[0]] = str(Path(bytes(ops[1:]).decode()).relative_to(build))
        elif line.lstrip().startswith("<COMBINED_PROFILE ") and modules[ops[1]] != importer:
            functions, instructions = found.get(modules[ops[1]], (0, 0))
            found[modules[ops[1]]] = (functions + 1, instructions + ops[3])
    return found


def test_imports_are_those_that_the_linker_lists(x86_64_6_12: Kernel, tmp_path: Path) -> None:
    """Against lld's own ``.imports`` files, which name modules and count nothing."""
    build = x86_64_6_12.build_dir
    members = [m.path for archive in link_inputs(build) for m in leaves(read_archive(archive)) if m.path]
    for member in members:
        (tmp_path / member).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / Path(member).relative_to(build)).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "members").write_text("\n".join(members))
    options = link_options(saved_link(build)[1:])
    inputs = ["--whole-archive", f"@{tmp_path}/members"]
    prefix = f"--thinlto-prefix-replace={build};{tmp_path}"
    thin = ["--thinlto-index-only", "--thinlto-emit-imports-files", prefix]
    _output(_LINKER, *options, "-o", tmp_path / "o", *inputs, *thin, cwd=build)
    listed = {
        (str(path.relative_to(tmp_path).with_suffix("")), str(Path(line).relative_to(build)))
        for path in tmp_path.rglob("*.imports")
        for line in path.read_text().split()
    }
    found = read_imports(build, _LINKER)
    # The files also list modules of which only variables are imported: kmalloc_caches, __cpu_online_mask.
    assert {(edge.importer, edge.source) for edge in found} <= listed
    for importer in sorted({edge.importer for edge in found})[::40]:
        counts = {
            edge.source: (edge.functions, edge.instructions) for edge in found if edge.importer == importer
        }
        assert counts == _functions_by_llvm(tmp_path / f"{importer}.thinlto.bc", build, importer)
    # A function that is imported from elsewhere and local there got a name of its own.
    promoted = [s for s in Image(build / "vmlinux").symbols() if ".llvm." in s.name]
    assert len(promoted) > 100


def test_report_of_a_real_kernel(x86_64_6_12: Kernel, x86_64_6_12_full: Kernel, tmp_path: Path) -> None:
    _built_by_klto(x86_64_6_12, x86_64_6_12_full)
    out = tmp_path / "report.html"
    done = run_klto("report", x86_64_6_12_full.build_dir, x86_64_6_12.build_dir, "-o", out)
    assert (done.status, done.out) == (0, f"{out}\n")
    assert out.stat().st_size < 2_000_000
    with opened_browser() as browser:
        browser.open(out)
        assert browser.complaints() == []
        assert [url for url in browser.requests() if not url.startswith(("file:", "data:"))] == []
        assert browser.run("return klto.data.imports.length") > 500
        assert browser.run("return klto.tree.root.children.has('kernel')")
        assert browser.run("return document.querySelectorAll('#import-matrix td').length") == 144
        assert browser.accessibility_faults() == []


def test_linkers_own_phases_are_in_the_trace(
    x86_64_6_12: Kernel, copy_of: Callable[[Kernel], Kernel], tmp_path: Path
) -> None:
    kernel = copy_of(x86_64_6_12)
    (kernel.build_dir / "vmlinux.o").unlink()
    assert kernel.klto("build", *kernel.options, "-q", "--time-trace").status == 0
    out = tmp_path / "trace.json"
    assert kernel.klto("report", "-b", kernel.build_dir, "--trace", out).status == 0
    spans = [event for event in json.loads(out.read_text())["traceEvents"] if event["ph"] == "X"]
    link = next(e for e in spans if e["cat"] == "link" and e["name"] == "vmlinux.o")
    phases = [e for e in spans if e["cat"] == "linker"]
    assert {"ExecuteLinker", "LTO"} <= {e["name"] for e in phases}
    slack = 300_000  # The link is journaled a moment after it began.
    assert all(
        link["ts"] - slack <= e["ts"] and e["ts"] + e["dur"] <= link["ts"] + link["dur"] + slack
        for e in phases
    )
    record = json.loads((kernel.build_dir / ".klto/record.json").read_text())
    assert record["memory"]
    assert record["sizes"]["objects"]
