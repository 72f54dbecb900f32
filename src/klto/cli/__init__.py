"""The command line: options in, exit status out. The only room that prints or exits.

One file per command, with ``configure(parser)`` and ``run(args) -> int``. A command's
file imports what it needs inside ``run``, so that ``klto --help`` stays fast.
"""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
from types import FrameType
from typing import NoReturn

from klto import __version__
from klto.errors import InterruptedRun, KltoError

#: Command name to (module of this package, one line of help). Only the running command's module is imported.
COMMANDS: dict[str, tuple[str, str]] = {
    "doctor": ("doctor", "say what is installed or missing, and whether this tree and config can do LTO"),
    "build": ("build", "configure, build and verify a kernel with LTO"),
    "cache": ("cache", "look after the link cache"),
    "ld": ("ld", "the linker itself: takes ld.lld's command line"),
    "boot": ("boot", "boot a kernel in QEMU and run proofs"),
    "initcalls": ("initcalls", "print the linker script that orders initcalls"),
    "ksyms": ("ksyms", "say which exported symbols kernel modules need, and trim the others"),
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"klto: {message}\n  try: {self.prog} --help\n")


def _listing() -> str:
    width = max(map(len, COMMANDS))
    return "commands:\n" + "\n".join(f"  {name:<{width}}  {text}" for name, (_, text) in COMMANDS.items())


def _parse(argv: list[str]) -> argparse.Namespace:
    top = _Parser(
        prog="klto",
        description="Builds Linux kernels with Clang LTO and proves that they are right.",
        epilog=_listing() + "\n\n'klto COMMAND --help' explains a command.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="klto [--version] [--help] COMMAND [ARGS...]",
    )
    top.add_argument("--version", action="version", version=f"klto {__version__}")
    top.add_argument("command", metavar="COMMAND", help=argparse.SUPPRESS)
    top.add_argument("rest", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    first = top.parse_args(argv[:1])
    if first.command not in COMMANDS:
        top.error(f"unknown command '{first.command}'")
    module_name, text = COMMANDS[first.command]
    module = importlib.import_module(f"klto.cli.{module_name}")
    parser = _Parser(prog=f"klto {first.command}", description=text[0].upper() + text[1:] + ".")
    if first.command == "ld":
        args = argparse.Namespace(arguments=argv[1:])  # The linker reads all of it, --help too.
    else:
        module.configure(parser)
        args = parser.parse_args(argv[1:])
    args.run, args.argv = module.run, argv
    return args


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
    signal.signal(signal.SIGTERM, _on_term)
    signal.signal(signal.SIGHUP, _on_term)
    try:
        args = _parse(sys.argv[1:] if argv is None else argv)
        status: int = args.run(args)
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
