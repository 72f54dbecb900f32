"""What the linker shim runs for a build: ``python -m klto.build.link_hook check|rejoin ...``.

``check BUILD_DIR LTO FAIL_ON FINDINGS LINKER_ARGUMENTS...`` before the vmlinux.o link, ``rejoin LINKER OUTPUT``
after a link whose output is to be merged. Its output is in the build's log.
"""

from __future__ import annotations

import sys
from pathlib import Path

from klto.errors import FindingsError, KltoError


def main(argv: list[str]) -> int:
    """Do it; the exit status, which ends the link when it is not 0."""
    try:
        if argv[0] == "check":
            return _check(argv[1:])
        return _rejoin(argv[1:])
    except KltoError as error:
        for line in error.details:
            print(f"  {line}", file=sys.stderr)
        print(f"klto: {error.message}", file=sys.stderr)
        return error.exit_status


def _check(argv: list[str]) -> int:
    from klto.check.finding import fails
    from klto.check.link_inputs import LinkInputs
    from klto.check.run import check_link
    from klto.files import write_whole
    from klto.link.request import parse_request
    from klto.report.findings import as_json, as_text

    build_dir, lto, fail_on, findings, *arguments = argv
    request = parse_request(arguments)
    found = check_link(LinkInputs(request.output, request.inputs, request.words, lto, root=build_dir))
    write_whole(Path(findings), as_json(found))
    if not fails(found, fail_on):
        return 0
    print(f"klto: {request.output} is not linked:", file=sys.stderr)
    print(as_text(found, notes=False), file=sys.stderr, end="")
    return FindingsError.exit_status


def _rejoin(argv: list[str]) -> int:
    from klto.check.rejoin import rejoin

    linker, output = argv
    done = rejoin(Path(output), Path(output), Path(linker))
    print(f"klto: {output}: {done.executable_before} executable sections are {done.executable_after} now")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
