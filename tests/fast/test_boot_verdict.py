"""The pure parts: console reports, QMP, records and the verdict, image headers, QEMU's command line."""

from __future__ import annotations

import io
import json
import struct
from pathlib import Path

import boot_helpers
import pytest
from hypothesis import given
from hypothesis import strategies as st

from klto.boot.accelerator import run_probe
from klto.boot.catalog import PROOFS, missing_options, select_proofs
from klto.boot.console import MAX_LINE, Console, LineReader, Report, ReportKind, find_report
from klto.boot.guest import Compiler
from klto.boot.images import Arch, find_built_image, read_image
from klto.boot.proofs import Course, Finding, ProofStatus, Step, Transcript, judge
from klto.boot.qemu import Accelerator, find_qemu
from klto.boot.qmp import Qmp
from klto.boot.subject import Subject
from klto.errors import UsageError

REPORTS = {
    "Kernel panic - not syncing: Attempted to kill init! exitcode=0x0000000b": ReportKind.PANIC,
    "[    1.5][    T1] Kernel panic - not syncing: VFS: Unable to mount root fs": ReportKind.PANIC,
    "PANIC: early exception 0x0e IP 10:ffffffff81 error 0 cr2 0x0": ReportKind.PANIC,
    " -- System halted": ReportKind.PANIC,
    "[    2.0] Oops: 0002 [#1] PREEMPT SMP": ReportKind.OOPS,
    "Oops: general protection fault, probably for non-canonical address 0x1: 0000 [#1] SMP": ReportKind.OOPS,
    "invalid opcode: 0000 [#1] PREEMPT SMP NOPTI": ReportKind.OOPS,
    "Internal error: Oops - BRK: 00000000f2008222 [#1] SMP": ReportKind.OOPS,
    "Unable to handle kernel NULL pointer dereference at virtual address 0000000000000000": ReportKind.OOPS,
    "BUG: kernel NULL pointer dereference, address: 0000000000000008": ReportKind.BUG,
    "[   30.0] watchdog: BUG: soft lockup - CPU#0 stuck for 26s! [init:1]": ReportKind.BUG,
    "kernel BUG at mm/slub.c:448!": ReportKind.BUG,
    "BUG: KASAN: slab-out-of-bounds in f+0x1/0x2": ReportKind.BUG,
    "WARNING: CPU: 0 PID: 1 at kernel/sched/core.c:100 f+0x12/0x34": ReportKind.WARNING,
    "WARNING: kernel/sched/core.c:100 at f+0x12/0x34, CPU#0: init/1": ReportKind.WARNING,
    "WARNING: possible circular locking dependency detected": ReportKind.WARNING,
    "WARNING: suspicious RCU usage": ReportKind.WARNING,
    "CFI failure at f+0x5/0x10 (target: g+0x0/0x10; expected type: 0x12345678)": ReportKind.CFI,
}

#: Lines of good boots, or of a program's output, that name the words.
HARMLESS = [
    "Spectre V2 : WARNING: Unprivileged eBPF is enabled",
    "Kernel command line: panic=-1 oops=panic console=ttyS0",
    "Warning: unable to open an initial console.",
    "ACPI BIOS Error (bug): Could not resolve symbol",
    "DEBUG: nothing",
    "Run /init as init process",
    "klto: says Kernel panic - not syncing",
    "reboot: System halted",
    "",
]


@pytest.mark.parametrize("line", REPORTS)
def test_reports_are_seen(line: str) -> None:
    assert find_report(line) is REPORTS[line]


@pytest.mark.parametrize("line", HARMLESS)
def test_harmless_lines_are_no_reports(line: str) -> None:
    assert find_report(line) is None


@given(
    st.lists(st.sampled_from([b"a", b"\xc3\xa9", b"\n", b"\r\n", b"\xff", b"\x1b[1m"]), max_size=60).map(
        b"".join
    ),
    st.lists(st.integers(1, 9), max_size=20),
)
def test_lines_do_not_depend_on_how_bytes_arrive(data: bytes, cuts: list[int]) -> None:
    whole: list[str] = []
    pieces: list[str] = []
    reader = LineReader(whole.append)
    reader.feed(data)
    reader.close()
    reader = LineReader(pieces.append)
    at = 0
    for cut in [*cuts, len(data)]:
        reader.feed(data[at : at + cut])
        at += cut
    reader.close()
    assert whole == pieces


def test_endless_line_comes_in_pieces() -> None:
    lines: list[str] = []
    LineReader(lines.append).feed(b"x" * (3 * MAX_LINE))
    assert [len(line) for line in lines] == [MAX_LINE, MAX_LINE]


