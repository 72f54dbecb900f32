"""Console logs with panics in them: which lines belong to one, and which addresses these name. Pure.

Lines may come from klto's console.log, a serial console, dmesg, syslog or the journal: what those put before the
kernel's own text is taken off. Formats are Linux 6.1's and 6.12's, older ones where they differ.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import StrEnum

from klto.boot.console import ReportKind, find_report

#: Lines of a log that are looked at, and reports that are kept: more is a flood.
MAX_LINES, MAX_REPORTS = 500_000, 200

#: Lines of one report.
MAX_REPORT_LINES = 400


class Role(StrEnum):
    """What an address in a report is for."""

    #: The instruction that was executed.
    PC = "pc"
    #: The address behind a call.
    RETURN = "return"
    #: Found on the stack; it may be left over from an earlier call.
    MAYBE = "maybe"
    #: The function that an indirect call was to go to.
    TARGET = "target"
    #: The address that was accessed.
    FAULT = "fault"


@dataclass(frozen=True)
class Mention:
    """An address in a report: by symbol, or as a number.

    ``symbol``, ``offset``, ``size``: as in ``name+0x12/0x34``, the name without ``.llvm.<hash>``. ``module``:
    the kernel module it is in. ``address``: as the log has it. ``hyp``: a virtual address of the nVHE
    hypervisor. ``linked``: not moved by KASLR. ``line``: the whole line, without what printk puts before it.
    """

    role: Role
    line: str
    symbol: str = ""
    offset: int = 0
    size: int = 0
    module: str = ""
    address: int | None = None
    hyp: bool = False
    linked: bool = False


@dataclass
class LoggedReport:
    """One panic, oops, BUG, WARNING or CFI failure. ``number``: of its first line in the log, from 1.

    ``kernel_offset``, ``hyp_offset``: as the log gives them, None when it does not. ``offset_disabled``: it says
    that there is no offset.
    """

    kind: ReportKind
    title: str
    number: int
    mentions: list[Mention] = field(default_factory=list)
    kernel_offset: int | None = None
    offset_disabled: bool = False
    hyp_offset: int | None = None
    lines: int = 0


@dataclass(frozen=True)
class ConsoleLog:
    """What there is in a log. ``banner``: the last ``Linux version`` line before the first report."""

    reports: tuple[LoggedReport, ...]
    banner: str


#: What others put before the kernel's text: a journal's or syslog's "Nov 21 12:00:00 host kernel: ", a level
#: "<4>", printk's "[    1.234567][    T1] ", klto's "| ".
_BEFORE = re.compile(
    r"^(?:\s*\|\s)?(?:\S.{0,60}? kernel: )?(?:<\d{1,3}>)?(?:\s*\[\s*\d+\.\d+\](?:\[\s*[TC]\d+\])?\s?)?"
)

_NAME = r"(?P<symbol>[A-Za-z_.$][\w.$]*)"
#: kernel/kallsyms.c, __sprint_symbol: name+0xoffset/0xsize [module build-id].
SYMBOL = re.compile(
    _NAME + r"\+0x(?P<offset>[0-9a-f]+)/0x(?P<size>[0-9a-f]+)(?: \[(?P<module>[\w-]+)(?: [0-9a-f]{8,40})?\])?"
)
_CALL_TRACE_LINE = re.compile(
    r"^\s*(?:\[<[0-9a-f]+>\] )?(?P<maybe>\? )?" + SYMBOL.pattern + r"(?:\s*\(P\)|\s*\([A-Z]+\))*\s*$"
)
_PC = re.compile(r"^(?:RIP: (?P<selector>[0-9a-f]{4}):|pc : |PC is at |EIP: )")
_LR = re.compile(r"^(?:lr : |LR is at )")
#: A number where a symbol would be: kallsyms is off, or the address is in no function.
_RAW = re.compile(r"(?:0x|\[<)(?P<raw>[0-9a-f]{1,16})\b|\b(?P<bare>[0-9a-f]{16})\b")
_RAW_CALL = re.compile(r"^\s*(?P<maybe>\? )?(?:0x|\[<)(?P<raw>[0-9a-f]{9,16})(?:>\])?\s*$")

#: arch/x86/mm/fault.c and arch/arm64/mm/fault.c: the address that was accessed.
_FAULT = re.compile(
    r"(?:unable to handle page fault for|kernel NULL pointer dereference,) address: (?:0x)?([0-9a-f]+)"
    r"|Unable to handle kernel .* at virtual address ([0-9a-f]+)"
    r"|probably for non-canonical address 0x([0-9a-f]+)"
)
#: arch/x86/mm/extable.c, early_fixup_exception.
_EARLY = re.compile(
    r"PANIC: early exception 0x[0-9a-f]+ IP [0-9a-f]+:([0-9a-f]+) error [0-9a-f]+ cr2 0x([0-9a-f]+)"
)
#: kernel/cfi.c: a target outside of every symbol is printed as a number.
_CFI_TARGET = re.compile(r"\(target: (?:" + SYMBOL.pattern + r"|0x(?P<raw>[0-9a-f]+))")
#: kernel/panic.c __warn; arch/x86 and arm64 print the registers behind it.
_WARN_AT = re.compile(r"^WARNING: .* at \S+ ")
#: arch/arm64/kvm/handle_exit.c, nvhe_hyp_panic_handler. The address is where the linker put it.
_HYP_AT = re.compile(r"nVHE hyp (?:panic|BUG|CFI failure) at: \[<([0-9a-f]+)>\]")
_HYP_FRAME = re.compile(r"^kvm \[\d+\]:\s+\[<([0-9a-f]+)>\] ")
_HYP_OFFSET = re.compile(r"Hyp Offset: 0x([0-9a-f]+)")
_HYP_PC = re.compile(r"^PS:[0-9a-f]+ PC:([0-9a-f]+) ESR:")
_HYP_FAR = re.compile(r"^FAR:([0-9a-f]+) HPFAR:")
#: arch/x86/kernel/setup.c and arch/arm64/kernel/setup.c, dump_kernel_offset.
_OFFSET = re.compile(r"Kernel Offset: (?:0x([0-9a-f]+) from|(disabled))")

_CUT = "------------[ cut here ]------------"
_ENDS = ("---[ end trace", "---[ end Kernel panic")
_BANNER = "Linux version "


def plain(line: str) -> str:
    """The kernel's own text of a line."""
    return _BEFORE.sub("", line, count=1).rstrip()


