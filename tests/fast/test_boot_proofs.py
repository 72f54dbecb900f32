"""What each proof makes of what a boot gave: pure checks, and what klto reads from modules and makes for the guest."""

from __future__ import annotations

import errno
import gzip
import multiprocessing
import os
import subprocess
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import boot_helpers
import pytest

from klto.boot import proof_cfi, proof_el2, proof_modules, proof_names, proof_trim, reservation
from klto.boot.catalog import PROOFS, combine, divide, missing_options, prepare_steps, select_proofs
from klto.boot.console import Report, ReportKind
from klto.boot.images import Arch, KernelImage
from klto.boot.kernel_modules import (
    ModuleFile,
    in_load_order,
    modinfo,
    read_symvers,
    version_problems,
    versions,
)
from klto.boot.proof_config import compare as compare_config
from klto.boot.proof_initcalls import compare as compare_initcalls
from klto.boot.proof_initcalls import judge as judge_initcalls
from klto.boot.proof_initcalls import linked_initcalls
from klto.boot.proofs import Finding, Heard, Place, ProofResult, ProofStatus, Step
from klto.boot.qemu import Accelerator
from klto.boot.reservation import reserved
from klto.boot.subject import Subject
from klto.build.boot import judge_boot
from klto.errors import ProofError, UsageError
from klto.kernel.initcalls import Initcall
from klto.kernel.ksyms_audit import Audit, Missing
from klto.objects.elf import Elf


def subject(arch: Arch = Arch.X86_64, config: Mapping[str, str] | None = None) -> Subject:
    image = KernelImage(Path("image"), arch, "6.99.0")
    return Subject(image, boot_helpers.compiler(), config=config)