def test_terminal_sequences_are_taken_out() -> None:
    lines: list[str] = []
    LineReader(lines.append).feed(b"\x1b[2J\x1b[1;31mred\x07\r\n")
    assert lines == ["red"]


def test_console_keeps_bytes_up_to_the_limit() -> None:
    log = io.BytesIO()
    console = Console(log, lambda: 1.5, limit=20)
    console.feed(b"0123456789\nBUG: ")
    assert not console.full
    console.feed(b"abc\nmore\n")
    assert console.full
    console.feed(b"still more\n")
    assert log.getvalue() == b"0123456789\nBUG: abc\n"
    assert console.reports == [Report(ReportKind.BUG, "BUG: abc", 1.5)]
    assert list(console.tail) == ["0123456789", "BUG: abc"]


def test_last_line_without_an_end_counts() -> None:
    console = Console(io.BytesIO(), lambda: 0.0)
    console.feed(b"Kernel panic - not syncing")
    console.close()
    assert console.panicked


class TestQmp:
    GREETING = (
        b'{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}}, "capabilities": []}}\r\n'
    )

    def session(self) -> tuple[Qmp, list[bytes]]:
        sent: list[bytes] = []
        return Qmp(sent.append), sent

    def test_start(self) -> None:
        qmp, sent = self.session()
        for byte in self.GREETING:
            qmp.feed(bytes([byte]))
        assert qmp.version == "7.2.22"
        assert [json.loads(line)["execute"] for line in sent] == ["qmp_capabilities", "cont"]
        assert not qmp.running
        qmp.feed(b'{"return": {}, "id": "capabilities"}\n{"return": {}, "id": "cont"}\n')
        assert qmp.running

    def test_end(self) -> None:
        qmp, _ = self.session()
        qmp.feed(b'{"event": "SHUTDOWN", "data": {"guest": true, "reason": "guest-reset"}}\n')
        assert qmp.shutdown_reason == "guest-reset"

    def test_where(self) -> None:
        qmp, _ = self.session()
        qmp.feed(b'{"return": "CPU#0\\r\\n PC=ffff800080010000 X00=0", "id": "where"}\n')
        assert qmp.where == "PC=ffff800080010000"

    @given(st.binary(max_size=200))
    def test_garbage_is_ignored(self, data: bytes) -> None:
        qmp, _ = self.session()
        qmp.feed(data + b'\n[1]\n{"QMP": 3}\n{"event": "SHUTDOWN"}\n{"id": "where"}\n')
        assert qmp.version == "unknown"


NONCE = "00ff" * 8


def told(*records: str, nonce: str = NONCE) -> Transcript:
    """A transcript of records that came one second apart."""
    transcript = Transcript(nonce)
    for number, text in enumerate(records):
        transcript.take(f"klto:{nonce} {number} {text} :{nonce}", float(number))
    return transcript


GOOD = ("hello virtio-console", "begin init", "fact init release 6.99.0-tiny", "fact init machine x86_64")


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "bzImage"
    path.write_bytes(boot_helpers.tiny_x86_kernel())
    return path


class TestTranscript:
    def test_same_record_by_two_channels_counts_once(self) -> None:
        transcript = told(*GOOD)
        transcript.take(f"klto:{NONCE} 2 fact init release 5.0 :{NONCE}", 9.0)
        assert transcript.facts("init")["release"] == "6.99.0-tiny"

    def test_a_line_before_it_does_not_hide_a_record(self) -> None:
        transcript = Transcript(NONCE)
        transcript.take(f"random: crng init donklto:{NONCE} 0 done x :{NONCE}", 0.0)
        assert transcript.done

    @pytest.mark.parametrize(
        "line",
        [
            "klto: 0 done x :",
            f"klto:{'0' * 32} 0 done x :{'0' * 32}",
            f"klto:{NONCE} 0 done x",
            f"klto:{NONCE} 0 done x :{NONCE[:-1]}",
            f"{NONCE}",
            f"klto:{NONCE} done x :{NONCE}",
        ],
    )
    def test_what_is_no_record(self, line: str) -> None:
        transcript = Transcript(NONCE)
        transcript.take(line, 0.0)
        assert not transcript.done


