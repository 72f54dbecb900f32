"""Boots: a fake QEMU that misbehaves in every way we know, and the real one with kernels of a few bytes."""

from __future__ import annotations

import os
import selectors
from dataclasses import replace
from pathlib import Path

import boot_helpers
import pytest

from klto.boot import accelerator, console, run, session
from klto.boot.accelerator import choose_accelerator
from klto.boot.console import Console
from klto.boot.images import Arch
from klto.boot.proofs import ProofStatus, Transcript
from klto.boot.qemu import Accelerator
from klto.boot.run import BootResult, boot_kernel
from klto.boot.session import Session, Stopwatch, wires
from klto.errors import UsageError


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache for all boots, so that the init is compiled once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "END_SECONDS", 0.5)
    monkeypatch.setattr(session, "ANSWER_SECONDS", 0.5)


def boot(tmp_path: Path, cache: Path, mode: str, timeout: float = 60.0) -> BootResult:
    """One boot with the fake QEMU."""
    qemu = boot_helpers.fake_qemu(tmp_path, mode)
    return boot_kernel(replace(boot_helpers.request(tmp_path, cache=cache), qemu=qemu, timeout=timeout))


@pytest.mark.parametrize(
    "mode", ["passes", "passes-over-virtio", "passes-over-console", "stays-after-verdict"]
)
def test_verdict_of_every_channel_counts(tmp_path: Path, cache: Path, mode: str) -> None:
    result = boot(tmp_path, cache, mode)
    assert result.status is ProofStatus.PASSED
    assert "release: 6.99.0-tiny" in result.proofs[0].evidence
    assert result.qemu_version == "7.2.0"
    assert (tmp_path / "console.log").read_bytes().startswith(b"Linux version")


def test_silent_console_is_pointed_out(tmp_path: Path, cache: Path) -> None:
    unseen = "console: silent, so a WARNING would not have been seen"
    assert unseen in boot(tmp_path, cache, "passes-silently").proofs[0].evidence
    assert unseen not in boot(tmp_path, cache, "passes").proofs[0].evidence


FAILURES = {
    "says-failed": "uname failed",
    "other-kernel": "the guest runs Linux '5.4.0', the image is '6.99.0-tiny'",
    "forges": "the guest restarted without a verdict",
    "half-a-verdict": "the guest restarted without a verdict",
    "warns": "WARNING: [    0.5] WARNING: CPU: 0 PID: 1 at kernel/x.c:7 f+0x1/0x2",
    "panics-and-stays": "panic: Kernel panic - not syncing: test",
    "powers-off": "the guest powered off without a verdict",
    "floods-the-channel": "the guest printed too much",
}


@pytest.mark.parametrize("mode", FAILURES)
def test_guest_that_fails_fails_the_proof(tmp_path: Path, cache: Path, mode: str) -> None:
    result = boot(tmp_path, cache, mode)
    assert result.status is ProofStatus.FAILED
    assert result.proofs[0].evidence[0] == FAILURES[mode]
    assert result.console_tail[0] == "Linux version 6.99.0-tiny"
    assert result.seconds < 60.0  # the deadline: what ends or complains ends the boot


LOSSES = {
    "refuses": ("the guest was lost: QEMU died (exit status 1)", "qemu: cannot set up guest memory"),
    "killed": ("the guest was lost: QEMU died (killed by SIGKILL)", ""),
    "crashes": ("the guest was lost: QEMU died (exit status 3)", ""),
}


@pytest.mark.parametrize("mode", LOSSES)
def test_qemu_that_dies_leaves_the_proof_unknown(tmp_path: Path, cache: Path, mode: str) -> None:
    result = boot(tmp_path, cache, mode)
    assert result.status is ProofStatus.UNKNOWN
    ending, line = LOSSES[mode]
    assert result.ending == ending
    assert any(line in text for text in result.proofs[0].evidence)


@pytest.mark.parametrize(("start", "timeout"), [(0.5, 1000.0), (1000.0, 0.5)])
def test_qemu_that_hangs_at_start_is_lost(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, start: float, timeout: float
) -> None:
    monkeypatch.setattr(session, "START_SECONDS", start)
    result = boot(tmp_path, cache, "hangs-at-start", timeout=timeout)
    assert result.status is ProofStatus.UNKNOWN
    assert result.ending == "the guest was lost: QEMU did not start it"


def test_qemu_that_stops_answering_is_lost(tmp_path: Path, cache: Path) -> None:
    result = boot(tmp_path, cache, "stops-answering", timeout=0.5)
    assert result.status is ProofStatus.UNKNOWN
    assert result.ending == "the guest was lost: QEMU does not answer"


def test_guest_that_qemu_stops_is_lost(tmp_path: Path, cache: Path) -> None:
    result = boot(tmp_path, cache, "stops-the-guest")
    assert result.status is ProofStatus.UNKNOWN
    assert result.ending == "the guest was lost: QEMU stopped it with an internal error"


