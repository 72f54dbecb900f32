"""Real kernels, built by klto, verified, booted, and handed to plain make."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jsonschema
import pytest

from klto.objects.elf_sections import section_names
from klto.record import read_record, record_schema
from tests.real.conftest import Kernel

pytestmark = pytest.mark.real

KERNELS = ["x86_64_6_12", "arm64_6_12", "x86_64_6_1", "x86_64_6_12_full"]


@pytest.fixture(params=KERNELS)
def kernel(request: pytest.FixtureRequest) -> Kernel:
    found = request.getfixturevalue(request.param)
    assert isinstance(found, Kernel)
    return found


def _plain_make(kernel: Kernel, *arguments: str) -> list[str]:
    """What plain make announces, in the spelling that the build dir was made with."""
    arch = [] if kernel.arch == os.uname().machine else [f"ARCH={kernel.arch}"]
    done = subprocess.run(
        ["make", "-C", kernel.tree, f"O={kernel.build_dir}", "LLVM=-19", *arch, *arguments],
        capture_output=True,
        text=True,
        check=True,
    )
    return [line for line in done.stdout.splitlines() if line.startswith("  ")]


def test_the_result_is_an_lto_kernel(kernel: Kernel) -> None:
    record = read_record(kernel.build_dir / ".klto/record.json")
    jsonschema.validate(json.loads((kernel.build_dir / ".klto/record.json").read_bytes()), record_schema())
    assert record.verification is not None
    assert record.verification.problems == []
    assert record.verification.bitcode > 600
    assert 10 < record.verification.native < 60
    assert record.verification.vmlinux_o_links <= 1
    assert len(record.initcalls) > 100
    assert record.config is not None
    assert record.config.lto == ("full" if "full" in kernel.build_dir.name else "thin")
    assert ".text" in section_names(kernel.build_dir / "vmlinux")


def test_it_boots(kernel: Kernel) -> None:
    done = kernel.klto("boot", "-b", kernel.build_dir, "init", "--json")
    assert done.status == 0, done.err
    result = json.loads(done.out)
    assert result["schema"] == "klto/boot/1"
    assert [(p["name"], p["status"]) for p in result["proofs"]] == [("init", "passed")]


def test_plain_make_has_nothing_to_do_after_klto(kernel: Kernel) -> None:
    first, second = _plain_make(kernel), _plain_make(kernel)
    # Kbuild announces a few things each time (GEN Makefile, CALL checksyscalls, DESCEND objtool).
    assert first == second
    assert not {line.split()[0] for line in first} & {"CC", "AS", "LD", "AR", "HOSTCC", "OBJCOPY", "BUILD"}


def test_klto_has_nothing_to_do_after_make(x86_64_6_12: Kernel) -> None:
    """And what make linked itself, klto leaves alone."""
    (x86_64_6_12.build_dir / "vmlinux.o").unlink()
    assert any("vmlinux.o" in line for line in _plain_make(x86_64_6_12))
    made = (x86_64_6_12.build_dir / "vmlinux.o").stat().st_mtime_ns
    assert x86_64_6_12.klto("build", *x86_64_6_12.options).status == 0
    assert (x86_64_6_12.build_dir / "vmlinux.o").stat().st_mtime_ns == made
    record = read_record(x86_64_6_12.build_dir / ".klto/record.json")
    assert (record.objects_compiled, record.links) == (0, [])


def test_klto_links_the_bytes_that_make_links(x86_64_6_12: Kernel) -> None:
    """vmlinux.o after objtool, once by klto's link and once by plain make."""
    vmlinux_o = x86_64_6_12.build_dir / "vmlinux.o"
    vmlinux_o.unlink()
    assert x86_64_6_12.klto("build", *x86_64_6_12.options).status == 0
    by_klto = vmlinux_o.read_bytes()
    record = read_record(x86_64_6_12.build_dir / ".klto/record.json")
    link = next(link for link in record.links if link.output == "vmlinux.o")
    assert (link.bitcode_inputs, link.native_inputs) == (924, 25)
    vmlinux_o.unlink()
    _plain_make(x86_64_6_12)
    assert vmlinux_o.read_bytes() == by_klto


def test_killed_between_linker_and_objtool(copied: Kernel) -> None:
    """make alone would take that vmlinux.o for finished: a kernel with an empty ORC table."""
    kernel = copied
    linked, saved = kernel.build_dir / "vmlinux.o", kernel.build_dir / ".vmlinux.o.cmd"
    good = linked.read_bytes()
    linked.unlink()
    build = subprocess.Popen(
        [sys.executable, "-m", "klto", "build", "-q", *kernel.options],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    victims = _wait_for_objtool(build, kernel.build_dir)
    for pid in victims:
        os.kill(pid, signal.SIGKILL)
    build.kill()
    build.wait()
    assert linked.stat().st_mtime_ns > saved.stat().st_mtime_ns
    done = kernel.klto("build", *kernel.options)
    assert done.status == 0
    assert "removed what a killed build left half made" in done.err
    assert "vmlinux.o" in read_record(kernel.build_dir / ".klto/record.json").removed
    assert linked.read_bytes() == good


def _wait_for_objtool(build: subprocess.Popen[bytes], build_dir: Path) -> list[int]:
    """Wait until objtool runs on vmlinux.o; every process of the build, so that all can be killed at once."""
    while build.poll() is None:
        found, objtool = [], False
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                try:
                    inside = Path(os.readlink(f"/proc/{entry}/cwd")).is_relative_to(build_dir)
                    words = Path(f"/proc/{entry}/cmdline").read_bytes().split(b"\0")
                except OSError:
                    continue
                if inside:
                    found.append(int(entry))
                    objtool = objtool or words[0].endswith(b"objtool")
        if objtool:
            return found
        time.sleep(0.005)
    pytest.fail("the build ended and objtool was never seen")