class TestJudge:
    def course(self, transcript: Transcript, *reports: Report, lost: bool = False) -> Course:
        return Course(transcript, reports, "the guest ended", lost, 10.0, ("a note",))

    def init(self, image: Path) -> tuple[Step, ...]:
        return PROOFS["init"].prepare(Subject(read_image(image), Compiler(Path("clang"), Path("ld.lld"))))

    def one(self, image: Path, course: Course) -> tuple[ProofStatus, tuple[str, ...]]:
        (result,) = judge(self.init(image), course)
        return result.status, result.evidence

    def test_passed(self, image: Path) -> None:
        status, evidence = self.one(image, self.course(told(*GOOD, "end init passed", "done x")))
        assert status is ProofStatus.PASSED
        assert evidence == ("release: 6.99.0-tiny", "machine: x86_64", "verdict: over virtio-console")

    def test_report_after_the_verdict_fails_it(self, image: Path) -> None:
        report = Report(ReportKind.WARNING, "WARNING: CPU: 0", 9.0)
        status, evidence = self.one(image, self.course(told(*GOOD, "end init passed", "done x"), report))
        assert status is ProofStatus.FAILED
        assert evidence[0] == "WARNING: WARNING: CPU: 0"

    def test_other_machine_fails_it(self, image: Path) -> None:
        records = [record.replace("x86_64", "aarch64") for record in GOOD]
        status, evidence = self.one(image, self.course(told(*records, "end init passed")))
        assert status is ProofStatus.FAILED
        assert evidence[0] == "the guest says it is 'aarch64', not 'x86_64'"

    @pytest.mark.parametrize("said", ["", "odd", "passedly", "PASSED"])
    def test_odd_status_fails_it(self, image: Path, said: str) -> None:
        status, _ = self.one(image, self.course(told(*GOOD, f"end init {said}")))
        assert status is ProofStatus.FAILED

    def test_lost_machine_is_unknown_unless_the_kernel_complained(self, image: Path) -> None:
        status, evidence = self.one(image, self.course(told(), lost=True))
        assert status is ProofStatus.UNKNOWN
        assert evidence == ("the guest ended", "a note")
        report = Report(ReportKind.PANIC, "Kernel panic", 1.0)
        status, _ = self.one(image, self.course(told(), report, lost=True))
        assert status is ProofStatus.FAILED

    def test_proofs_share_a_boot(self, image: Path) -> None:
        plan = [*self.init(image), *(Step(name, lambda heard: Finding(None)) for name in "abc")]
        records = (*GOOD, "end init passed", "begin a", "end a not-applicable no such thing", "begin b")
        report = Report(ReportKind.OOPS, "Oops: 0", 8.0)
        results = judge(plan, self.course(told(*records), report))
        assert [result.status for result in results] == ["passed", "not-applicable", "failed", "unknown"]
        assert [result.seconds for result in results] == [4.0, 2.0, 4.0, 0.0]
        assert results[1].evidence == ("no such thing",)
        assert results[3].evidence == ("not run: b did not finish",)

    def test_purgatory_warning_fails_kexec_though_the_jump_works(self) -> None:
        """The line of kernel/kexec_file.c before 6.1.192, with a purgatory that has several .text sections."""
        transcript = told(
            "hello x",
            "begin kexec",
            "begin kexec-end",
            "fact kexec-end second reached init",
            "end kexec-end passed",
        )
        step = Step("kexec", lambda heard: Finding(None, tuple(heard.facts)), successor=())
        line = "WARNING: CPU: 0 PID: 1 at kernel/kexec_file.c:945 kexec_load_purgatory+0x39f/0x3c0"
        (good,) = judge([step], self.course(transcript))
        (bad,) = judge([step], self.course(transcript, Report(ReportKind.WARNING, line, 1.5)))
        assert (good.status, good.evidence[0]) == (ProofStatus.PASSED, "second")
        assert (bad.status, bad.evidence) == (ProofStatus.FAILED, (f"WARNING: {line}",))

    def test_kernel_may_end_of_a_step_that_is_meant_to(self) -> None:
        report = Report(ReportKind.CFI, "CFI failure at x", 2.0)
        step = Step("cfi", lambda heard: Finding(None if heard.reports else "silence"), dies=True)
        begun = told("hello x", "begin cfi")
        assert judge([step], self.course(begun, report))[0].status is ProofStatus.PASSED
        assert judge([step], self.course(begun))[0].evidence == ("silence", "the guest ended", "a note")
        assert judge([step], self.course(told("hello x"), report))[0].status is ProofStatus.FAILED
        assert judge([step], self.course(begun, lost=True))[0].status is ProofStatus.UNKNOWN


def test_unknown_proof_names_those_that_exist() -> None:
    with pytest.raises(UsageError, match="no proof is called 'inti'") as caught:
        select_proofs(["init", "inti"])
    assert caught.value.hint is not None
    assert caught.value.hint.startswith("proofs: init, initcalls, ")
    assert [proof.name for proof in select_proofs([])] == list(PROOFS)
    assert len(select_proofs(["init", "init"])) == 1


def test_kernel_without_a_channel_is_told_so() -> None:
    config = {"BLK_DEV_INITRD": "y", "BINFMT_ELF": "y", "SERIAL_8250": "m"}
    (line,) = missing_options(PROOFS["init"], Arch.X86_64, config)
    assert line == "needs CONFIG_VIRTIO_CONSOLE or CONFIG_SERIAL_8250: the guest could not report"
    assert missing_options(PROOFS["init"], Arch.X86_64, config | {"SERIAL_8250": "y"}) == ()