class TestAccelerator:
    """Choosing KVM, with the host's KVM out of the way."""

    @pytest.fixture(autouse=True)
    def _kvm(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(accelerator, "_KVM", tmp_path)
        monkeypatch.setattr(accelerator, "_NATIVE", {os.uname().machine: Arch.X86_64})
        monkeypatch.setattr(session, "START_SECONDS", 0.5)

    def test_kvm_that_hangs_in_spite_of_the_probe(
        self, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked: list[Path] = []
        monkeypatch.setattr(accelerator, "kvm_works", lambda arch, qemu: not asked.append(qemu))
        qemu = boot_helpers.fake_qemu(tmp_path, "works-without-kvm")
        request = replace(boot_helpers.request(tmp_path, cache=cache), qemu=qemu, accelerator=None)
        result = boot_kernel(request)
        assert (result.status, result.accelerator) == (ProofStatus.PASSED, "tcg")
        assert boot_kernel(request).accelerator == "tcg"
        assert len(asked) == 1
        forced = boot_kernel(replace(request, accelerator=Accelerator.KVM))
        assert forced.status is ProofStatus.UNKNOWN

    def test_a_yes_is_kept_and_a_no_for_a_while(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        answers = iter([False, True])
        monkeypatch.setattr(accelerator, "kvm_works", lambda arch, qemu: next(answers))
        qemu = Path(boot_helpers.fake_qemu(tmp_path, "passes"))

        def choice() -> str:
            return choose_accelerator(Arch.X86_64, qemu, tmp_path / "cache")

        assert [choice(), choice()] == ["tcg", "tcg"]
        (note,) = (tmp_path / "cache/kvm").iterdir()
        os.utime(note, (0, 0))
        assert [choice(), choice()] == ["kvm", "kvm"]
        assert choose_accelerator(Arch.ARM64, qemu, tmp_path / "cache") == "tcg"

    def test_no_device_needs_no_probe(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(accelerator, "_KVM", tmp_path / "nothing")
        assert choose_accelerator(Arch.X86_64, Path("/no/qemu"), tmp_path) == "tcg"


def test_guest_that_hangs_fails_at_the_deadline_and_says_where(tmp_path: Path, cache: Path) -> None:
    result = boot(tmp_path, cache, "hangs", timeout=0.5)
    assert result.status is ProofStatus.FAILED
    assert result.ending == "the guest gave no verdict within 0.5 s"
    assert "CPU 0 was at RIP=ffffffff81000042" in result.proofs[0].evidence


def test_silent_guest_of_a_live_qemu_fails(tmp_path: Path, cache: Path) -> None:
    result = boot(tmp_path, cache, "silent-hang", timeout=0.5)
    assert result.status is ProofStatus.FAILED
    assert result.ending == "the guest gave no verdict within 0.5 s, and it never said anything"


def test_flood_is_cut_off(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "MAX_LOG_BYTES", 1 << 20)
    result = boot(tmp_path, cache, "floods")
    assert result.status is ProofStatus.FAILED
    assert result.ending == "the guest printed too much: the console log reached 1 MiB"
    assert (tmp_path / "console.log").stat().st_size == 1 << 20


def test_log_that_cannot_be_written(tmp_path: Path, cache: Path) -> None:
    request = replace(
        boot_helpers.request(tmp_path, cache=cache), qemu=boot_helpers.fake_qemu(tmp_path, "passes")
    )
    with pytest.raises(UsageError, match="cannot write the console log"):
        boot_kernel(replace(request, log=tmp_path / "bzImage" / "console.log"))
    with pytest.raises(UsageError, match="No space left on device"):
        boot_kernel(replace(request, log=Path("/dev/full")))


def test_device_as_log_is_not_removed(tmp_path: Path, cache: Path) -> None:
    request = replace(
        boot_helpers.request(tmp_path, cache=cache), qemu=boot_helpers.fake_qemu(tmp_path, "passes")
    )
    link = tmp_path / "link"
    link.symlink_to("/dev/null")
    assert boot_kernel(replace(request, log=link)).status is ProofStatus.PASSED
    assert link.is_symlink()
    assert Path("/dev/null").is_char_device()


def test_older_log_is_replaced(tmp_path: Path, cache: Path) -> None:
    log = tmp_path / "console.log"
    log.write_text("of another boot\n")
    with log.open() as other:
        boot(tmp_path, cache, "passes")
        assert other.read() == "of another boot\n"
    assert log.read_bytes() == b"Linux version 6.99.0-tiny\r\n"


def test_qemu_is_asked_for_nothing_but_a_machine(tmp_path: Path, cache: Path) -> None:
    argv = boot(tmp_path, cache, "passes").qemu
    assert {"-S", "-no-reboot", "-nodefaults", "-no-user-config"} <= set(argv)
    assert not any(word in " ".join(argv) for word in ("-net", "-nic", "-drive", "-hda"))


def test_options_that_rule_the_proof_out_are_named_and_nothing_is_booted(tmp_path: Path) -> None:
    config = {"BINFMT_ELF": "y", "TTY": "y", "SERIAL_8250": "y"}
    request = replace(
        boot_helpers.request(tmp_path), config=config, qemu=boot_helpers.fake_qemu(tmp_path, "passes")
    )
    result = boot_kernel(request)
    assert result.status is ProofStatus.NOT_APPLICABLE
    assert result.proofs[0].evidence == ("needs CONFIG_BLK_DEV_INITRD",)
    assert result.qemu == ()


def test_nothing_stays_open(tmp_path: Path, cache: Path) -> None:
    boot(tmp_path, cache, "passes")
    before = sorted(path.name for path in Path("/proc/self/fd").iterdir())
    boot(tmp_path, cache, "killed")
    boot(tmp_path, cache, "hangs", timeout=0.2)
    assert sorted(path.name for path in Path("/proc/self/fd").iterdir()) == before


class TestRealQemu:
    """What QEMU itself does with klto's command line."""

    @pytest.fixture(autouse=True)
    def _qemu(self) -> None:
        boot_helpers.need("qemu-system-x86_64")

    def boot(self, tmp_path: Path, cache: Path, text: bytes, then: str, timeout: float = 60.0) -> BootResult:
        kernel = boot_helpers.tiny_x86_kernel(text, then)
        return boot_kernel(replace(boot_helpers.request(tmp_path, kernel, cache=cache), timeout=timeout))

    def test_restart_ends_it(self, tmp_path: Path, cache: Path) -> None:
        result = self.boot(tmp_path, cache, b"hello from 16 bits\r\n", "reset")
        assert result.status is ProofStatus.FAILED
        assert result.ending == "the guest restarted without a verdict"
        assert result.console_tail == ("hello from 16 bits",)

    def test_silent_restart(self, tmp_path: Path, cache: Path) -> None:
        result = self.boot(tmp_path, cache, b"", "reset")
        assert result.status is ProofStatus.FAILED
        assert result.ending == "the guest restarted without a verdict, and it never said anything"

    def test_hang_is_located(self, tmp_path: Path, cache: Path) -> None:
        result = self.boot(tmp_path, cache, b"hello\r\n", "hang", timeout=2)
        assert result.status is ProofStatus.FAILED
        assert result.ending == "the guest gave no verdict within 2 s"
        assert any(line.startswith("CPU 0 was at EIP=") for line in result.proofs[0].evidence)

    def test_panic_that_does_not_end(self, tmp_path: Path, cache: Path) -> None:
        result = self.boot(tmp_path, cache, b"Kernel panic - not syncing: tiny\r\n", "hang")
        assert result.status is ProofStatus.FAILED
        assert result.ending == "the guest panicked"

    def test_flood(self, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(run, "MAX_LOG_BYTES", 1 << 16)
        result = self.boot(tmp_path, cache, b"over and over and over again\r\n", "again")
        assert result.status is ProofStatus.FAILED
        assert (tmp_path / "console.log").stat().st_size == 1 << 16


def test_console_limit_is_the_documented_one() -> None:
    assert console.MAX_LOG_BYTES == 8 * 1024 * 1024


@pytest.mark.parametrize("name", ["console", "uart", "virtio"])
def test_wires_take_what_a_guest_prints_while_klto_does_not_read(name: str) -> None:
    """A UART prints byte by byte; a socket is full after 278 of them."""
    with wires() as ends:
        os.set_blocking(ends.far[name], False)
        assert sum(os.write(ends.far[name], b"x") for _ in range(100_000)) == 100_000
        assert len(os.read(ends.near[name], 200_000)) == 100_000


def test_what_the_kernel_printed_before_a_record_is_read_before_it(tmp_path: Path) -> None:
    """A warning belongs to the proof that ran, however far behind klto is."""
    transcript, clock = Transcript("0123"), iter(range(1000))
    with (
        wires() as ends,
        (tmp_path / "log").open("wb", buffering=0) as log,
        selectors.DefaultSelector() as selector,
    ):
        printed = Console(log, lambda: float(next(clock)))
        session = Session(ends, printed, transcript, Stopwatch(), 60.0)
        for name, end in ends.near.items():
            selector.register(end, selectors.EVENT_READ, name)
        os.write(
            ends.far["console"], b"line\n" * 40_000 + b"WARNING: CPU: 0 PID: 1 at kernel/x.c:7 f+0x1/0x2\n"
        )
        os.write(ends.far["uart"], b"klto:0123 0 end init passed :0123\n")
        assert session._read(selector, 1.0)
        assert len(printed.reports) == 1
        assert transcript.end("init") is not None


def test_draining_ends_with_a_guest_that_prints_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "MAX_VERDICT_BYTES", 1000)
    with (
        wires() as ends,
        (tmp_path / "log").open("wb", buffering=0) as log,
        selectors.DefaultSelector() as selector,
    ):
        watched = Session(ends, Console(log, lambda: 0.0), Transcript("0123"), Stopwatch(), 60.0)
        selector.register(ends.near["uart"], selectors.EVENT_READ, "uart")
        read, reads = watched._read, []

        def again(selector: selectors.BaseSelector, seconds: float) -> bool:
            reads.append(os.write(ends.far["uart"], b"x" * 600))
            assert len(reads) < 10
            return read(selector, seconds)

        monkeypatch.setattr(watched, "_read", again)
        watched._drain(selector)
        assert len(reads) == 2
