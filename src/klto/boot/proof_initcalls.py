"""The proof ``initcalls``: a boot with ``initcall_debug`` calls them as the objects have them, each once.

What was called is read in the kernel's log by klto's init. On a busy machine the serial console loses bytes.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from klto.boot.proofs import Facts, Finding, Heard, NotApplicable, Step
from klto.boot.subject import Subject
from klto.errors import UsageError
from klto.kernel.initcall_tables import calls_in_log, log_differences
from klto.kernel.initcalls import Initcall, in_run_order, read_initcalls
from klto.kernel.saved_link import link_inputs
from klto.objects.errors import MalformedObject

#: Longest calls that are shown.
_SHOWN = 10

#: init/main.c, run_init_process (5.11 and later): behind this line no initcall of the kernel's own is called.
_INIT_STARTS = "as init process"

#: init/main.c, trace_initcall_finish_cb (6.1 and 6.12).
_RETURNED = re.compile(r"initcall (\S+?)\+0x[0-9a-f]+/0x[0-9a-f]+ returned (-?\d+) after (\d+) usecs")

#: Bytes of the kernel's log (Documentation/admin-guide/kernel-parameters.txt): 20,000 lines. Two come of an initcall.
_LOG = "4M"

#: Characters of a line from which on init may have cut it.
_CUT = 400

#: LTO's names of initcalls as kallsyms has them: include/linux/init.h, __initcall_stub.
_STUB = "__initstub__"


def prepare(subject: Subject) -> tuple[Step, ...]:
    """Read the order from the link's inputs.

    :raises NotApplicable: when they are not there.
    """
    build_dir = subject.needed_build_dir()
    if not (build_dir / "vmlinux.a").is_file():
        raise NotApplicable("needs the objects of the build: there is no vmlinux.a in the build dir")
    expected = linked_initcalls(build_dir)

    def check(heard: Heard) -> Finding:
        return judge(expected, heard)

    return (Step("initcalls", check, append=f"initcall_debug ignore_loglevel log_buf_len={_LOG}"),)


def judge(expected: Sequence[Initcall], heard: Heard) -> Finding:
    """By the kernel's log, as init has read it; by the console where not all of the log came."""
    log = kernel_log(heard.facts)
    if log is not None:
        found = compare(expected, log)
        return Finding(found.problem, (*found.evidence, "read in the kernel's log"))
    found = compare(expected, heard.console)
    if found.problem is not None:
        # Each call has two lines. Bytes that were lost do not make a right order of a wrong one.
        second = compare(expected, heard.console, returned=True)
        found = found if second.problem is not None else second
    return Finding(
        found.problem,
        (
            *found.evidence,
            "read on the console, which loses bytes on a busy machine: the kernel's log did not come",
        ),
    )


def kernel_log(facts: Facts) -> str | None:
    """What the kernel's log has of initcalls, as init has sent it; None when something is missing."""
    lines: dict[int, str] = {}
    for key, value in facts.items():
        length, _, text = value.partition(" ")
        if not (key.startswith("@") and key[1:].isdigit() and length.isdigit()):
            continue
        # Of long lines init sends the beginning (text.h, add_printable).
        if len(text) == int(length) or _CUT < len(text) < int(length):
            lines[int(key[1:])] = text
    if facts.get("whole") != "1" or facts.get("sent") != str(len(lines)):
        return None
    return "\n".join(text for _, text in sorted(lines.items()))


def linked_initcalls(build_dir: Path) -> list[Initcall]:
    """The initcalls of a kernel in link order: all of vmlinux.a's, and of libraries those that the linker took.

    Without CONFIG_MODULES lib/lib.a and its like are linked on demand (Makefile, KBUILD_VMLINUX_LIBS); there
    lib/vsprintf.o has one (5.19 and later). System.map names what was taken.
    """
    found = read_initcalls([str(build_dir / "vmlinux.a")])
    try:
        symbols = (build_dir / "System.map").read_text()
    except OSError:
        return found
    for library in link_inputs(build_dir):
        if library.name != "vmlinux.a" and library.is_file():
            try:
                calls = read_initcalls([str(library)])
            except (UsageError, MalformedObject):
                continue  # None in it, or none that can be told: the order on the console shows what is missing.
            found += [call for call in calls if f" {call.symbol}\n" in symbols]
    return found


def compare(expected: Sequence[Initcall], console: str, *, returned: bool = False) -> Finding:
    """How the calls on a console, or in a log, differ from the objects' order, with the slowest of them.

    :param returned: go by the lines of the calls' ends.
    """
    before_init, _, _ = console.partition(_INIT_STARTS)
    ends = [name.removeprefix(_STUB) for name, _, _ in _RETURNED.findall(before_init)]
    calls = ends if returned else calls_in_log(before_init)
    wanted = [call for call in in_run_order(expected) if not call.level.startswith("con")]
    if not calls:
        return Finding("no initcall was traced: the kernel ignored initcall_debug, or has no kallsyms")
    wrong = log_differences(expected, calls)
    if not wrong and len(calls) > len(wanted):
        wrong = [
            f"initcall {len(wanted)} was {calls[len(wanted)]}, but no object has it, or it was called before"
        ]
    if wrong:
        twice = [name for name, times in Counter(calls).items() if times > 1]
        doubled = (f"called more than once: {', '.join(twice[:_SHOWN])}",) if twice else ()
        return Finding(wrong[0], (f"{len(calls)} calls, {len(wanted)} initcalls in the objects", *doubled))
    functions = {call.id + call.level: f"{call.function} (level {call.level})" for call in wanted}
    slowest = sorted(_durations(before_init), reverse=True)[:_SHOWN]
    shown = tuple(f"{micros / 1000:.1f} ms  {functions.get(name, name)}" for micros, name in slowest)
    return Finding(None, (f"{len(wanted)} initcalls in the objects' order, each once", *shown))


def _durations(console: str) -> list[tuple[int, str]]:
    """(microseconds, function) of each call."""
    found = []
    for name, _, micros in _RETURNED.findall(console):
        found.append((int(micros), name.removeprefix(_STUB)))
    return found
