"""Where the shim hands a link over: ``python3 -I -S entry.py REAL_LINKER ARGS...``.

Started by path and without site packages, so that it takes milliseconds; it finds klto by its own place.
"""

from __future__ import annotations

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from klto.link.hooks import Running, hooks_of, run_hook
from klto.link.inputs import read_inputs
from klto.link.request import parse_request
from klto.link.run import ENV_KEEP_NAMES, KEEP_NAMES_OPTIONS, ends_like, run_link


def main(argv: list[str]) -> int:
    """Run the link in ``argv`` (real linker, then its arguments); the exit status for make."""
    linker, arguments = argv[0], argv[1:]
    if os.environ.get(ENV_KEEP_NAMES):
        arguments += KEEP_NAMES_OPTIONS
    request = parse_request(arguments)
    hooks = hooks_of(request.output)
    before = Running(hooks.before, arguments)
    inputs = read_inputs(request)
    if inputs.bitcode == 0:
        status = before.wait()
        if status == 0 and not hooks.after:
            os.execv(linker, argv)
        return status or run_hook(argv, []) or run_hook(hooks.after, [request.output])
    returncode = run_link(linker, arguments, request, inputs, before)
    status = before.wait()
    if status:
        try:
            os.unlink(request.output)  # It may have been linked before it was found that it must not be.
        except FileNotFoundError:
            return status
        return status
    if returncode < 0:
        ends_like(returncode)
    return returncode or run_hook(hooks.after, [request.output])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