class TestImages:
    def test_good_ones(self, tmp_path: Path, image: Path) -> None:
        read = read_image(image)
        assert (read.arch, read.release) == (Arch.X86_64, "6.99.0-tiny")
        for name, data in (
            ("Image", boot_helpers.tiny_arm64_image()),
            ("Image.gz", boot_helpers.tiny_arm64_gz()),
        ):
            (tmp_path / name).write_bytes(data)
            assert read_image(tmp_path / name, Arch.ARM64).arch is Arch.ARM64

    def bad(self, tmp_path: Path, data: bytes, arch: Arch | None = None) -> str:
        path = tmp_path / "image"
        path.write_bytes(data)
        with pytest.raises(UsageError) as caught:
            read_image(path, arch)
        assert "\n" not in caught.value.message
        return caught.value.message

    def test_missing(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match=r"cannot read kernel image .*: No such file"):
            read_image(tmp_path / "nothing")
        with pytest.raises(UsageError, match="is a directory"):
            read_image(tmp_path)

    def test_contents(self, tmp_path: Path) -> None:
        kernel = boot_helpers.tiny_x86_kernel()
        old, narrow = bytearray(kernel), bytearray(kernel)
        struct.pack_into("<H", old, 0x206, 0x205)
        narrow[0x236] = 0
        big_endian = bytearray(boot_helpers.tiny_arm64_image())
        big_endian[24] |= 1
        zipped = boot_helpers.tiny_arm64_gz()
        assert self.bad(tmp_path, b"").endswith("is empty")
        assert "is not a kernel image" in self.bad(tmp_path, b"hello\n")
        assert "is not a kernel image" in self.bad(tmp_path, bytes(100000))
        assert "truncated: 1100 of 1536 bytes" in self.bad(tmp_path, kernel[:1100])
        assert "older than 2.12" in self.bad(tmp_path, bytes(old))
        assert "32-bit" in self.bad(tmp_path, bytes(narrow))
        assert "big-endian" in self.bad(tmp_path, bytes(big_endian))
        assert "is an ELF file" in self.bad(tmp_path, b"\x7fELF" + bytes(100))
        assert "zboot" in self.bad(tmp_path, b"MZ\0\0zimg" + bytes(100))
        assert "truncated" in self.bad(tmp_path, zipped[:-9])
        assert "damaged" in self.bad(tmp_path, zipped[:12] + b"\xff\xff\xff\xff" + zipped[16:])
        assert "is an x86_64 kernel, not arm64" in self.bad(tmp_path, kernel, Arch.ARM64)

    @given(st.binary(max_size=2000))
    def test_garbage_is_refused_in_one_line(
        self, tmp_path_factory: pytest.TempPathFactory, data: bytes
    ) -> None:
        folder = tmp_path_factory.mktemp("garbage")
        self.bad(folder, data)
        self.bad(folder, b"\x1f\x8b\x08" + data)

    def test_built_image(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="no kernel image"):
            find_built_image(tmp_path, Arch.ARM64)
        folder = tmp_path / "arch/arm64/boot"
        folder.mkdir(parents=True)
        (folder / "Image.gz").touch()
        assert find_built_image(tmp_path, Arch.ARM64).name == "Image.gz"
        (folder / "Image").touch()
        assert find_built_image(tmp_path, Arch.ARM64).name == "Image"


def test_missing_qemu_names_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for arch, package in ((Arch.X86_64, "qemu-system-x86"), (Arch.ARM64, "qemu-system-arm")):
        with pytest.raises(UsageError, match="is not in PATH") as caught:
            find_qemu(arch)
        assert caught.value.hint == f"install it: sudo apt-get install {package}"
    with pytest.raises(UsageError, match="cannot run /no/qemu"):
        find_qemu(Arch.X86_64, "/no/qemu")


@pytest.mark.parametrize("arch", list(Arch))
def test_probe_runs_to_its_end_where_it_can(arch: Arch) -> None:
    program = {Arch.X86_64: "qemu-system-x86_64", Arch.ARM64: "qemu-system-aarch64"}[arch]
    boot_helpers.need(program)
    assert run_probe(arch, find_qemu(arch), Accelerator.TCG, seconds=60)


def test_probe_that_hangs_or_is_refused_says_no(tmp_path: Path) -> None:
    for mode in ("hangs-at-start", "refuses"):
        qemu = Path(boot_helpers.fake_qemu(tmp_path, mode))
        assert not run_probe(Arch.X86_64, qemu, Accelerator.KVM, seconds=0.2)