class TestInitcalls:
    EXPECTED = tuple(
        Initcall("o.o", "kmod_m", str(n), "1", f"f{n}", level)
        for n, level in enumerate(["con", "6", "6", "7"])
    )
    BEHIND = "Run /init as init process\ncalling  late+0x0/0x10 [m] @ 1\n"

    def console(self, *order: int) -> str:
        lines = []
        for n in order:
            stub = f"__initstub__kmod_m__{n}_1_f{n}{self.EXPECTED[n].level}"
            lines += [
                f"calling  {stub}+0x0/0x10 @ 1",
                f"initcall {stub}+0x0/0x10 returned 0 after {n}000 usecs",
            ]
        return "\n".join(lines) + "\n" + self.BEHIND

    def test_order_of_the_objects_passes_with_the_slowest_first(self) -> None:
        found = compare_initcalls(self.EXPECTED, self.console(1, 2, 3))
        assert found.problem is None
        assert found.evidence[:2] == ("3 initcalls in the objects' order, each once", "3.0 ms  f3 (level 7)")

    @pytest.mark.parametrize(
        ("order", "problem"),
        [((2, 1, 3), "initcall 0 was kmod_m__2_1_f26"), ((1, 2), "initcall 2 was nothing"),
         ((1, 2, 3, 1), "initcall 3 was kmod_m__1_1_f16"), ((1, 1, 2, 3), "initcall 1 was kmod_m__1_1_f16"),
         ((), "no initcall was traced")],
    )  # fmt: skip
    def test_another_order_fails(self, order: tuple[int, ...], problem: str) -> None:
        found = compare_initcalls(self.EXPECTED, self.console(*order))
        assert (found.problem or "").startswith(problem)

    def test_a_console_that_loses_a_byte_does_not_matter(self) -> None:
        """As it came from a busy machine: ``calling  __initstub__kmodnmi__254_106_nmi_warning_debugfs5``."""
        lines = self.console(1, 2, 3).removesuffix(self.BEHIND).splitlines()
        damaged = self.console(1, 2, 3).replace("kmod_m__2", "kmodm__2")
        facts = {f"@{number}": f"{len(text)} {text}" for number, text in enumerate(lines)}
        said = {"whole": "1", "sent": str(len(lines)), **facts}
        found = judge_initcalls(self.EXPECTED, Heard(said, damaged))
        assert (found.problem, found.evidence[-1]) == (None, "read in the kernel's log")
        # The log has lost its beginning, a record was lost or damaged on the way, /dev/kmsg cannot be read.
        lost = {key: value for key, value in said.items() if key != "@3"}
        for less in (
            {**said, "whole": "0"}, lost, {**lost, "@3calling": "x"}, {**said, "@3": facts["@3"][:-1]},
            {**said, "@3": "x"}, {"whole": "1"}, {},
        ):  # fmt: skip
            found = judge_initcalls(self.EXPECTED, Heard(less, damaged))
            assert "was kmodm__2" in (found.problem or "")
            assert "loses bytes" in found.evidence[-1]

    def test_a_console_has_two_lines_of_each_call(self) -> None:
        once = self.console(1, 2, 3).replace("kmod_m__2", "kmodm__2", 1)
        found = judge_initcalls(self.EXPECTED, Heard({}, once))
        assert found.problem is None
        assert found.evidence[0] == "3 initcalls in the objects' order, each once"
        found = judge_initcalls(self.EXPECTED, Heard({}, self.console(2, 1, 3)))
        assert (found.problem or "").startswith("initcall 0 was kmod_m__2_1_f26")

    def test_initcalls_of_libraries_count_when_the_linker_took_them(self, tmp_path: Path) -> None:
        """Without CONFIG_MODULES lib/lib.a is linked on demand."""
        for name in ("own", "taken", "left"):
            text = f'.section .initcall4.init,"aw"\n__initcall__kmod_{name}__1_2_{name}_init4: .long 0\n'
            source, made = tmp_path / f"{name}.s", tmp_path / f"{name}.o"
            source.write_text(text)
            subprocess.run([boot_helpers.compiler().clang, "-c", source, "-o", made], check=True)
        ar = boot_helpers.compiler().clang.with_name("llvm-ar")
        for archive, names in (("vmlinux.a", ["own"]), ("lib.a", ["taken", "left"]), ("none.a", [])):
            subprocess.run(
                [ar, "cDPrST", archive, *(f"{name}.o" for name in names)], cwd=tmp_path, check=True
            )
        words = "ld.lld -r -o vmlinux.o --whole-archive vmlinux.a --no-whole-archive lib.a none.a"
        (tmp_path / ".vmlinux.o.cmd").write_text(f"savedcmd_vmlinux.o := {words}\n")
        assert [call.function for call in linked_initcalls(tmp_path)] == ["own_init"]
        names = ("own", "taken")
        lines = [f"ffffffff81962fbc d __initcall__kmod_{name}__1_2_{name}_init4\n" for name in names]
        (tmp_path / "System.map").write_text("".join(lines))
        assert [call.function for call in linked_initcalls(tmp_path)] == ["own_init", "taken_init"]

    def test_build_says_what_was_wrong_and_not_that_the_guest_ended(self) -> None:
        def fake_result(ending: str, *evidence: str) -> Any:
            proof = SimpleNamespace(name="initcalls", status="failed", evidence=evidence)
            return SimpleNamespace(
                status="failed", proofs=[proof], ending=ending, console_tail=(), console_log="log"
            )

        with pytest.raises(ProofError, match=r"^proof initcalls failed: initcall 7 was f$"):
            judge_boot(fake_result("the guest ended after its verdict", "initcall 7 was f", "more"))
        with pytest.raises(ProofError, match=r"^proof initcalls failed: the guest panicked$"):
            judge_boot(fake_result("the guest panicked", "Kernel panic"))


