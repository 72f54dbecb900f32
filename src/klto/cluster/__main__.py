"""One link on a cluster, for the linker shim: ``python3 -P __main__.py USE JOBS LINKER ARGS...``.

USE is a file that gets what the link used and met, as JSON; JOBS is how many backends may run on this machine when
there are no workers. Ends with ``NOT_DISTRIBUTED`` when only the linker itself can do this link.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

#: process.ENDING_SIGNALS, which is not imported yet.
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

# While Python imports, which takes half a second, nothing has begun that would have to be ended.
_HEARD = [number for number in _ENDING if signal.getsignal(number) is not signal.SIG_IGN]  # nohup
for _number in _HEARD:
    signal.signal(_number, lambda number, frame: os._exit(130))

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import msgspec

from klto.cli import show_error
from klto.cluster.entry import cluster_link
from klto.cluster.use import Use
from klto.errors import InterruptedRun, KltoError
from klto.kernel.jobserver import ENV_JOBS
from klto.link.cached import ENV_CACHE
from klto.link.elsewhere import NOT_DISTRIBUTED
from klto.link.request import parse_request
from klto.link.run import ENV_CLUSTER
from klto.process import CommandFailed

if TYPE_CHECKING:
    from types import FrameType


def _on_term(signum: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def main(argv: list[str]) -> int:
    """Link; the exit status for make."""
    for number in _HEARD:
        signal.signal(number, _on_term)
    account, jobs, linker, *arguments = argv
    os.environ[ENV_JOBS] = jobs
    use = Use()
    try:
        finished = cluster_link(
            os.environ[ENV_CLUSTER],
            linker,
            arguments,
            parse_request(arguments),
            os.environ.get(ENV_CACHE),
            use,
        )
        return NOT_DISTRIBUTED if finished is None else finished.returncode
    except CommandFailed as error:
        # The thin link: the linker's own words.
        sys.stderr.write(error.finished.stderr)
        return error.finished.returncode
    except KltoError as error:
        show_error(error)
        return error.exit_status
    except KeyboardInterrupt:
        return InterruptedRun.exit_status
    finally:
        Path(account).write_bytes(msgspec.json.encode(use))


if __name__ == "__main__":
    status = main(sys.argv[1:])
    if status == InterruptedRun.exit_status:
        # All that was begun has ended. An exception may have come in the middle of anything, even of what Python's own
        # libraries would do at exit (logging's locks).
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)
