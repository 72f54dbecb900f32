"""What the guest gets: the cpio archive against cpio(1), the init against readelf, and the init at work."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import tempfile
from pathlib import Path

import boot_helpers
import pytest
from hypothesis import given
from hypothesis import strategies as st

from klto.boot import guest
from klto.boot.guest import Compiler, base_initramfs, boot_archive, compile_init
from klto.boot.images import Arch
from klto.boot.initramfs import DEVICES, Entry, archive, character_device, directory, regular
from klto.boot.proof_initcalls import kernel_log
from klto.boot.proofs import Transcript
from klto.errors import UsageError


def cpio(data: bytes, *options: str, cwd: Path | None = None) -> str:
    """What cpio(1) says about an archive."""
    done = subprocess.run(
        [boot_helpers.need("cpio"), *options], input=data, capture_output=True, check=False, cwd=cwd
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.decode()


def test_cpio_lists_what_was_put_in() -> None:
    data = archive((*DEVICES, regular("init", b"x" * 5, executable=True)))
    names = ["dev", *(entry.name for entry in DEVICES[1:]), "init"]
    assert cpio(data, "-t", "--quiet").split() == names
    listing = cpio(data, "-tv", "--quiet").splitlines()
    console = next(line for line in listing if line.endswith("dev/console"))
    assert console.startswith("crw-------")
    assert "5,   1" in console
    assert listing[-1].startswith("-rwxr-xr-x")
    assert listing[0].startswith("drwxr-xr-x")


@given(
    st.lists(
        st.tuples(st.from_regex(r"[a-z0-9._é-]{1,40}", fullmatch=True), st.binary(max_size=9)),
        max_size=5,
        unique_by=lambda pair: pair[0],
    ).filter(lambda pairs: all(name not in (".", "..") for name, _ in pairs))
)
def test_cpio_extracts_what_was_put_in(
    tmp_path_factory: pytest.TempPathFactory, pairs: list[tuple[str, bytes]]
) -> None:
    folder = tmp_path_factory.mktemp("cpio")
    data = archive([directory("d"), *(regular(f"d/{name}", content) for name, content in pairs)])
    assert len(data) % 4 == 0
    cpio(data, "-i", "--quiet", cwd=folder)
    assert {path.name: path.read_bytes() for path in (folder / "d").iterdir()} == dict(pairs)


@pytest.mark.parametrize("name", ["", "/init", "a\0b"])
def test_names_that_no_archive_can_hold(name: str) -> None:
    with pytest.raises(ValueError, match="not a name"):
        archive([regular(name, b"")])


def test_device_numbers_are_hexadecimal_fields() -> None:
    header = archive([character_device("dev/hvc0", 229, 0)])[:110]
    assert header[6 + 8 * 9 : 6 + 8 * 11] == b"000000e5" + b"00000000"  # c_rmaj, c_rmin
    assert int(header[14:22], 16) == stat.S_IFCHR | 0o600


@pytest.mark.parametrize("arch", list(Arch))
@pytest.mark.parametrize("suffix", boot_helpers.CLANGS or [None])
def test_init_is_a_static_executable_without_warnings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arch: Arch, suffix: str | None
) -> None:
    flags = (*guest._CFLAGS, "-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Werror")
    monkeypatch.setattr(guest, "_CFLAGS", flags)
    program = compile_init(arch, boot_helpers.compiler(suffix), tmp_path)
    shown = subprocess.run(
        [boot_helpers.need("readelf"), "-hlW", program], capture_output=True, text=True, check=True
    ).stdout
    machine = {Arch.X86_64: "X86-64", Arch.ARM64: "AArch64"}[arch]
    assert machine in shown
    assert "EXEC (Executable file)" in shown
    assert "INTERP" not in shown
    assert "DYNAMIC" not in shown
    assert "RWE" not in shown


class TestInitAtWork:
    """klto's init as process 1 of a namespace, where reboot(2) ends the namespace and nothing else.

    Both a user and a process namespace are asked for: in a user namespace alone, reboot(2) is refused.
    """

    PLAN = "nonce 0123abcd\nproof init\nproof nonsense\n"

    def run(self, tmp_path: Path, channel: str | None, plan: str = PLAN, log: bytes | None = None) -> str:
        """Run the init with these files for devices; what it wrote to the channel."""
        if os.uname().machine != "x86_64":
            boot_helpers.missing("an x86_64 host")
        root = tmp_path / "root"
        for name in ("dev", "klto"):
            (root / name).mkdir(parents=True)
        (root / "dev/null").touch()
        if channel:
            (root / channel).touch()
        if log is not None:
            (root / "dev/kmsg").write_bytes(log)
        (root / "klto/plan").write_text(plan)
        program = compile_init(Arch.X86_64, boot_helpers.compiler(), tmp_path)
        program.chmod(0o755)
        program.rename(root / "init")
        unshare = [boot_helpers.need("unshare"), "--user", "--map-root-user", "--pid", "--fork"]
        if subprocess.run([*unshare, "true"], capture_output=True, check=False).returncode != 0:
            boot_helpers.missing("the right to make a user namespace")
        done = subprocess.run([*unshare, f"--root={root}", "/init"], check=False, timeout=60)
        # pid_namespaces(7): after a restart the parent sees that SIGHUP ended process 1.
        assert done.returncode in (-signal.SIGHUP, 128 + signal.SIGHUP)
        return (root / channel).read_text() if channel else ""

    @pytest.mark.parametrize(
        ("device", "name"),
        [
            ("dev/hvc0", "virtio-console"),
            ("dev/ttyS1", "second-uart"),
            ("dev/kmsg", "kernel-log"),
            ("dev/console", "console"),
        ],
    )
    def test_reports_over_the_channel_there_is(self, tmp_path: Path, device: str, name: str) -> None:
        transcript = Transcript("0123abcd")
        for line in self.run(tmp_path, device).splitlines():
            transcript.take(line, 0.0)
        assert transcript.channel == name
        assert transcript.facts("init")["release"] == os.uname().release
        assert transcript.facts("init")["version"] == os.uname().version
        assert transcript.facts("init")["cpus"] == str(len(os.sched_getaffinity(0)))
        end, other = transcript.end("init"), transcript.end("nonsense")
        assert end is not None
        assert end.text == "passed"
        assert other is not None
        assert other.text == "not-applicable this init does not know the proof"
        assert transcript.done

    def test_kernel_log_records_pass_every_log_level(self, tmp_path: Path) -> None:
        assert all(line.startswith("<0>klto:") for line in self.run(tmp_path, "dev/kmsg").splitlines())

    @pytest.mark.parametrize("case", ["whole", "beginning lost", "no init", "shared channel", "no log"])
    def test_sends_what_the_kernel_s_log_has_of_initcalls(self, tmp_path: Path, case: str) -> None:
        long = f"initcall {'x' * 600}+0x0/0x3 returned 0 after 1 usecs"
        texts = [
            "Linux version 6.12.0",
            "calling  a+0x0/0x3 @ 1",
            "Run away",
            long,
            "Run /init as init process",
        ]
        texts.append("calling  of_a_module+0x0/0x3 @ 1")
        if case == "no init":
            del texts[4:]
        first = 7 if case == "beginning lost" else 0
        records = (f"7,{first + at},{at},-;{text}\n SUBSYSTEM=x\n" for at, text in enumerate(texts))
        # A file has no records: of these each read gets one (init reads up to 8191 bytes).
        log = b"".join(record.encode().ljust(8191) for record in records) if case != "no log" else None
        device = "dev/kmsg" if case == "shared channel" else "dev/hvc0"
        transcript = Transcript("0123abcd")
        for line in self.run(tmp_path, device, "nonce 0123abcd\nproof initcalls\n", log).splitlines():
            transcript.take(line, 0.0)
        assert transcript.end("initcalls") is not None
        found = kernel_log(transcript.facts("initcalls"))
        if case == "shared channel":
            assert transcript.facts("initcalls") == {}, "they would go by way of the console"
        if case != "whole":
            assert found is None
        else:
            first_line, second = (found or "").splitlines()
            assert first_line == texts[1]
            assert long.startswith(second)
            assert len(second) > 400

    def test_ends_without_a_channel(self, tmp_path: Path) -> None:
        self.run(tmp_path, None)

    @pytest.mark.parametrize("plan", ["", "proof init\n", "nonce 1", "x" * 10000])
    def test_odd_plans_end_too(self, tmp_path: Path, plan: str) -> None:
        assert "done" in self.run(tmp_path, "dev/ttyS1", plan)


def test_initramfs_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tools = boot_helpers.compiler()
    made = base_initramfs(Arch.X86_64, tools, tmp_path)

    def never(*_: object) -> Path:
        raise AssertionError("compiled again")

    monkeypatch.setattr(guest, "compile_init", never)
    assert base_initramfs(Arch.X86_64, tools, tmp_path) == made
    with pytest.raises(AssertionError, match="compiled again"):
        base_initramfs(Arch.ARM64, tools, tmp_path)


def test_damaged_cache_is_not_believed(tmp_path: Path) -> None:
    tools = boot_helpers.compiler()
    made = base_initramfs(Arch.X86_64, tools, tmp_path)
    (cached,) = (tmp_path / "initramfs").iterdir()
    cached.write_bytes(made[:1000])
    assert base_initramfs(Arch.X86_64, tools, tmp_path) == made


def test_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "initramfs").write_text("a file where the folder should be")
    assert b"TRAILER!!!" in base_initramfs(Arch.X86_64, boot_helpers.compiler(), tmp_path)


def test_no_temporary_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nothing"))
    with pytest.raises(UsageError, match="temporary directory: No such file"):
        base_initramfs(Arch.X86_64, boot_helpers.compiler(), tmp_path / "cache")


def test_compiler_that_fails_is_shown(tmp_path: Path) -> None:
    broken = tmp_path / "clang"
    broken.write_text("#!/bin/sh\necho 'error: unknown target triple' >&2\nexit 1\n")
    broken.chmod(0o755)
    with pytest.raises(UsageError, match="cannot compile klto's init") as caught:
        base_initramfs(Arch.X86_64, Compiler(broken, broken), tmp_path / "cache")
    assert "error: unknown target triple" in caught.value.details


def test_compiler_that_is_not_there(tmp_path: Path) -> None:
    nothing = tmp_path / "clang"
    with pytest.raises(UsageError, match=r"cannot run .*clang: No such file"):
        base_initramfs(Arch.X86_64, Compiler(nothing, nothing), tmp_path)


def test_boot_archive_holds_the_plan_and_more() -> None:
    data = boot_archive(
        "feed", ["proof init", "proof other"], [Entry("extra", stat.S_IFREG | 0o644, b"more")]
    )
    assert b"nonce feed\nproof init\nproof other\n" in data
    assert cpio(data, "-t", "--quiet").split() == ["klto/plan", "extra"]