class TestConfig:
    CONFIG = b"# Linux\nCONFIG_A=y\n# CONFIG_B is not set\nCONFIG_C=17\n"

    def facts(self, config: bytes) -> dict[str, str]:
        packed = gzip.compress(config)
        return {f"@{at}": packed[at : at + 20].hex() for at in range(0, len(packed), 20)}

    def test_same(self) -> None:
        found = compare_config(self.CONFIG, self.facts(self.CONFIG))
        assert found == Finding(None, ("/proc/config.gz is the build's .config: 2 options set",))

    def test_stale(self) -> None:
        found = compare_config(self.CONFIG, self.facts(self.CONFIG.replace(b"17", b"18") + b"CONFIG_D=m\n"))
        assert found.problem == "CONFIG_C is 18 in the running kernel, 17 in .config"
        assert found.evidence == ("CONFIG_D is m in the running kernel, n in .config",)

    def test_lost_part_and_damage(self) -> None:
        facts = self.facts(self.CONFIG)
        del facts["@20"]
        assert "was lost: nothing at byte 20" in (compare_config(self.CONFIG, facts).problem or "")
        assert "cannot be unpacked" in (compare_config(self.CONFIG, {"@0": "1f8b00"}).problem or "")


class TestCfi:
    LINE = "CFI failure at lkdtm_indirect_call+0x16/0x20 (target: lkdtm_increment_int+0x0/0x10; expected type: 0x1)"

    def check(self, *reports: Report, **facts: str) -> Finding:
        return proof_cfi.check(Heard({"called": "yes", **facts}, "", reports, complete=False))

    def test_caught(self) -> None:
        oops = Report(ReportKind.OOPS, "Oops: invalid opcode", 2.0)
        found = self.check(Report(ReportKind.CFI, self.LINE, 1.0), oops)
        assert found.problem is None
        assert found.evidence[0] == self.LINE

    def test_permissive_is_said(self) -> None:
        found = self.check(Report(ReportKind.CFI, self.LINE, 1.0), survived="yes")
        assert found.problem is None
        assert "permissive" in found.evidence[1]

    def test_not_caught(self) -> None:
        assert "said nothing" in (self.check(survived="yes").problem or "")

    @pytest.mark.parametrize(
        "report",
        [
            Report(ReportKind.OOPS, "Oops: 0", 1.0),
            Report(ReportKind.CFI, LINE.replace("lkdtm_ind", "other_ind"), 1.0),
        ],
    )
    def test_something_else(self, report: Report) -> None:
        assert "something else" in (self.check(report).problem or "")


class TestEl2:
    @pytest.mark.parametrize(
        ("place", "line"),
        [("vhe", "VHE mode initialized successfully"), ("nvhe", "Hyp nVHE mode initialized successfully"),
         ("nvhe", "Hyp mode initialized successfully"), ("nvhe", "Protected hVHE mode initialized successfully")],
    )  # fmt: skip
    def test_modes(self, place: str, line: str) -> None:
        steps = proof_el2.prepare(subject(Arch.ARM64))
        console = f"CPU: All CPU(s) started at EL2\nkvm [1]: {line}\n"
        for step in steps:
            found = step.check(Heard({"guest": "ran"}, console))
            assert (found.problem is None) is (step.place == place), found
        assert "started at EL2" in (steps[0].check(Heard({}, console[20:])).problem or "")


class TestNames:
    def test_file(self, tmp_path: Path) -> None:
        (tmp_path / "names").write_text("# head\nvfs_read\n\nabc # why\nvfs_read\n")
        assert proof_names.read_names(tmp_path / "names") == ["abc", "vfs_read"]

    @pytest.mark.parametrize(
        ("content", "message"), [("", "has no names"), ("a b\n", ":1: expected one name")]
    )
    def test_bad_file(self, tmp_path: Path, content: str, message: str) -> None:
        (tmp_path / "names").write_text(content)
        with pytest.raises(UsageError, match=message):
            proof_names.read_names(tmp_path / "names")

    def test_verdicts(self) -> None:
        facts = {"symbols": "9", "checked": "4", "name:a": "0 1", "name:b": "0 0", "name:c": "1 1"}
        found = proof_names._check(Heard(facts, ""))
        assert found.problem == "b is not in kallsyms: inlined everywhere, renamed, or never there"
        assert found.evidence[0] == "c is ambiguous: kallsyms has it 2 times"
        assert "a is a.llvm.* in kallsyms: a promoted local" in found.evidence


