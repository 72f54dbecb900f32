"""Arguments by argparse: the listing of commands, and the running command's options."""

from __future__ import annotations

import argparse
import importlib
from typing import NoReturn

from klto import __version__
from klto.cli import COMMANDS


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"klto: {message}\n  try: {self.prog} --help\n")


def _listing() -> str:
    width = max(map(len, COMMANDS))
    return "commands:\n" + "\n".join(f"  {name:<{width}}  {text}" for name, (_, text) in COMMANDS.items())


def parse(argv: list[str]) -> argparse.Namespace:
    """The command's options; ``run`` in them is what runs it."""
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
