"""The command line: options in, exit status out. The only room that prints or exits.

One file per command, with ``configure(parser)`` and ``run(args) -> int``. A command's
file imports what it needs inside ``run``, so that ``klto --help`` stays fast.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys

from klto.errors import InterruptedRun, KltoError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType
    from typing import NoReturn

#: Command name to (module of this package, one line of help). Only the running command's module is imported.
COMMANDS: dict[str, tuple[str, str]] = {
    "doctor": ("doctor", "say what is installed or missing, and whether this tree and config can do LTO"),
    "build": ("build", "configure, build and verify a kernel with LTO"),
    "plan": ("plan", "say what memory, time and disk LTO will need here"),
    "compare": ("compare", "compare builds: sizes, symbols, times, memory, findings"),
    "report": ("report", "write a build's report as one HTML file, or its trace for Perfetto"),
    "history": ("history", "list and plot sizes, link times and memory over a tree's builds"),
    "cache": ("cache", "look after the link cache"),
    "ld": ("ld", "the linker itself: takes ld.lld's command line"),
    "cluster": ("cluster", "certificates, scheduler, workers and state of a cluster for LTO links"),
    "dtlto-distributor": ("dtlto_distributor", "run the backends of ld.lld's own distributed ThinLTO"),
    "minimize": ("minimize", "shrink a failure: to the options, objects or linker options that matter"),
    "hunt": ("hunt", "build random configurations, and keep what failed: explained and minimised"),
    "boot": ("boot", "boot a kernel in QEMU and run proofs"),
    "check": ("check", "find in objects what LTO breaks"),
    "rules": ("rules", "list what the checks look for, or explain one"),
    "rejoin": ("rejoin", "merge the split sections of a relocatable object"),
    "initcalls": ("initcalls", "print the linker script that orders initcalls"),
    "explain": ("explain", "name the failure in a build or boot log, its cause and its remedy"),
    "ksyms": ("ksyms", "say which exported symbols kernel modules need, and trim the others"),
}


def _run(argv: list[str]) -> int:
    """Run a command. One that has ``quick(argv)`` may run plain calls without argparse, which takes longer to
    import and to set up than reading a kernel's initcalls; it returns None for the others."""
    if argv and argv[0] in COMMANDS:
        quick = getattr(importlib.import_module(f"klto.cli.{COMMANDS[argv[0]][0]}"), "quick", None)
        if quick is not None and (status := quick(argv[1:])) is not None:
            return int(status)
    from klto.cli.parsing import parse

    args = parse(argv)
    return int(args.run(args))


def _on_term(signum: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def show_error(error: KltoError) -> None:
    """One error to stderr: details (if any), the line, the hint."""
    for line in error.details:
        print(f"  {line}", file=sys.stderr)
    print(f"klto: {error.message}", file=sys.stderr)
    if error.hint:
        print(f"  {error.hint}", file=sys.stderr)


def main(argv: list[str] | None = None) -> int:
    """Run one command; its exit status (see the contract in README.md)."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
            signal.signal(number, _on_term)
    try:
        status = _run(sys.argv[1:] if argv is None else argv)
        sys.stdout.flush()
        return status
    except KltoError as error:
        show_error(error)
        return error.exit_status
    except KeyboardInterrupt:
        print("klto: interrupted", file=sys.stderr)
        return InterruptedRun.exit_status
    except BrokenPipeError:
        # The reader of our output went away (klto ... | head): what it wanted, it has.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