def module(
    name: str, *depends: str, needs: tuple[str, ...] = (), crcs: dict[str, int] | None = None
) -> ModuleFile:
    return ModuleFile(Path(f"{name}.ko"), name, {}, depends, needs, crcs or {}, True)


class TestModules:
    def test_dependencies_come_first_even_in_a_circle(self) -> None:
        built = [module("a", "b", "c"), module("b", "c"), module("c"), module("x", "y"), module("y", "x")]
        names = [m.name for m in in_load_order(built, built)]
        assert names[:3] == ["c", "b", "a"]
        assert sorted(names[3:]) == ["x", "y"]
        assert [m.name for m in in_load_order([built[1]], built)] == ["c", "b"]

    def test_sections(self) -> None:
        assert modinfo(b"name=a\0depends=b,c\0name=z\0junk\0") == {"name": "a", "depends": "b,c"}
        entry = (0x12345678).to_bytes(8, "little") + b"printk".ljust(56, b"\0")
        assert versions(entry * 2 + b"rest") == {"printk": 0x12345678}

    def test_symvers(self, tmp_path: Path) -> None:
        path = tmp_path / "Module.symvers"
        path.write_text("0x0000000a\tprintk\tvmlinux\tEXPORT_SYMBOL\t\n")
        symvers = read_symvers(path)
        assert symvers == {"printk": 10}
        assert version_problems(module("m", needs=("printk",), crcs={"printk": 10}), symvers) == []
        wrong = version_problems(module("m", needs=("gone",), crcs={"printk": 11}), symvers)
        assert wrong == [
            "m needs gone, which nothing exports",
            "m was built for printk with CRC 0x0000000b, Module.symvers has 0x0000000a",
        ]
        path.write_text("nonsense\n")
        with pytest.raises(UsageError, match=r"Module.symvers:1: expected a CRC"):
            read_symvers(path)

    def compare(self, console: str = "", **facts: str) -> Finding:
        heard = Heard({key.replace("_", ":", 1): value for key, value in facts.items()}, console)
        return proof_modules.compare([module("a")], {}, heard, unloads=True)

    def test_verdicts(self) -> None:
        assert self.compare(load_a="0", unload_a="0").problem is None
        console = "[    1.0] a: Unknown symbol thing (err -2)"
        assert self.compare(console, load_a="-2").problem == "a did not load: Unknown symbol thing (err -2)"
        assert self.compare(load_a="-8").problem == "a did not load: ENOEXEC"
        assert self.compare(load_a="0", unload_a="-16").problem == "a did not unload: EBUSY"
        assert self.compare().problem == "init has said nothing about a"
        assert self.compare(load_a=str(-errno.ENODEV)).problem is None


class TestTrim:
    FORM = proof_trim.Form("6.99 SMP", 960, 24, 0xABCD)

    @pytest.mark.parametrize("arch", list(Arch))
    def test_probe_has_the_form_of_a_module(self, arch: Arch) -> None:
        elf = Elf(proof_trim.probe(subject(arch), self.FORM, "klto_x", "gone", 5), "probe")
        names = elf.section_names
        this = bytes(elf.content(names.index(".gnu.linkonce.this_module")))
        assert len(this) == 960
        assert this[24:31] == b"klto_x\0"
        assert modinfo(bytes(elf.content(names.index(".modinfo"))))["vermagic"] == "6.99 SMP"
        assert versions(bytes(elf.content(names.index("__versions")))) == {"module_layout": 0xABCD, "gone": 5}
        assert elf.symtab is not None
        assert "gone" in elf.symtab.names
        assert (".init.plt" in names) is (arch is Arch.ARM64)

    def test_verdicts(self) -> None:
        good = Audit(("kept",), {"kept": ("m.ko",)}, (), ("gone",), (), ())
        line = f"{proof_trim.REFUSED}: Unknown symbol gone (err -2)"

        def check(refused: int, accepted: int, console: str = line, audit: Audit = good) -> str | None:
            facts = {proof_trim.REFUSED: str(refused), proof_trim.ACCEPTED: str(accepted)}
            return proof_trim.compare(audit, "gone", "kept", Heard(facts, console)).problem

        assert check(-2, 0) is None
        assert check(0, 0) == "a module that needs gone, which is trimmed, was loaded"
        assert check(-2, -8) == "a module that needs only kept was refused: ENOEXEC"
        assert check(-2, 0, "") == "a module that needs gone was refused with ENOENT, but not by that name"
        missing = Audit((), {}, (), (), (Missing("sym", ("m.ko",), "trimmed"),), ())
        assert check(-2, 0, audit=missing) == "sym, needed by m.ko, is not exported: trimmed"


