"""The kernel's own scripts beside ours, on the three test kernels: byte for byte."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Protocol

import pytest
from objects_helpers import compiled, tool

from klto.kernel.initcall_tables import calls_in_log, differences, log_differences, read_tables
from klto.kernel.initcalls import linker_script, read_initcalls
from klto.kernel.ksyms import as_whitelist, autoksyms, find_modules, needed, read_auto_conf
from klto.kernel.ksyms_audit import audit

pytestmark = pytest.mark.real


class Kernel(Protocol):
    build_dir: Path
    tree: Path


@pytest.fixture(params=("x86_64_6_12", "arm64_6_12", "x86_64_6_1"))
def kernel(request: pytest.FixtureRequest) -> Kernel:
    found: Kernel = request.getfixturevalue(request.param)
    return found


def script(kernel: Kernel, *command: str, **environment: str) -> bytes:
    """What one of the tree's scripts prints in the build dir."""
    env = {**os.environ, "LC_ALL": "C", **environment}
    return subprocess.run(command, cwd=kernel.build_dir, env=env, capture_output=True, check=True).stdout


def nm_of(kernel: Kernel) -> str:
    config = (kernel.build_dir / ".config").read_text()
    match = re.search(r"^CONFIG_CLANG_VERSION=(\d+)$", config, re.MULTILINE)
    assert match
    return tool("llvm-nm", int(match[1]) // 10000)


def test_initcalls_are_the_scripts(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(kernel.build_dir)
    generate = str(kernel.tree / "scripts/generate_initcall_order.pl")
    libraries = [name for name in ("lib/lib.a", "arch/x86/lib/lib.a") if Path(name).is_file()]
    for inputs in (
        ["vmlinux.a"],
        ["built-in.a"],
        ["built-in.a", *libraries],
        ["vmlinux.o"],
        ["init/main.o", "built-in.a"],
    ):
        wanted = script(kernel, "perl", generate, *inputs, NM=nm_of(kernel), objtree=".")
        found = linker_script(read_initcalls(inputs))
        assert found.encode() == wanted, inputs
        assert wanted.count(b"\n") > 100, inputs
    left = Path(".tmp_initcalls.lds")
    if left.is_file():
        assert linker_script(read_initcalls(["vmlinux.a"])) == left.read_text()


def test_vmlinux_has_the_order_of_its_objects(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(kernel.build_dir)
    initcalls = read_initcalls(["vmlinux.a"])
    entries = read_tables(Path("vmlinux"))
    assert differences(initcalls, entries) == []
    assert len(entries) > 100
    # Red: the same with two initcalls of one level the other way round.
    first = next(i for i in range(len(initcalls)) if initcalls[i].level == "6")
    second = next(i for i in range(first + 1, len(initcalls)) if initcalls[i].level == "6")
    swapped = list(initcalls)
    swapped[first], swapped[second] = swapped[second], swapped[first]
    assert len(differences(swapped, entries)) == 1


def test_a_boot_calls_them_in_that_order(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    arch = "arm64" if "CONFIG_ARM64=y" in (kernel.build_dir / ".config").read_text() else "x86_64"
    command = [sys.executable, "-m", "klto", "boot", "-C", kernel.tree, "-b", kernel.build_dir, "-a", arch]
    append = ("--append", "initcall_debug ignore_loglevel", "--log", tmp_path / "console.log", "init")
    done = subprocess.run([*command, *append], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    monkeypatch.chdir(kernel.build_dir)
    initcalls = read_initcalls(["vmlinux.a"])
    calls = calls_in_log((tmp_path / "console.log").read_text(errors="replace"))
    assert log_differences(initcalls, calls) == []
    assert len(calls) >= len([initcall for initcall in initcalls if initcall.level != "con"]) > 100
    calls[7], calls[8] = calls[8], calls[7]
    assert len(log_differences(initcalls, calls)) == 1


def test_autoksyms_is_the_scripts(x86_64_6_1: Kernel, tmp_path: Path) -> None:
    build_dir, tree = x86_64_6_1.build_dir, x86_64_6_1.tree
    generate = str(tree / "scripts/gen_autoksyms.sh")
    conf = read_auto_conf(build_dir)
    for option, modorder in (([], None), (["--modorder"], build_dir / "modules.order")):
        output = tmp_path / "autoksyms.h"
        script(x86_64_6_1, "sh", generate, *option, str(output), abs_srctree=str(tree))
        assert autoksyms(build_dir, modorder, None, conf.modversions) == output.read_bytes()
    assert output.read_bytes() == (build_dir / "include/generated/autoksyms.h").read_bytes()


def test_needed_symbols_are_those_that_kbuild_collected(x86_64_6_1: Kernel) -> None:
    """Kbuild's .usyms files are made of the modules' generated code, as ours."""
    build_dir = x86_64_6_1.build_dir
    usyms = {name for path in build_dir.rglob("*.usyms") for name in path.read_text().split()}
    found = as_whitelist(needed(find_modules([build_dir])))
    assert set(found.split()) == (usyms | {"module_layout"}) - {"__this_module"}
    assert len(usyms) > 300


def test_audit_of_a_good_build(x86_64_6_1: Kernel) -> None:
    build_dir = x86_64_6_1.build_dir
    result = audit(build_dir, read_auto_conf(build_dir), None, [])
    assert result.missing == ()
    assert set(result.needed) <= set(result.exported)
    assert len(result.trimmed) > 1000
    assert not set(result.trimmed) & set(result.exported)


def test_audit_of_modules_that_trimming_forgot(x86_64_6_1: Kernel, tmp_path: Path) -> None:
    """Modules from elsewhere that need what this kernel trimmed, has but does not export, or never had."""
    build_dir = x86_64_6_1.build_dir
    conf = read_auto_conf(build_dir)
    trimmed = audit(build_dir, conf, None, []).trimmed[0]
    names = {
        trimmed: "trimmed",
        "_etext": "vmlinux defines it, but",
        "not_in_linux": "nothing in this build",
    }
    source = "".join(f"extern int {name}(void);" for name in names)
    source += "int init_module(void) { return " + " + ".join(f"{name}()" for name in names) + "; }"
    (tmp_path / "m.ko").write_bytes(compiled(source, 19, "--target=x86_64-linux-gnu").read_bytes())
    missing = {m.symbol: m for m in audit(build_dir, conf, None, [tmp_path]).missing}
    assert set(missing) == set(names)
    for name, reason in names.items():
        assert missing[name].modules == ("m.ko",)
        assert missing[name].reason.startswith(reason)