def without_hash(name: str) -> str:
    """A symbol as it is in the source: ThinLTO names a promoted local ``name.llvm.<hash>``."""
    return name.partition(".llvm.")[0]


def read_log(text: str) -> ConsoleLog:
    """Find the reports of a log and the addresses in them."""
    reports: list[LoggedReport] = []
    banner, current = "", None
    for number, raw in enumerate(text.splitlines()[:MAX_LINES], 1):
        line = plain(raw)
        if line.startswith(_BANNER):
            banner, current = (line if not reports else banner), None
        kind = find_report(line)
        if kind is not None and _begins(current, kind):
            if len(reports) == MAX_REPORTS:
                break
            current = LoggedReport(kind, line, number)
            reports.append(current)
        if reports:
            _take_offset(reports, line)
        if current is None or line.startswith(_CUT):
            current = None
            continue
        current.lines += 1
        if current.lines > MAX_REPORT_LINES:
            current = None
            continue
        current.mentions += _mentions(line)
        if line.startswith(_ENDS):
            current = None  # what follows repeats the registers
    found = [report for report in reports if report.mentions or len(reports) == 1]
    return ConsoleLog(tuple(found or reports[:1]), banner)


def _begins(current: LoggedReport | None, kind: ReportKind) -> bool:
    """Whether a complaint opens a report. One behind another without its registers yet belongs to that."""
    if current is None:
        return True
    if kind is ReportKind.PANIC:  # what an oops or a warning ends in
        return False
    return any(mention.role is Role.RETURN for mention in current.mentions)


def _take_offset(reports: list[LoggedReport], line: str) -> None:
    """The offset is printed at the end, for all reports of one boot that have none yet."""
    found = _OFFSET.search(line)
    if found:
        for report in reports:
            if report.kernel_offset is None:
                report.kernel_offset = int(found[1], 16) if found[1] else 0
                report.offset_disabled = not found[1]
    found = _HYP_OFFSET.search(line)
    if found:
        reports[-1].hyp_offset = int(found[1], 16)


def _mentions(line: str) -> list[Mention]:
    """The addresses in one line of a report."""
    for pattern, roles, hyp in (
        (_EARLY, (Role.PC, Role.FAULT), False),
        (_HYP_PC, (Role.PC,), True),
        (_HYP_FAR, (Role.FAULT,), True),
    ):
        found = pattern.search(line)
        if found:
            numbers = found.groups()
            return [
                Mention(role, line, address=int(n, 16), hyp=hyp)
                for role, n in zip(roles, numbers, strict=True)
            ]
    found = _FAULT.search(line)
    if found:
        return [Mention(Role.FAULT, line, address=int(next(g for g in found.groups() if g), 16))]
    found = _HYP_AT.search(line) or _HYP_FRAME.search(line)
    if found:
        role = Role.PC if "hyp" in line.partition("[<")[0] else Role.RETURN
        return [Mention(role, line, address=int(found[1], 16), linked=True)]
    if "CFI failure" in line:
        return _cfi(line)
    if _PC.match(line) or _WARN_AT.match(line):
        return _at(line, Role.PC)
    if _LR.match(line):
        return _at(line, Role.RETURN)
    found = _CALL_TRACE_LINE.match(line)
    if found:
        return [_by_symbol(found, Role.MAYBE if found["maybe"] else Role.RETURN, line)]
    found = _RAW_CALL.match(line)
    if found:
        role = Role.MAYBE if found["maybe"] else Role.RETURN
        return [Mention(role, line, address=int(found["raw"], 16))]
    return []


def _cfi(line: str) -> list[Mention]:
    found = SYMBOL.search(line.partition("(target: ")[0])
    mentions = [_by_symbol(found, Role.PC, line)] if found else []
    target = _CFI_TARGET.search(line)
    if target and target["symbol"]:
        mentions.append(_by_symbol(target, Role.TARGET, line))
    elif target:
        mentions.append(Mention(Role.TARGET, line, address=int(target["raw"], 16)))
    return mentions


def _at(line: str, role: Role) -> list[Mention]:
    """The address of a line that names a register."""
    selector = _PC.match(line)
    if selector and selector["selector"] and int(selector["selector"], 16) & 3:
        return []  # a user program's
    found = SYMBOL.search(line)
    if found:
        return [_by_symbol(found, role, line)]
    raw = _RAW.search(line)
    return [Mention(role, line, address=int(raw["raw"] or raw["bare"], 16))] if raw else []


def _by_symbol(found: re.Match[str], role: Role, line: str) -> Mention:
    return Mention(
        role,
        line,
        without_hash(found["symbol"]),
        int(found["offset"], 16),
        int(found["size"], 16),
        (found["module"] or "").replace("-", "_"),
    )
