"""``klto initcalls``: the linker script that orders initcalls."""

from __future__ import annotations

import argparse
import sys

from klto.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
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


def run(args: argparse.Namespace) -> int:
    """Print the script; 0, or 2 by an error when there are no initcalls."""
    from klto.kernel.initcalls import linker_script, read_initcalls

    initcalls = read_initcalls(args.archives)
    text = _as_json(initcalls) if args.format == "json" else linker_script(initcalls)
    write(text, args.output)
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
            "module": initcall.module,
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
    try:
        with open(output, "wb") as file:
            file.write(data)
    except OSError as error:
        raise UsageError(f"{output}: cannot be written: {error.strerror}") from error
