"""The link cache on a real kernel."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from klto.events import LinkFinished, read_journal
from klto.link import entry
from klto.objects.archive import leaves, read_archive
from klto.objects.kind import kind_of
from klto.record import Link, read_record
from tests.real.conftest import Kernel
from tests.real.relink import Relink, lto_links

pytestmark = pytest.mark.real


LLD = Path("/usr/lib/llvm-19/bin/ld.lld")


@pytest.mark.parametrize("name", ["arm64_6_12", "x86_64_6_12_debug"])
def test_links_of_kernel_modules_and_hyp_code(
    name: str, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """kvm_nvhe.tmp.o with its linker script, and kernel modules of one object and of many."""
    kernel: Kernel = request.getfixturevalue(name)
    monkeypatch.chdir(kernel.build_dir)
    relink = Relink(kernel.build_dir, tmp_path, LLD)
    links = [link for link in lto_links(kernel.build_dir) if link[0] != "vmlinux.o"]
    wanted = {"arm64_6_12": "arch/arm64/kvm/hyp/nvhe/kvm_nvhe.tmp.o"}.get(name, "drivers/misc/lkdtm/lkdtm.o")
    assert wanted in [output for output, _ in links]
    for output, arguments in links:
        fresh = relink.by_lld(arguments)
        first, cold = relink.by_klto(arguments)
        again, whole = relink.by_klto(arguments)
        assert first == again == fresh, output
        assert (cold.whole, whole.whole) == (False, True), output
        relink.forget_whole_links()
        from_modules, warm = relink.by_klto(arguments)
        assert from_modules == fresh, output
        assert (warm.generated, warm.whole) == (0, False), output


def _vmlinux_link(kernel: Kernel) -> Link:
    record = read_record(kernel.build_dir / ".klto/record.json")
    return next(link for link in record.links if link.output == "vmlinux.o")


def _relinked(kernel: Kernel, *options: str) -> bytes:
    (kernel.build_dir / "vmlinux.o").unlink()
    assert kernel.klto("build", *kernel.options, *options).status == 0
    return (kernel.build_dir / "vmlinux.o").read_bytes()


def _ikconfig(kernel: Kernel) -> list[str]:
    """The configuration that is inside vmlinux, as the kernel's own script finds it."""
    script: Path = kernel.tree / "scripts/extract-ikconfig"
    done = subprocess.run([script, kernel.build_dir / "vmlinux"], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_relink_takes_everything_from_the_cache_and_gives_the_same_bytes(
    copied: Kernel, tmp_path: Path
) -> None:
    """As a whole, then module by module, then without the cache."""
    cache = ("--cache-dir", str(tmp_path))
    cold = _relinked(copied, *cache)
    assert _vmlinux_link(copied).generated == _vmlinux_link(copied).bitcode_inputs
    assert _relinked(copied, *cache) == cold
    assert _vmlinux_link(copied).whole
    shutil.rmtree(tmp_path / "partitions/links")
    assert _relinked(copied, *cache) == cold
    assert (_vmlinux_link(copied).generated, _vmlinux_link(copied).whole) == (0, False)
    assert _relinked(copied, "--no-cache") == cold
    assert _vmlinux_link(copied).generated is None


def test_ikconfig_is_never_stale(copied: Kernel, tmp_path: Path) -> None:
    """Why the kernel dropped LLVM's cache: kernel/configs.c includes config_data.gz by .incbin.

    With a cache of its own: the user's may well know the changed kernel from the last time this ran."""
    cache = ("--cache-dir", str(tmp_path))
    _relinked(copied, *cache)
    before = _ikconfig(copied)
    assert "CONFIG_LOG_BUF_SHIFT=17" in before
    assert copied.klto("build", *copied.options, "-K", "CONFIG_LOG_BUF_SHIFT=15", *cache).status == 0
    link = _vmlinux_link(copied)
    assert link.generated is not None
    assert 0 < link.generated < link.bitcode_inputs / 4
    after = _ikconfig(copied)
    assert "CONFIG_LOG_BUF_SHIFT=15" in after
    linked = (copied.build_dir / "vmlinux.o").read_bytes()
    assert _relinked(copied, "--no-cache") == linked


def test_single_file_and_directory_without_lto(copied: Kernel) -> None:
    """Native code where it was asked for, bitcode elsewhere, and all of it back again."""
    chosen = ("--no-lto", "kernel/sys.c", "--no-lto", "drivers/char")
    assert copied.klto("build", *copied.options, *chosen).status == 0
    record = read_record(copied.build_dir / ".klto/record.json")
    assert record.overrides["kernel/sys.o"] == "no-lto"
    assert record.overrides["drivers/char/mem.o"] == "no-lto"
    assert {os.path.dirname(name) for name in record.overrides} == {"kernel", "drivers/char"}
    assert kind_of(copied.build_dir / "kernel/sys.o") == "elf"
    assert kind_of(copied.build_dir / "kernel/cpu.o") == "bitcode"
    assert record.objects_compiled < 30
    assert copied.klto("boot", *copied.options, "init").status == 0
    again = copied.klto("build", *copied.options)
    assert again.status == 0
    assert kind_of(copied.build_dir / "kernel/sys.o") == "bitcode"
    assert read_record(copied.build_dir / ".klto/record.json").overrides == {}


def test_seconds_of_every_module_are_in_the_record(copied: Kernel, tmp_path: Path) -> None:
    _relinked(copied, "--cache-dir", str(tmp_path))
    link = _vmlinux_link(copied)
    assert len(link.modules) == link.bitcode_inputs
    assert all(module.seconds is not None and module.bytes_out for module in link.modules)
    assert link.cpu_seconds is not None
    spent = sum(module.seconds or 0.0 for module in link.modules)
    assert spent <= 1.1 * link.jobs * (link.wall_seconds or 0.0)
    assert spent >= 0.7 * link.cpu_seconds


def test_failing_module_of_a_kernel_is_named_and_its_reproducer_runs(copied: Kernel, tmp_path: Path) -> None:
    """A module whose assembly no assembler takes, put in the place of one that is in the kernel's link."""
    victim = copied.build_dir / "kernel/sys.o"
    good = victim.read_bytes()
    source = tmp_path / "sys.c"
    source.write_text('int klto_bad(int x) { asm volatile("bogus %0" :: "r"(x)); return x; }\n')
    saved = (copied.build_dir / "kernel/.sys.o.cmd").read_text().splitlines()[0].partition(":= ")[2]
    options = [w for w in shlex.split(saved) if w.startswith(("-flto", "-fsplit", "-m", "-O", "--target"))]
    subprocess.run(["clang-19", *options, "-w", "-c", source, "-o", victim], cwd=copied.build_dir, check=True)
    (copied.build_dir / "vmlinux.o").unlink()
    done = copied.klto("build", *copied.options)
    assert done.status == 1
    assert "invalid instruction mnemonic 'bogus'" in done.err
    link = _vmlinux_link(copied)
    (guilty,) = link.guilty
    assert (guilty.name, guilty.reason) == ("kernel/sys.o", "error")
    assert guilty.reproducer is not None
    alone = subprocess.run([guilty.reproducer], capture_output=True, text=True, check=False)
    assert alone.returncode == 1
    assert "bogus" in alone.stderr
    victim.write_bytes(good)
    assert copied.klto("build", *copied.options).status == 0


def test_killed_link_goes_on_where_it_was(x86_64_6_12: Kernel, tmp_path: Path) -> None:
    """SIGKILL of everything at 20 spread moments of one real link; what is linked in the end is what it always was."""
    kernel = x86_64_6_12
    saved = (
        (kernel.build_dir / ".vmlinux.o.cmd")
        .read_text()
        .splitlines()[0]
        .partition(":= ")[2]
        .partition(";")[0]
    )
    words = shlex.split(saved)[1:]
    words[words.index("-o") + 1] = str(tmp_path / "out.o")
    command = [sys.executable, "-I", "-S", entry.__file__, "/usr/lib/llvm-19/bin/ld.lld", *words]
    cache = tmp_path / "cache"

    def start(root: str) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "KLTO_CACHE": root, "KLTO_JOURNAL": str(tmp_path / "journal")}
        return subprocess.Popen(command, cwd=kernel.build_dir, env=environment, process_group=0)

    total = len(_vmlinux_modules(kernel))
    for moment in range(20):
        process = start(str(cache))
        aim = total * (moment + 1) // 22
        while process.poll() is None and _made(cache) < aim:
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    made = _made(cache)
    assert 0.8 * total < made < total
    assert start(str(cache)).wait() == 0
    last = read_journal(tmp_path / "journal")[-1]
    assert isinstance(last, LinkFinished)
    assert last.generated is not None
    assert last.generated <= total - made
    resumed = (tmp_path / "out.o").read_bytes()
    subprocess.run([command[4], *words], cwd=kernel.build_dir, check=True)
    assert (tmp_path / "out.o").read_bytes() == resumed


def _vmlinux_modules(kernel: Kernel) -> list[str]:
    return [
        m.name for m in leaves(read_archive(str(kernel.build_dir / "vmlinux.a"))) if m.kind() == "bitcode"
    ]


def _made(cache: Path) -> int:
    """Modules in the store and in views."""
    stored = sum(1 for p in cache.glob("partitions/*/*") if not p.name.startswith("index"))
    return stored + sum(1 for p in cache.glob("views/*/objects/llvmcache-*") if not p.is_symlink())
