"""Panics of real kernels, made by LKDTM in QEMU, decoded; against what llvm-symbolizer says of the same addresses."""

from __future__ import annotations

import json
import re
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from klto.kernel.toolchain import find_toolchain
from tests.real.conftest import Kernel
from tests.real.provoke import provoke, request

pytestmark = pytest.mark.real

#: LKDTM's crash, and the function at whose instruction it happens; None when that is in no function.
CRASHES = {
    "PANIC": None,
    "BUG": "lkdtm_BUG",
    "WARNING": "lkdtm_WARNING",
    "WARNING_MESSAGE": "lkdtm_WARNING_MESSAGE",
    "EXCEPTION": "lkdtm_EXCEPTION",
    "ACCESS_NULL": "lkdtm_ACCESS_NULL",
    "WRITE_RO": "lkdtm_WRITE_RO",
    "WRITE_KERN": None,
    "EXEC_NULL": None,
    "EXEC_DATA": None,
    "EXEC_RODATA": None,
    "CFI_FORWARD_PROTO": "lkdtm_indirect_call",
}


class Oracle:
    """llvm-symbolizer itself, given addresses that llvm-nm has of the functions of a log."""

    def __init__(self, kernel: Kernel, scratch: Path) -> None:
        found = find_toolchain(None, kernel.build_dir, None)
        self.folder = found.bin_dir
        # A module has no addresses of its own. Linked it has; klto does that in another way.
        module, linked = kernel.build_dir / "drivers/misc/lkdtm/lkdtm.ko", scratch / "lkdtm.linked"
        options = ("-e", "0", "--unresolved-symbols=ignore-all", "--noinhibit-exec")
        subprocess.run([found.ld_lld, *options, module, "-o", linked], capture_output=True, check=True)
        self.files = {"": kernel.build_dir / "vmlinux", "lkdtm": linked}
        self.known: dict[tuple[str, int], list[tuple[str, str, int]]] = {}
        self.symbols = {module: self._symbols(file) for module, file in self.files.items()}

    def _run(self, tool: str, *arguments: str | Path) -> str:
        return subprocess.run(
            [self.folder / tool, *arguments], capture_output=True, text=True, check=True
        ).stdout

    def _symbols(self, file: Path) -> dict[str, set[int]]:
        table: dict[str, set[int]] = {}
        for line in self._run("llvm-nm", "--defined-only", file).splitlines():
            value, _, name = line.split()
            table.setdefault(name.partition(".llvm.")[0], set()).add(int(value, 16))
        return table

    def address(self, module: str, symbol: str) -> int | None:
        """The address of a function whose name is there once."""
        found = self.symbols[module].get(symbol, set())
        return next(iter(found)) if len(found) == 1 else None

    def lines(self, module: str, address: int) -> list[tuple[str, str, int]]:
        """Function, file and line, innermost first: llvm-symbolizer's plain output."""
        if (module, address) not in self.known:
            self.known[module, address] = self._lines(module, address)
        return self.known[module, address]

    def _lines(self, module: str, address: int) -> list[tuple[str, str, int]]:
        text = self._run("llvm-symbolizer", f"--obj={self.files[module]}", "--no-demangle", hex(address))
        rows = [row for row in text.splitlines() if row]
        found = []
        for function, place in zip(rows[::2], rows[1::2], strict=True):
            file, line, _ = place.rsplit(":", 2)
            found.append((function.partition(".llvm.")[0], file, int(line)))
        return found


#: What LKDTM's frames and those below it look like in a log.
_NAMED = re.compile(r"([A-Za-z_]\w*)(?:\.llvm\.\d+)?\+0x([0-9a-f]+)/0x[0-9a-f]+(?: \[(\w+)\])?")


def shown(frame: dict[str, Any]) -> list[tuple[str, str, int]]:
    return [(at["function"], at["file"], at["line"]) for at in frame["locations"]]


def test_traces_are_what_llvm_symbolizer_says(
    x86_64_6_12_debug: Kernel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel, oracle = x86_64_6_12_debug, Oracle(x86_64_6_12_debug, tmp_path)
    compared = {"vmlinux": 0, "lkdtm": 0}
    inlined = 0
    for crash, culprit in CRASHES.items():
        with monkeypatch.context() as patch:
            base = replace(request(kernel, tmp_path), timeout=60.0)
            result = provoke(base, crash, tmp_path / f"{crash}.log", patch)
        done = kernel.klto("boot", "--decode", result.console_log, "-b", kernel.build_dir, "--json")
        decoded = json.loads(done.out)
        assert decoded["notes"] == [], crash
        report = decoded["reports"][0]
        frames = report["frames"]
        assert len(frames) >= 5, crash
        for frame in frames:
            named = _NAMED.search(frame["text"])
            if frame["role"] == "fault" or not named or frame["role"] == "target":
                continue
            symbol, offset, module = named[1], int(named[2], 16), named[3]
            back = frame["role"] in ("return", "maybe")
            assert frame["function"] == symbol, frame
            start = oracle.address(module or "", symbol)
            if start is None:
                continue
            assert module or frame["address"] == hex(start + offset)
            wanted = oracle.lines(module or "", start + offset - back)
            compared[module or "vmlinux"] += 1
            assert shown(frame) == wanted, (crash, frame)
            inlined += len(wanted) > 1
            if back:
                assert "call" in frame["instruction"] or "jmp" in frame["instruction"], (crash, frame)
        if culprit:
            first = next(frame for frame in frames if frame["role"] == "pc")
            assert first["function"] == culprit
            assert first["locations"][-1]["file"].endswith((".c", ".h"))
    assert compared["vmlinux"] > 60, compared
    assert compared["lkdtm"] > 20, compared
    assert inlined > 10


def test_addresses_are_told_apart(
    x86_64_6_12_debug: Kernel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = x86_64_6_12_debug
    moved = []
    for crash, role, what in (
        ("EXCEPTION", "fault", "unmapped: a null pointer"),
        ("ACCESS_NULL", "fault", "unmapped: a null pointer"),
        ("EXEC_NULL", "pc", "unmapped: a null pointer"),
        ("EXEC_USERSPACE", "fault", "unmapped: an address of user space"),
        ("EXEC_DATA", "pc", "unmapped in vmlinux: a module's"),
    ):
        with monkeypatch.context() as patch:
            result = provoke(request(kernel, tmp_path), crash, tmp_path / f"{crash}.log", patch)
        done = kernel.klto("boot", "--decode", result.console_log, "-b", kernel.build_dir, "--json")
        frames = json.loads(done.out)["reports"][0]["frames"]
        assert any(f["role"] == role and f["what"].startswith(what) for f in frames), (crash, frames)
        log = result.console_log.read_text(errors="replace")
        moved += [int(text, 16) for text in re.findall(r"Kernel Offset: 0x([0-9a-f]+) from", log)]
    # KASLR has five hundred places for the kernel: nobody is at the first one every time.
    assert any(moved), moved


def test_kernel_without_debug_information(
    x86_64_6_12: Kernel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = x86_64_6_12
    result = provoke(request(kernel, tmp_path), "WRITE_RO", tmp_path / "x.log", monkeypatch)
    done = kernel.klto("boot", "--decode", result.console_log, "-b", kernel.build_dir)
    assert "note: vmlinux has no debug information" in done.out
    assert "=> lkdtm_WRITE_RO+" in done.out
    assert "@  rodata+0x0" in done.out
    assert "read-only data" in done.out or "data (.rodata)" in done.out
