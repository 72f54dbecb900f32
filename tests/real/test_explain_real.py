"""``klto explain`` on real kernels: their clean logs, and what their build dirs say of a failure."""

from __future__ import annotations

import pytest

from klto.explain import explain_file, explain_log
from klto.objects.archive import read_archive
from tests.real.conftest import Kernel

pytestmark = pytest.mark.real


def test_logs_of_good_kernels_have_no_answer(
    x86_64_6_12: Kernel, arm64_6_12: Kernel, x86_64_6_1: Kernel
) -> None:
    for kernel in (x86_64_6_12, arm64_6_12, x86_64_6_1):
        # console.log is of the last boot of another test, where there was one; console-cfi.log fails on purpose.
        for name in ("build.log", "console.log"):
            log = kernel.build_dir / ".klto" / name
            if log.is_file():
                found = explain_file(log, kernel.build_dir)
                assert found.explanations == (), log
                assert found.unexplained == (), log


def test_the_build_dir_names_members_flags_and_sections(x86_64_6_12: Kernel) -> None:
    (fork,) = (
        member
        for member in read_archive(x86_64_6_12.build_dir / "vmlinux.a").members
        if member.name.endswith("kernel/fork.o")
    )
    at = f"vmlinux.a(fork.o at {fork.header_offset})"
    log = (
        f"0.\tRunning pass 'Function Pass Manager' on module '{at}'.\n"
        "1.\tRunning pass 'Greedy Register Allocator' on function '@copy_process'\n"
        "ld.lld: error: vmlinux.o:(.text.nr_processes) is being placed in '.text.nr_processes'\n"
    )
    crash, orphan = explain_log(log, x86_64_6_12.build_dir).explanations
    assert f"{at} is kernel/fork.o, compiled from kernel/fork.c" in crash.found
    assert "klto build --no-lto kernel/fork.c" in [remedy.command for remedy in crash.remedies]
    assert "nr_processes is defined by kernel/fork.o (kernel/fork.c)" in orphan.found
