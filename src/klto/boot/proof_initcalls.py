"""The proof ``initcalls``: a boot with ``initcall_debug`` calls them as the objects have them, each once.

What was called is read in the kernel's log by klto's init. On a busy machine the serial console loses bytes.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from klto.boot.proofs import Finding, Heard, NotApplicable, Step
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
        text, source = kernel_log(heard)
        found = compare(expected, text)
        return Finding(found.problem, (*found.evidence, f"read {source}"))

    return (Step("initcalls", check, append=f"initcall_debug ignore_loglevel log_buf_len={_LOG}"),)


def kernel_log(heard: Heard) -> tuple[str, str]:
    """What the kernel said of initcalls, and where: in its log as init has read it; on the console where not all of
    that came."""
    lines = [(int(key[1:]), text) for key, text in heard.facts.items() if key.startswith("@")]
    whole = heard.facts.get("whole") == "1" and heard.facts.get("sent") == str(len(lines))
    if whole and lines:
        return "\n".join(text for _, text in sorted(lines)), "in the kernel's log"
    return (
        heard.console,
        "on the console, which loses bytes on a busy machine: init could not send the kernel's log",
    )


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


def compare(expected: Sequence[Initcall], console: str) -> Finding:
    """How the calls on a console differ from the objects' order, with the slowest of them."""
    before_init, _, _ = console.partition(_INIT_STARTS)
    calls = calls_in_log(before_init)
    wanted = [call for call in in_run_order(expected) if not call.level.startswith("con")]
    if not calls:
        return Finding("the console shows no initcall: the kernel ignored initcall_debug, or has no kallsyms")
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
