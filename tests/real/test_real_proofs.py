"""Every proof on kernels that should pass it, and on ones that were made to fail it."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from test_boot_decode import check_junit

from klto.boot import run as boot_run
from klto.boot.images import read_image
from klto.boot.initramfs import regular
from klto.boot.run import BootRequest, BootResult, boot_kernel
from klto.files import user_cache_dir
from klto.kernel.toolchain import find_toolchain
from klto.objects.elf import Elf
from klto.objects.source import read_whole
from tests.real.boot_checks import dying_init
from tests.real.conftest import Kernel, run_klto
from tests.real.patched import Arm64Image
from tests.real.provoke import provoke, request

pytestmark = pytest.mark.real


def verdicts(result: BootResult) -> dict[str, str]:
    return {proof.name: str(proof.status) for proof in result.proofs}


def evidence(result: BootResult, name: str) -> str:
    return "\n".join(next(proof.evidence for proof in result.proofs if proof.name == name))


#: What each test kernel's configuration allows, besides init, initcalls and modules.
ALLOWED = {
    "x86_64_6_12": {"config", "cfi", "kexec"},
    "arm64_6_12": {"el2"},
    "x86_64_6_1": {"trim"},
    "x86_64_6_12_debug": {"config", "cfi", "kexec"},
}


@pytest.mark.parametrize("fixture", ALLOWED)
def test_all_proofs_that_apply_pass(fixture: str, request_: pytest.FixtureRequest, tmp_path: Path) -> None:
    kernel: Kernel = request_.getfixturevalue(fixture)
    junit = tmp_path / "junit.xml"
    names = tmp_path / "names"
    names.write_text("# functions that a live patch might name\nvfs_write\nkernel_init\n")
    done = kernel.klto(
        "boot",
        "-b",
        kernel.build_dir,
        "--json",
        "--junit",
        junit,
        "--names",
        names,
        "--log",
        tmp_path / "log",
    )
    result = json.loads(done.out)
    found = {proof["name"]: proof["status"] for proof in result["proofs"]}
    applied = {"init", "initcalls", "modules", "livepatch-names"} | ALLOWED[fixture]
    assert found == {name: "passed" if name in applied else "not-applicable" for name in found}
    assert set(found) == applied | set(found)
    assert done.status == 0
    [initcalls] = [proof["evidence"] for proof in result["proofs"] if proof["name"] == "initcalls"]
    assert "read in the kernel's log" in initcalls
    for proof in result["proofs"]:
        assert proof["status"] == "passed" or proof["evidence"][0].startswith("needs "), proof
    assert all(boot["seconds"] < 120 for boot in result["boots"])
    cases = check_junit(junit.read_bytes()).iter("testcase")
    assert {case.attrib["name"] for case in cases} == set(found)
    record = json.loads((kernel.build_dir / ".klto/record.json").read_text())
    kept = {
        proof["name"]: proof["status"]
        for boot in record["boots"][-len(result["boots"]) :]
        for proof in boot["proofs"]
    }
    assert kept == found


@pytest.fixture(name="request_")
def _request(request: pytest.FixtureRequest) -> pytest.FixtureRequest:
    return request


class TestInitcalls:
    def test_linked_in_another_order(self, arm64_6_12: Kernel, tmp_path: Path) -> None:
        image = Arm64Image(arm64_6_12.build_dir, tmp_path)
        first, second = image.swap_initcalls()
        (tmp_path / "Image").write_bytes(image.data)
        base = request(arm64_6_12, tmp_path, "init", "initcalls")
        result = boot_kernel(replace(base, image=read_image(tmp_path / "Image")))
        assert verdicts(result) == {"init": "passed", "initcalls": "failed"}
        assert f"was {second}, but the objects' order has {first} there" in evidence(result, "initcalls")


class TestEl2:
    def test_pointer_that_is_not_relocated(self, arm64_6_12: Kernel, tmp_path: Path) -> None:
        image = Arm64Image(arm64_6_12.build_dir, tmp_path)
        image.forget_hyp_reloc()
        (tmp_path / "Image").write_bytes(image.data)
        base = request(arm64_6_12, tmp_path, "el2")
        result = boot_kernel(replace(base, image=read_image(tmp_path / "Image")))
        assert verdicts(result) == {"el2": "failed"}
        found = evidence(result, "el2")
        # In the brackets is the process of the CPU that was first: init's, or another CPU's idle one.
        assert re.search(r"HYP panic: kvm \[\d\]: nVHE hyp panic at: ", found)
        assert "VHE: a guest ran under KVM, entered twice" in found
        log = result.console_log
        done = arm64_6_12.klto("boot", "--decode", log, "-b", arm64_6_12.build_dir, "--json")
        # The other CPU may get as far as a panic of its own, in the midst of the first one's: the rest is behind that.
        reports = [r for r in json.loads(done.out)["reports"] if r["kind"] == "HYP panic"]
        assert all(report["frames"][0]["function"].startswith("__kvm_nvhe_") for report in reports)
        fault = next(frame for report in reports for frame in report["frames"] if frame["role"] == "fault")
        assert "a pointer that .hyp.reloc lacks" in fault["notes"][0]


class TestConfig:
    def test_stale(self, x86_64_6_12: Kernel, tmp_path: Path) -> None:
        """The .config was changed, and the kernel not built again."""
        for name in ("vmlinux.a", "arch/x86/boot/bzImage"):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).symlink_to(x86_64_6_12.build_dir / name)
        text = (x86_64_6_12.build_dir / ".config").read_text()
        changed = re.sub(r"^CONFIG_LOG_BUF_SHIFT=\d+$", "CONFIG_LOG_BUF_SHIFT=12", text, flags=re.MULTILINE)
        assert changed != text
        (tmp_path / ".config").write_text(changed)
        kernel = replace(x86_64_6_12, build_dir=tmp_path)
        base = request(x86_64_6_12, tmp_path, "init", "config")
        result = boot_kernel(replace(base, build_dir=kernel.build_dir))
        assert verdicts(result) == {"init": "passed", "config": "failed"}
        assert re.search(
            r"CONFIG_LOG_BUF_SHIFT is \d+ in the running kernel, 12 in \.config", evidence(result, "config")
        )


class TestModules:
    def test_missing_symbol_fails_by_name(self, x86_64_6_12: Kernel, tmp_path: Path) -> None:
        """A module without what it depends on, and one that needs what no kernel has."""
        base = request(x86_64_6_12, tmp_path, "modules")
        module = tmp_path / "libcrc32c.ko"
        data = (x86_64_6_12.build_dir / "lib/libcrc32c.ko").read_bytes()
        module.write_bytes(data.replace(b"crypto_shash_update\0", b"crypto_shash_qpdate\0"))
        assert module.read_bytes() != data
        # Its own name would be that of the build's module.
        path = tmp_path / "changed.ko"
        module.rename(path)
        result = boot_kernel(replace(base, modules=(str(path),)))
        assert verdicts(result) == {"modules": "failed"}
        found = evidence(result, "modules")
        assert "libcrc32c did not load: Unknown symbol crypto_shash_qpdate (err -2)" in found
        assert "libcrc32c needs crypto_shash_qpdate, which nothing exports" in found

    def test_crc_of_another_build(self, x86_64_6_1: Kernel, tmp_path: Path) -> None:
        original = x86_64_6_1.build_dir / "fs/mbcache.ko"
        data, symbol = bytearray(original.read_bytes()), "kfree"
        data[data.index(symbol.encode().ljust(56, b"\0")) - 8] ^= 1  # struct modversion_info: crc, name
        path = tmp_path / "changed.ko"
        path.write_bytes(data)
        result = boot_kernel(replace(request(x86_64_6_1, tmp_path, "modules"), modules=(str(path),)))
        assert verdicts(result) == {"modules": "failed"}
        found = evidence(result, "modules")
        assert "mbcache did not load: disagrees about version of symbol kfree" in found
        assert "mbcache was built for kfree with CRC" in found


class TestTrim:
    def test_module_that_needs_a_trimmed_symbol(self, x86_64_6_1: Kernel, tmp_path: Path) -> None:
        """A kernel that has trimmed what a shipped module needs: the module says another name."""
        build_dir = user_cache_dir() / "test" / f"linked-{os.getpid()}"
        shutil.rmtree(build_dir, ignore_errors=True)
        shutil.copytree(x86_64_6_1.build_dir, build_dir, symlinks=True, copy_function=os.link)
        module = build_dir / "fs/mbcache.ko"
        data = module.read_bytes()
        module.unlink()  # and not written: it is a link to the original
        module.write_bytes(data.replace(b"register_shrinker\0", b"register_shrinkeq\0"))
        assert module.read_bytes() != data
        result = boot_kernel(replace(request(x86_64_6_1, tmp_path, "trim", "modules"), build_dir=build_dir))
        shutil.rmtree(build_dir)
        assert verdicts(result) == {"modules": "failed", "trim": "failed"}
        assert "register_shrinkeq, needed by mbcache.ko, is not exported" in evidence(result, "trim")
        assert "mbcache did not load: Unknown symbol register_shrinkeq" in evidence(result, "modules")


class TestCfi:
    def test_off(self, x86_64_6_12_debug: Kernel, tmp_path: Path) -> None:
        result = boot_kernel(replace(request(x86_64_6_12_debug, tmp_path, "cfi"), append="cfi=off"))
        assert verdicts(result) == {"cfi": "failed"}
        assert "and the kernel said nothing" in evidence(result, "cfi")


class TestNames:
    def test_ambiguous(self, x86_64_6_12: Kernel, tmp_path: Path) -> None:
        lines = (x86_64_6_12.build_dir / "System.map").read_text().splitlines()
        names = [line.split()[2] for line in lines]
        twice = next(name for name in names if name.isidentifier() and names.count(name) == 2)
        (tmp_path / "names").write_text(f"vfs_write\n{twice}\nnot_in_linux\n")
        base = request(x86_64_6_12, tmp_path, "livepatch-names")
        found = evidence(boot_kernel(replace(base, names=tmp_path / "names")), "livepatch-names")
        assert f"{twice} is ambiguous: kallsyms has it 2 times" in found
        assert "not_in_linux is not in kallsyms" in found


class TestInit:
    def test_dies(self, x86_64_6_12: Kernel, tmp_path: Path) -> None:
        base = request(x86_64_6_12, tmp_path)
        result = boot_kernel(replace(base, files=(dying_init(base.image),)))
        found = verdicts(result)
        assert found["init"] == "failed"
        assert {found["config"], found["kexec"], found["cfi"]} == {"unknown"}
        assert "Attempted to kill init!" in evidence(result, "init")

    def test_kernel_that_hangs(
        self, x86_64_6_12: Kernel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        base = replace(request(x86_64_6_12, tmp_path), timeout=6.0)
        result = provoke(base, "HARDLOCKUP", base.log, monkeypatch)
        assert verdicts(result) == {"cfi": "failed"}
        assert result.ending == "the guest gave no verdict within 6 s"
        assert re.search(r"CPU 0 was at RIP=[0-9a-f]{16}", evidence(result, "cfi"))

    def test_init_that_never_reports(self, x86_64_6_12: Kernel, tmp_path: Path) -> None:
        base = replace(request(x86_64_6_12, tmp_path, "init"), timeout=6.0)
        result = boot_kernel(replace(base, files=(regular("init", _program(base, "loop"), executable=True),)))
        assert verdicts(result) == {"init": "failed"}
        assert result.ending == "the guest gave no verdict within 6 s"

    def test_qemu_that_is_killed(self, x86_64_6_12: Kernel, tmp_path: Path) -> None:
        """While the guest runs: nobody knows what would have become of it."""
        base = request(x86_64_6_12, tmp_path, "init")
        pid = tmp_path / "pid"
        qemu = tmp_path / "qemu"
        qemu.write_text(f'#!/bin/sh\necho $$ >"{pid}"\nexec qemu-system-x86_64 "$@"\n')
        qemu.chmod(0o755)
        results: list[BootResult] = []
        program = regular("init", _program(base, "loop"), executable=True)
        asked = replace(base, qemu=str(qemu), files=(program,))
        thread = threading.Thread(target=lambda: results.append(boot_kernel(asked)))
        thread.start()
        while not (base.log.is_file() and b"Run /init" in base.log.read_bytes()) and thread.is_alive():
            time.sleep(0.05)
        os.kill(int(pid.read_text()), signal.SIGKILL)
        thread.join()
        assert verdicts(results[0]) == {"init": "unknown"}
        assert results[0].ending == "the guest was lost: QEMU died (killed by SIGKILL)"

    def test_kernel_that_panics(self, x86_64_6_12: Kernel, tmp_path: Path) -> None:
        done = x86_64_6_12.klto(
            "boot", "-b", x86_64_6_12.build_dir, "init", "--append", "rdinit=/none", "--log", tmp_path / "log"
        )
        assert done.status == 4
        assert "Unable to mount root fs" in done.err

    def test_console_that_is_flooded(
        self, x86_64_6_12: Kernel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(boot_run, "MAX_LOG_BYTES", 1 << 16)
        base = request(x86_64_6_12, tmp_path, "init")
        result = boot_kernel(
            replace(base, files=(regular("init", _program(base, "flood"), executable=True),))
        )
        assert verdicts(result) == {"init": "failed"}
        assert "printed too much" in result.ending
        assert base.log.stat().st_size == 1 << 16


#: Programs that are bad at being init, for x86_64.
_PROGRAMS = {
    "loop": "_start: jmp _start",
    "flood": "_start: mov $1, %eax\n mov $1, %edi\n lea text(%rip), %rsi\n mov $16, %edx\n syscall\n jmp _start\n"
    'text: .ascii "again and again\\n"',
}


def _program(base: BootRequest, name: str) -> bytes:
    """Assemble and link one of them."""
    folder = base.log.parent
    (folder / "p.s").write_text(f".globl _start\n{_PROGRAMS[name]}\n")
    argv = [base.compiler.clang, "--target=x86_64-linux-gnu", "-c", folder / "p.s", "-o", folder / "p.o"]
    subprocess.run(argv, check=True)
    subprocess.run([base.compiler.lld, "-static", folder / "p.o", "-o", folder / "p"], check=True)
    return (folder / "p").read_bytes()


def test_boots_side_by_side(x86_64_6_12: Kernel, tmp_path: Path) -> None:
    results: dict[int, BootResult] = {}

    def boot(number: int) -> None:
        folder = tmp_path / str(number)
        folder.mkdir()
        results[number] = boot_kernel(request(x86_64_6_12, folder, "init"))

    threads = [threading.Thread(target=boot, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [verdicts(results[number]) for number in range(3)] == [{"init": "passed"}] * 3


def test_kexec_of_a_kernel_whose_purgatory_went_through_lto(
    x86_64_6_12: Kernel, copy_of: Callable[[Kernel], Kernel], tmp_path: Path
) -> None:
    """Its code is in 25 sections, and a symbol that the kernel looks up by name has become a promoted local.

    The first alone does no harm any more: since 6.1.192 and 6.12.117 at the latest the kernel finds the entry by its
    symbol, and the jump works (kernel/kexec_file.c, kexec_purgatory_setup_sechdrs).
    """
    kernel = copy_of(x86_64_6_12)
    folder = kernel.build_dir / "arch/x86/purgatory"
    for name in ("purgatory", "string", "sha256"):
        saved = (folder / f".{name}.o.cmd").read_text().splitlines()[0].partition(":= ")[2]
        argv = shlex.split(saved.partition(";")[0])
        subprocess.run([*argv, "-flto=thin", "-fsplit-lto-unit"], cwd=kernel.build_dir, check=True)
    saved = (folder / ".purgatory.ro.cmd").read_text().splitlines()[0].partition(":= ")[2]
    subprocess.run(shlex.split(saved.partition(";")[0]), cwd=kernel.build_dir, check=True)
    objcopy = find_toolchain(None, kernel.build_dir, None).bin_dir / "llvm-objcopy"
    promoted = "purgatory_sha256_digest=purgatory_sha256_digest.llvm.1"
    subprocess.run([objcopy, "--redefine-sym", promoted, folder / "purgatory.ro"], check=True)
    elf = Elf(read_whole(folder / "purgatory.ro"), "purgatory.ro")
    assert (elf.sections["sh_flags"] & 4 != 0).sum() > 20  # SHF_EXECINSTR
    done = run_klto("build", *kernel.options, "--fail-on", "never")
    assert done.status == 0, done.err
    result = boot_kernel(request(kernel, tmp_path, "init", "kexec"))
    shutil.rmtree(kernel.build_dir)
    assert verdicts(result) == {"init": "passed", "kexec": "failed"}
    assert "kexec_file_load refused the image: EINVAL" in evidence(result, "kexec")
