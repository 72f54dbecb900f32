"""``klto initcalls``: the linker script that orders initcalls."""

from __future__ import annotations

import sys

from klto.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from klto.kernel.initcalls import Initcall


def configure(parser: argparse.ArgumentParser) -> None:
    """Its options."""
    parser.add_argument("archives", metavar="ARCHIVE", nargs="+", help="archives or objects, in link order")
    parser.add_argument("-o", dest="output", metavar="FILE", help="write to FILE instead of stdout")
    parser.add_argument(
        "--format",
        choices=("lds", "json"),
        default="lds",
        help="lds: what scripts/generate_initcall_order.pl prints; json: level, function, object and order",
    )
    parser.add_argument("--json", dest="format", action="store_const", const="json", help="as --format json")


def quick(argv: list[str]) -> int | None:
    """Plain calls, archives and nothing else, as Kbuild would make them; None for all others."""
    if not argv or any(argument.startswith("-") for argument in argv):
        return None
    return _print(argv, "lds", None)


def run(args: argparse.Namespace) -> int:
    """Print the script; 0, or 2 by an error when there are no initcalls."""
    return _print(args.archives, args.format, args.output)


def _print(archives: list[str], form: str, output: str | None) -> int:
    from klto.kernel.initcalls import linker_script, read_initcalls

    initcalls = read_initcalls(archives)
    write(_as_json(initcalls) if form == "json" else linker_script(initcalls), output)
    return 0


def _as_json(initcalls: Sequence[Initcall]) -> str:
    """Entries in the script's order; ``order`` counts them as the kernel will run them."""
    import json

    from klto.kernel.initcalls import in_run_order

    order = {id(initcall): number for number, initcall in enumerate(in_run_order(initcalls))}
    entries = [
        {
            "order": order[id(initcall)],
            "level": initcall.level,
            "function": initcall.function,
            "object": initcall.object,
            "module": initcall.module.removeprefix("kmod_"),
            "line": int(initcall.line),
            "id": initcall.id,
        }
        for initcall in initcalls
    ]
    return json.dumps({"schema": "klto/initcalls/1", "initcalls": entries}, indent=1) + "\n"


def write(text: str, output: str | None) -> None:
    """Text to a file or to stdout, names with bytes that are no UTF-8 as they were.

    :raises UsageError: when the file cannot be written.
    """
    data = text.encode("utf-8", "surrogateescape")
    if output is None:
        sys.stdout.buffer.write(data)
        return
    from pathlib import Path

    from klto.files import write_whole

    path = Path(output)
    if path.is_file() or not path.exists():
        write_whole(path, data)
        return
    # A device or a pipe must not be replaced by a file.
    try:
        path.write_bytes(data)
    except OSError as error:
        raise UsageError(f"cannot write {output}: {error.strerror}") from error
