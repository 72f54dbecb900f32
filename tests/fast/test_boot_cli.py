"""``klto boot`` as a user meets it: exit statuses, what it prints, and what it leaves behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import boot_helpers
import pytest

pytestmark = pytest.mark.slow

KLTO = (sys.executable, "-m", "klto", "boot")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One user cache for all, so that the init is compiled once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def kernel(tmp_path: Path) -> Path:
    path = tmp_path / "bzImage"
    path.write_bytes(boot_helpers.tiny_x86_kernel())
    return path


@pytest.fixture
def build_dir(tmp_path: Path) -> Path:
    """What a build of a tiny x86 kernel leaves."""
    folder = tmp_path / "build dir"
    (folder / "arch/x86/boot").mkdir(parents=True)
    (folder / "arch/x86/boot/bzImage").write_bytes(boot_helpers.tiny_x86_kernel())
    options = ("X86_64", "BLK_DEV_INITRD", "BINFMT_ELF", "SERIAL_8250")
    (folder / ".config").write_text(
        "# Linux\n" + "".join(f"CONFIG_{name}=y\n" for name in options) + "# CONFIG_ARM64 is not set\n"
    )
    return folder


def klto(cache: Path, *arguments: str | Path, status: int) -> subprocess.CompletedProcess[str]:
    """Run ``klto boot``, which must end with this status and without a traceback."""
    done = subprocess.run(
        [*KLTO, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "XDG_CACHE_HOME": str(cache)},
    )
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    return done


def fake(tmp_path: Path, mode: str) -> tuple[str, ...]:
    """The options for a fake QEMU."""
    boot_helpers.compiler()
    return ("--qemu", boot_helpers.fake_qemu(tmp_path, mode), "--accel", "tcg")


def test_build_dir_passes_and_keeps_its_log_there(tmp_path: Path, cache: Path, build_dir: Path) -> None:
    done = klto(cache, "-b", build_dir, *fake(tmp_path, "passes"), status=0)
    assert done.stdout.split()[:2] == ["init", "passed"]
    assert "not applicable: initcalls (needs CONFIG_PRINTK; needs CONFIG_KALLSYMS), " in done.stdout
    assert "6.99.0-tiny" in done.stdout
    assert (build_dir / ".klto/console.log").read_text() == "Linux version 6.99.0-tiny\n"


def test_tree_that_holds_a_config_is_the_build_dir(tmp_path: Path, cache: Path, build_dir: Path) -> None:
    klto(cache, "-C", build_dir, *fake(tmp_path, "passes"), status=0)


def test_json_is_the_contract_s(tmp_path: Path, cache: Path, kernel: Path) -> None:
    done = klto(cache, "--kernel", kernel, "--json", *fake(tmp_path, "passes"), status=0)
    result = json.loads(done.stdout)
    assert next(iter(result)) == "schema"
    assert result["schema"] == "klto/boot/1"
    assert result["accelerator"] == "tcg"
    assert result["console_log"].startswith(str(cache))
    (proof,) = result["proofs"]
    assert list(proof) == ["name", "status", "seconds", "evidence"]
    assert (proof["name"], proof["status"]) == ("init", "passed")


def test_failure_shows_the_end_of_the_console(tmp_path: Path, cache: Path, kernel: Path) -> None:
    log = tmp_path / "my log"
    done = klto(cache, "--kernel", kernel, "--log", log, *fake(tmp_path, "warns"), status=4)
    assert "proof init failed" in done.stderr
    assert "| Linux version 6.99.0-tiny" in done.stderr
    assert f"console log: {log}" in done.stderr
    assert "WARNING: CPU: 0" in log.read_text()


def test_json_of_a_failure(tmp_path: Path, cache: Path, kernel: Path) -> None:
    done = klto(cache, "--kernel", kernel, "--json", *fake(tmp_path, "forges"), status=4)
    assert json.loads(done.stdout)["proofs"][0]["status"] == "failed"


def test_dead_qemu_is_unknown(tmp_path: Path, cache: Path, kernel: Path) -> None:
    done = klto(cache, "--kernel", kernel, "-q", *fake(tmp_path, "refuses"), status=5)
    assert done.stdout == ""
    assert "Cannot allocate memory" in done.stderr


def test_results_go_to_junit_and_to_the_record(tmp_path: Path, cache: Path, build_dir: Path) -> None:
    junit, record = tmp_path / "junit.xml", build_dir / ".klto/record.json"
    record.parent.mkdir()
    asked = {"argv": [], "directory": "/"}
    machine = {"cpus": 1, "memory_bytes": 1, "memory_available": 1}
    head = {"schema": "klto/record/1", "klto_version": "0", "status": "done", "started": 1.0, "pid": 1}
    record.write_text(json.dumps(head | {"asked": asked, "machine": machine}))
    done = klto(cache, "-b", build_dir, "--junit", junit, *fake(tmp_path, "warns"), status=4)
    assert f"decode it: klto boot --decode '{build_dir}/.klto/console.log' -b '{build_dir}'" in done.stderr
    assert b'<failure message="WARNING: ' in junit.read_bytes()
    (boot,) = json.loads(record.read_text())["boots"]
    assert boot["place"] == "main"
    assert {proof["name"]: proof["status"] for proof in boot["proofs"]}["init"] == "failed"


def test_damaged_module_fails_its_proof_and_no_other(tmp_path: Path, cache: Path, build_dir: Path) -> None:
    with (build_dir / ".config").open("a") as config:
        config.write("CONFIG_MODULES=y\n")
    (build_dir / "Module.symvers").write_text("")
    (build_dir / "modules.order").write_text("a.o\n")
    done = klto(cache, "-b", build_dir, "modules", *fake(tmp_path, "passes"), status=2)
    assert "needs the build's modules: a.ko: in " in done.stderr
    (build_dir / "a.ko").write_bytes(b"\x7fELF")
    done = klto(cache, "-b", build_dir, "-q", *fake(tmp_path, "passes"), status=4)
    assert "klto: proof modules cannot run: " in done.stderr
    assert "a.ko" in done.stderr
    (tmp_path / "mine.ko").write_bytes(b"\x7fELF")
    (build_dir / "modules.order").write_text("")
    done = klto(cache, "-b", build_dir, "--module", tmp_path / "mine.ko", *fake(tmp_path, "passes"), status=2)
    assert "mine.ko" in done.stderr


def test_decode_usage(tmp_path: Path, cache: Path, kernel: Path, build_dir: Path) -> None:
    cases: list[tuple[tuple[str | Path, ...], str]] = [
        (("--decode", tmp_path / "none", "-b", build_dir), "No such file or directory"),
        (("--decode", kernel, "init", "-b", build_dir), "--decode boots nothing"),
        (("--decode", kernel, "-b", build_dir), "no vmlinux in"),
        (("--decode", kernel, "-b", tmp_path), "no kernel was configured"),
    ]
    for arguments, message in cases:
        done = klto(cache, *arguments, status=2)
        assert message in done.stderr
        assert len(done.stderr.splitlines()) <= 2


def test_hung_qemu_is_unknown(tmp_path: Path, cache: Path, kernel: Path) -> None:
    klto(cache, "--kernel", kernel, "--timeout", "0.3", *fake(tmp_path, "hangs-at-start"), status=5)


def test_usage_errors_are_one_line_each(tmp_path: Path, cache: Path, kernel: Path, build_dir: Path) -> None:
    (tmp_path / "arm").mkdir()
    (tmp_path / "arm/.config").write_text("CONFIG_ARM=y\n")
    cases: list[tuple[tuple[str | Path, ...], str]] = [
        (("--kernel", tmp_path / "nothing"), "No such file or directory"),
        (("--kernel", tmp_path / "nothing", "proof-of-nothing"), "no proof is called 'proof-of-nothing'"),
        (("--kernel", kernel, "-a", "arm64"), "is an x86_64 kernel, not arm64"),
        (("--kernel", kernel, "-a", "riscv"), "cannot boot 'riscv' kernels"),
        (("--kernel", kernel, "-b", build_dir), "exclude each other"),
        (("--kernel", kernel, "--qemu", "/no/qemu"), "cannot run /no/qemu"),
        (("--kernel", kernel, "--qemu", "/bin/sh", "-t", "gcc"), "no toolchain 'gcc'"),
        (("--kernel", kernel, "--qemu", "/bin/sh", "-t", tmp_path), "no LLVM in"),
        (("--kernel", kernel, "--timeout", "-1"), "not a number of seconds: '-1'"),
        (("--kernel", kernel, "--timeout", "nan"), "not a number of seconds: 'nan'"),
        (("-b", tmp_path / "no dir"), "no kernel was configured"),
        (("-b", tmp_path / "arm"), "is for neither x86_64 nor arm64"),
        (("-b", build_dir, "-a", "arm64"), "is configured for x86_64, not arm64"),
    ]
    for arguments, message in cases:
        done = klto(cache, *arguments, status=2)
        assert message in done.stderr
        assert len(done.stderr.splitlines()) <= 2
        assert done.stdout == ""


def test_no_proof_applies(tmp_path: Path, cache: Path, build_dir: Path) -> None:
    (build_dir / ".config").write_text("CONFIG_X86_64=y\nCONFIG_SERIAL_8250=y\nCONFIG_BINFMT_ELF=y\n")
    done = klto(cache, "-b", build_dir, *fake(tmp_path, "passes"), status=2)
    assert "needs CONFIG_BLK_DEV_INITRD" in done.stderr


def test_help_loads_nothing_big() -> None:
    code = (
        "import argparse, sys, klto.cli.boot as boot; boot.configure(argparse.ArgumentParser());"
        "print(*(name for name in sys.modules if name.startswith(('klto.boot', 'numpy', 'msgspec', 'rich'))))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def wait_for(condition: Callable[[], bool]) -> None:
    """Until the condition holds; a minute is the end of all patience."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def gone(pid: int) -> bool:
    """Whether a process has ended (a zombie that its new parent has not reaped yet has)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True


@pytest.mark.parametrize(
    ("mode", "signals", "status"),
    [
        ("hangs", [signal.SIGINT], 130),
        ("hangs", [signal.SIGTERM], 130),
        ("is-stubborn", [signal.SIGINT], 130),
        ("is-stubborn", [signal.SIGINT, signal.SIGINT], 130),
        ("hangs", [signal.SIGKILL], -signal.SIGKILL),
    ],
)
def test_interrupt_leaves_no_qemu(
    tmp_path: Path, cache: Path, kernel: Path, mode: str, signals: list[signal.Signals], status: int
) -> None:
    log = tmp_path / "console.log"
    child = subprocess.Popen(
        [*KLTO, "--kernel", kernel, "--log", log, *fake(tmp_path, mode)],
        env={**os.environ, "XDG_CACHE_HOME": str(cache)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for(lambda: log.is_file() and log.read_bytes().startswith(b"Linux version"))
    qemu = int((tmp_path / "qemu.pid").read_text())
    assert not gone(qemu)
    for number in signals:
        child.send_signal(number)
        time.sleep(0.3 if len(signals) > 1 else 0)  # so that the second meets klto while it waits for QEMU
    _, errors = child.communicate(timeout=60)
    assert child.returncode == status
    assert "Traceback" not in errors
    wait_for(lambda: gone(qemu))
