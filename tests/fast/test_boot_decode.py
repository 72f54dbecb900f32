"""Panic decoding: what is found in logs of all kinds, and what is made of an image's addresses."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from xml.etree import ElementTree

import boot_helpers
import pytest
from hypothesis import given
from hypothesis import strategies as st

from klto.boot.decode import Decoded, decode_log
from klto.boot.decode_image import Image
from klto.boot.decode_log import ConsoleLog, Role, plain, read_log, without_hash
from klto.boot.decode_tools import Tools, find_tools
from klto.boot.proofs import ProofResult, ProofStatus
from klto.boot.run import BootResult
from klto.errors import UsageError
from klto.record import Boot, add_boots, read_record
from klto.report.decoded import decoded_json, decoded_text
from klto.report.junit import junit_xml

OOPS = """\
Linux version 6.99.0 (me@here) #1
something harmless+0x1/0x2
BUG: unable to handle page fault for address: ffffffff82000010
#PF: supervisor write access in kernel mode
Oops: 0002 [#1] SMP
RIP: 0010:inner+0x1/0x20 [lkdtm]
Call Trace:
 <TASK>
 ? left_over+0x1/0x10
 outer.llvm.1234+0x5/0x20
 0xffffffff81000010
 </TASK>
RIP: 0033:0x2038ca
---[ end trace 0000000000000000 ]---
RIP: 0010:inner+0x1/0x20 [lkdtm]
Kernel panic - not syncing: Fatal exception
Kernel Offset: 0x1000000 from 0xffffffff81000000 (relocation range: 0xffffffff80000000-0xffffffffbfffffff)
"""

HYP = """\
kvm [1]: nVHE hyp panic at: [<ffff800080abc123>] __kvm_nvhe_handle_trap+0x10/0x40!
kvm [1]: nVHE call trace:
kvm [1]:  [<ffff800080abc200>] __kvm_nvhe_hyp_panic+0x0/0x8
kvm [1]: ---[ end nVHE call trace ]---
kvm [1]: Hyp Offset: 0xffff800000000000
Kernel panic - not syncing: HYP panic:
PS:200003c9 PC:0000000080abc123 ESR:0000000086000007
FAR:0000000080abc124 HPFAR:0000000000000000 PAR:0000000000000000
VCPU:0000000000000000
"""


def mentions(log: ConsoleLog) -> list[tuple[str, str, int | None]]:
    return [(m.role, m.symbol, m.address) for report in log.reports for m in report.mentions]


class TestLog:
    @pytest.mark.parametrize(
        "before",
        ["", "[    1.234567] ", "[    1.234567][    T1] ", "[   12.000001][   C0] ", "<4>[    1.2] ", "  | ",
         "Nov 21 12:00:00 host kernel: ", "Nov 21 12:00:00 host kernel: [   99.000000] "],
    )  # fmt: skip
    def test_what_stands_before_a_line_does_not_matter(self, before: str) -> None:
        log = read_log("".join(f"{before}{line}\n" for line in OOPS.splitlines()))
        assert mentions(log) == mentions(read_log(OOPS))
        assert log.banner == "Linux version 6.99.0 (me@here) #1"

    def test_oops(self) -> None:
        (report,) = read_log(OOPS).reports
        assert report.title.startswith("BUG: unable to handle page fault")
        assert report.number == 3
        assert report.kernel_offset == 0x1000000
        assert mentions(read_log(OOPS)) == [
            ("fault", "", 0xFFFFFFFF82000010),
            ("pc", "inner", None),
            ("maybe", "left_over", None),
            ("return", "outer", None),
            ("return", "", 0xFFFFFFFF81000010),
        ]
        assert report.mentions[1].module == "lkdtm"

    def test_hyp_panic(self) -> None:
        (report,) = read_log(HYP).reports
        assert report.hyp_offset == 0xFFFF800000000000
        assert [(m.role, m.address, m.hyp, m.linked) for m in report.mentions] == [
            (Role.PC, 0xFFFF800080ABC123, False, True),
            (Role.RETURN, 0xFFFF800080ABC200, False, True),
            (Role.PC, 0x80ABC123, True, False),
            (Role.FAULT, 0x80ABC124, True, False),
        ]

    @pytest.mark.parametrize(
        ("line", "wanted"),
        [
            ("CFI failure at f+0x5/0x10 [m] (target: g+0x0/0x10 [n]; expected type: 0x12)",
             [("pc", "f", None), ("target", "g", None)]),
            ("CFI failure at f+0x5/0x10 (target: 0xffff888000000010; expected type: 0x12)",
             [("pc", "f", None), ("target", "", 0xFFFF888000000010)]),
            ("WARNING: CPU: 0 PID: 1 at kernel/x.c:7 f+0x1/0x2", [("pc", "f", None)]),
            ("PANIC: early exception 0x0e IP 10:ffffffff81000123 error 0 cr2 0x10",
             [("pc", "", 0xFFFFFFFF81000123), ("fault", "", 0x10)]),
            ("Unable to handle kernel NULL pointer dereference at virtual address 0000000000000008",
             [("fault", "", 8)]),
        ],
    )  # fmt: skip
    def test_first_lines(self, line: str, wanted: list[tuple[str, str, int | None]]) -> None:
        assert mentions(read_log(line)) == wanted

    def test_arm64(self) -> None:
        text = (
            "Internal error: Oops - BRK: 00000000f2000800 [#1] SMP\npc : f+0x8/0x10\nlr : g+0x4/0x10\n"
            "Call trace:\n f+0x8/0x10 (P)\n g+0x4/0x10 [mod 0123456789abcdef0123456789abcdef01234567]\n"
        )
        found = [(m.role, m.symbol, m.module) for m in read_log(text).reports[0].mentions]
        assert found == [("pc", "f", ""), ("return", "g", ""), ("return", "f", ""), ("return", "g", "mod")]

    def test_two_reports(self) -> None:
        warning = (
            "WARNING: CPU: 0 PID: 1 at a.c:1 f+0x1/0x2\nCall Trace:\n g+0x1/0x2\n---[ end trace 0 ]---\n"
        )
        log = read_log(warning + "harmless+0x1/0x2\n" + OOPS)
        assert [report.kind for report in log.reports] == ["WARNING", "BUG"]
        assert [len(report.mentions) for report in log.reports] == [2, 5]

    @given(st.text(max_size=300))
    def test_any_text_can_be_read(self, text: str) -> None:
        read_log(text + "\nOops: 0\n" + text)

    def test_names(self) -> None:
        assert without_hash("f.llvm.123456") == "f"
        assert plain("[    0.000000] Linux version 6") == "Linux version 6"


SOURCE = """
const char linux_banner[] = "Linux version 6.99.0 (me@here) #1\\n";
int data_word = 1;
static inline __attribute__((always_inline)) void inlined(int *p) { *(volatile int *)p = 1; }
__attribute__((noinline)) void callee(int *p) {
  inlined(p);
}
__attribute__((noinline)) int outer(int *p) {
  callee(p);
  return *(volatile int *)p;
}
int pick(int n) {
  switch (n) { case 0: callee(&data_word); return 3; case 1: return outer(&data_word); case 2: return 99;
    case 3: return 5; case 4: callee(0); return 7; case 5: return 12; default: return 0; }
}
void (*const table[])(int *) = { callee, callee, callee };
"""


@pytest.fixture(scope="module")
def tools() -> Tools:
    return find_tools([boot_helpers.compiler().clang.resolve().parent])


def built(folder: Path, *flags: str) -> Path:
    """A build dir with a vmlinux and a kernel module, made of a few lines."""
    compiler = boot_helpers.compiler()
    (folder / "source.c").write_text(SOURCE)
    options = ["--target=x86_64-linux-gnu", "-O1", "-fno-pic", "-mcmodel=kernel", "-ffreestanding", *flags]
    options.append("-ffunction-sections")  # the kernel puts a module's sections side by side
    subprocess.run([compiler.clang, *options, "-c", "source.c", "-o", "m.ko"], cwd=folder, check=True)
    address = "-Ttext=0xffffffff81000000"
    subprocess.run([compiler.lld, "-e", "0", address, "m.ko", "-o", "vmlinux"], cwd=folder, check=True)
    (folder / "modules.order").write_text("m.o\n")
    return folder


@pytest.fixture(scope="module")
def debug_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(tmp_path_factory.mktemp("debug"), "-g")


@pytest.fixture(scope="module")
def plain_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(tmp_path_factory.mktemp("plain"))


def frame_text(decoded: Decoded) -> str:
    return decoded_text(decoded)


def oops_at(folder: Path, tmp_path: Path, *lines: str, module: str = "") -> str:
    """A log with an oops in callee, called by outer."""
    image = Image(folder / "vmlinux", tmp_path)
    (callee,), _ = image.find("callee", 0)
    (outer,), _ = image.find("outer", 0)
    values = sorted(set(image._symbols[0]))
    sizes = {at: values[values.index(at) + 1] - at for at in (callee, outer)}
    suffix = f" [{module}]" if module else ""
    pc = f"RIP: 0010:callee+0x0/{sizes[callee]:#x}{suffix}"
    # The call is the last thing before the read: push, mov, call.
    call = next(n for n in range(1, 32) if outer + n in return_addresses(folder, outer))
    return (
        "\n".join(("Oops: 0002 [#1] SMP", pc, f" outer+{call:#x}/{sizes[outer]:#x}{suffix}", *lines)) + "\n"
    )


def return_addresses(folder: Path, start: int) -> set[int]:
    """Addresses behind calls, as llvm-objdump shows them."""
    objdump = boot_helpers.compiler().clang.resolve().parent / "llvm-objdump"
    argv = [objdump, "-d", "--no-show-raw-insn", f"--start-address={start:#x}", folder / "vmlinux"]
    lines = subprocess.run(argv, capture_output=True, text=True, check=True).stdout.splitlines()
    code = [
        line.split(":\t", 1) if ":\t" in line else line.split(": ", 1)
        for line in lines
        if ": " in line or ":\t" in line
    ]
    found = [(int(at, 16), text) for at, text in code if at.strip().startswith("ffffffff")]
    return {found[i + 1][0] for i in range(len(found) - 1) if "call" in found[i][1]}


class TestDecoding:
    @pytest.mark.parametrize("module", ["", "m"])
    def test_lines_inlined_frames_and_instructions(
        self, debug_dir: Path, tmp_path: Path, tools: Tools, module: str
    ) -> None:
        log = oops_at(debug_dir, tmp_path, module=module)
        (report,) = decode_log(log, debug_dir, tools, {}).reports
        pc, caller = report.frames
        assert [(at.function, at.line) for at in pc.locations] == [("inlined", 4), ("callee", 6)]
        assert pc.instruction.startswith("mov")
        assert [(at.function, at.line) for at in caller.locations] == [("outer", 9)]
        assert caller.instruction.startswith("call")
        assert caller.function == "outer"
        assert not pc.notes

    def test_without_debug_information_it_says_so(
        self, plain_dir: Path, tmp_path: Path, tools: Tools
    ) -> None:
        decoded = decode_log(oops_at(plain_dir, tmp_path), plain_dir, tools, {})
        assert any("no debug information" in note for note in decoded.notes)
        assert all(not frame.locations for frame in decoded.reports[0].frames)
        assert decoded.reports[0].frames[0].instruction.startswith("mov")

    def test_addresses(self, plain_dir: Path, tmp_path: Path, tools: Tools) -> None:
        image = Image(plain_dir / "vmlinux", tmp_path)
        wanted = {"data_word": "data (.data)", "linux_banner": "read-only data (.rodata)", "callee": "text (.text)",
                  "table": "jump table (.rodata)"}  # fmt: skip
        for name, what in wanted.items():
            (address,), _ = image.find(name, 0)
            line = f"BUG: unable to handle page fault for address: {address + 0x2000000:016x}\n"
            offset = "Kernel Offset: 0x2000000 from 0xffffffff81000000\n"
            (frame,) = decode_log(line + offset, plain_dir, tools, {"RANDOMIZE_BASE": "y"}).reports[0].frames
            assert (frame.what, frame.function) == (what, name)
            (unplaced,) = decode_log(line, plain_dir, tools, {"RANDOMIZE_BASE": "y"}).reports[0].frames
            assert "no Kernel Offset line" in unplaced.notes[0]
            blind = {"RANDOMIZE_BASE": "y", "X86_64": "y"}
            off = "Kernel Offset: disabled\n"
            (unplaced,) = decode_log(line + off, plain_dir, tools, blind).reports[0].frames
            assert "RANDOMIZE_MEMORY" in unplaced.notes[0]
            frames = (
                decode_log(line + off, plain_dir, tools, blind | {"RANDOMIZE_MEMORY": "y"}).reports[0].frames
            )
            assert not frames[0].notes
        for number, what in (
            (8, "a null pointer"),
            (0x400000, "user space"),
            (0xFFFF888000000000, "unmapped in"),
        ):
            line = f"BUG: unable to handle page fault for address: {number:016x}\n"
            assert what in decode_log(line, plain_dir, tools, {}).reports[0].frames[0].what

    def test_hyp_addresses(self, plain_dir: Path, tmp_path: Path, tools: Tools) -> None:
        (callee,), _ = Image(plain_dir / "vmlinux", tmp_path).find("callee", 0)
        offset = 0xFFFF000000000000
        text = HYP.replace("0000000080abc123", f"{(callee - offset) % (1 << 64):016x}")
        text = text.replace("0xffff800000000000", f"{offset:#x}")
        frames = decode_log(text, plain_dir, tools, {}).reports[0].frames
        assert frames[2].function == "callee"
        lost = decode_log(text.replace("Hyp Offset", "Nothing"), plain_dir, tools, {}).reports[0].frames
        assert "Hyp Offset" in lost[2].notes[0]

    def test_log_of_another_kernel(self, plain_dir: Path, tmp_path: Path, tools: Tools) -> None:
        text = "Linux version 5.4.0 (x@y) #7\n" + oops_at(
            plain_dir, tmp_path, " gone+0x1/0x2", " pick+0x1/0x999", " x+0x1/0x2 [nowhere]"
        )
        decoded = decode_log(text, plain_dir, tools, {})
        assert "the log is of another kernel" in decoded.notes[0]
        notes = [note for frame in decoded.reports[0].frames for note in frame.notes]
        assert notes == [
            "vmlinux has no symbol gone",
            "in vmlinux pick has another size: is it of this build?",
            "no nowhere.ko in the build",
        ]

    def test_writers(self, debug_dir: Path, tmp_path: Path, tools: Tools) -> None:
        decoded = decode_log(oops_at(debug_dir, tmp_path), debug_dir, tools, {})
        assert "source.c:4  inlined, inlined" in decoded_text(decoded)
        found = json.loads(json.dumps(decoded_json(decoded, "log")))
        assert found["schema"] == "klto/decode/1"
        assert found["reports"][0]["frames"][0]["locations"][0]["function"] == "inlined"
        empty = decode_log("all is well\n", debug_dir, tools, {})
        assert decoded_text(empty).startswith("no panic, oops")

    def test_what_is_missing(self, tmp_path: Path, tools: Tools) -> None:
        with pytest.raises(UsageError, match="no vmlinux in"):
            decode_log("", tmp_path, tools, {})
        with pytest.raises(UsageError, match="no llvm-symbolizer"):
            find_tools([tmp_path])


def result(*proofs: ProofResult) -> BootResult:
    return BootResult(
        Path("/x/bzImage"), "x86_64", "6.1", "tcg", (), "7.2", 1.5, Path("log"), (), "ended", proofs
    )


#: The common JUnit schema (Ant's, as Jenkins has it): element to attributes it must have, and children it may have.
SCHEMA: dict[str, tuple[set[str], set[str]]] = {
    "testsuites": ({"tests", "failures", "errors", "time"}, {"testsuite"}),
    "testsuite": ({"name", "tests", "failures", "errors", "skipped", "time"}, {"properties", "testcase"}),
    "properties": (set(), {"property"}),
    "property": ({"name", "value"}, set()),
    "testcase": ({"classname", "name", "time"}, {"skipped", "failure", "error", "system-out"}),
    "skipped": ({"message"}, set()),
    "failure": ({"message", "type"}, set()),
    "error": ({"message", "type"}, set()),
    "system-out": (set(), set()),
}


def check_junit(content: bytes) -> ElementTree.Element:
    """Parse JUnit XML and hold it against the schema; its root."""
    root = ElementTree.fromstring(content)
    for element in root.iter():
        required, children = SCHEMA[element.tag]
        assert required <= set(element.attrib), element.tag
        assert {child.tag for child in element} <= children, element.tag
    for suite in root.iter("testsuite"):
        cases = suite.findall("testcase")
        assert int(suite.attrib["tests"]) == len(cases)
        for count, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
            assert int(suite.attrib[count]) == sum(case.find(tag) is not None for case in cases)
    return root


def test_junit() -> None:
    proofs = (
        ProofResult("init", ProofStatus.PASSED, 1.0, ("release: 6.1",)),
        ProofResult("config", ProofStatus.FAILED, 0.5, ("CONFIG_A is y", "\x1b[1m<&>\ud800")),
        ProofResult("kexec", ProofStatus.UNKNOWN, 0.0, ("not run",)),
        ProofResult("trim", ProofStatus.NOT_APPLICABLE, 0.0, ("needs CONFIG_X",)),
    )
    root = check_junit(junit_xml(result(*proofs)))
    assert [case.attrib["name"] for case in root.iter("testcase")] == ["init", "config", "kexec", "trim"]
    failure = next(root.iter("failure"))
    assert failure.attrib["message"] == "CONFIG_A is y"
    assert failure.text == "CONFIG_A is y\n?[1m<&>?"
    check_junit(junit_xml(result()))


def test_record_keeps_the_latest_boots(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    boot = Boot(image="bzImage", accelerator="tcg", seconds=1.0, console="log", proofs=[])
    assert not add_boots(path, [boot])
    record = {
        "schema": "klto/record/1", "klto_version": "0", "status": "done", "started": 1.0, "pid": 1,
        "asked": {"argv": [], "directory": "/"},
        "machine": {"cpus": 1, "memory_bytes": 1, "memory_available": 1},
        "boots": [{"image": "old", "accelerator": "tcg", "seconds": 1, "console": "x", "proofs": []}],
    }  # fmt: skip
    path.write_text(json.dumps(record))
    assert add_boots(path, [boot])
    assert [found.image for found in read_record(path).boots] == ["old", "bzImage"]
    assert add_boots(path, [boot] * 60)
    assert len(read_record(path).boots) == 50
    path.write_text("{")
    with pytest.raises(UsageError, match="is no klto record"):
        add_boots(path, [boot])