class TestCatalogue:
    def test_reasons_name_options(self) -> None:
        config = {"X86_64": "y", "BLK_DEV_INITRD": "y", "BINFMT_ELF": "y", "SERIAL_8250": "y", "CFI_CLANG": "y",
                  "DEBUG_FS": "y", "MODULES": "y"}  # fmt: skip
        steps, excluded = prepare_steps(select_proofs([]), subject(config=config))
        reasons = {result.name: result.evidence for result in excluded}
        assert [step.name for step in steps] == ["init"]
        assert reasons["kexec"] == ("needs CONFIG_KEXEC_FILE",)
        assert reasons["cfi"] == ("needs CONFIG_LKDTM",)
        assert reasons["el2"] == ("needs arm64",)
        assert reasons["modules"] == ("needs a build dir: name it with -b DIR",)
        assert reasons["initcalls"] == ("needs CONFIG_PRINTK; needs CONFIG_KALLSYMS",)

    def test_as_few_boots_as_possible(self) -> None:
        steps = [Step(n, lambda _: Finding(None)) for n in ("init", "modules", "kexec")]
        steps += proof_el2.prepare(subject(Arch.ARM64))
        assert [(plan.place, len(plan.steps)) for plan in divide(steps, Accelerator.TCG)] == [
            ("main", 4),
            ("nvhe", 1),
        ]
        places = [(plan.place, plan.tcg) for plan in divide(steps, Accelerator.KVM)]
        assert places == [("main", False), ("vhe", True), ("nvhe", True)]

    def test_proof_of_several_boots_has_the_worst_verdict(self) -> None:
        def result(status: ProofStatus, line: str) -> ProofResult:
            return ProofResult("el2", status, 1.0, (line,))

        (both,) = combine([result(ProofStatus.PASSED, "vhe"), result(ProofStatus.FAILED, "nvhe")])
        assert (both.status, both.evidence, both.seconds) == (ProofStatus.FAILED, ("nvhe", "vhe"), 2.0)

    def test_every_proof_needs_init(self) -> None:
        assert all(missing_options(proof, Arch.X86_64, {}) for proof in PROOFS.values())
        assert {Place.MAIN, Place.CFI} <= set(Place)


def _hold(cache: Path, size: int, pipe: Connection) -> None:
    with reserved(cache, size):
        pipe.send("held")
        pipe.recv()


class TestReservation:
    def test_guests_wait_for_memory(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(reservation.machine, "memory_bytes", lambda: (1 << 40, 4 << 30))
        ours, theirs = multiprocessing.get_context("fork").Pipe()
        other = multiprocessing.get_context("fork").Process(target=_hold, args=(tmp_path, 3 << 30, theirs))
        other.daemon = True
        other.start()
        assert ours.recv() == "held"
        with reserved(tmp_path, 256 << 20, patience=0.0):
            pass
        with (
            pytest.raises(UsageError, match="no memory for another guest"),
            reserved(tmp_path, 2 << 30, patience=0.0),
        ):
            pass
        other.kill()
        other.join()
        with reserved(tmp_path, 2 << 30, patience=0.0):
            assert len(list((tmp_path / "guests").glob("*.guest"))) == 1
        assert list((tmp_path / "guests").glob("*.guest")) == []

    def test_cache_that_cannot_be_written(self, tmp_path: Path) -> None:
        (tmp_path / "guests").write_text("")
        with reserved(tmp_path, 1):
            assert os.path.isfile(tmp_path / "guests")
