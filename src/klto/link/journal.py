"""Lines for the journal (``.klto/events.jsonl``) from a link's own process.

The same lines as :mod:`klto.events` writes, by the standard library alone: this process must start in
milliseconds. tests/fast/test_link.py decodes them with klto.events' types.
"""

from __future__ import annotations

import json
import os
import sys
import time

#: The environment variable that names the journal.
ENV_JOURNAL = "KLTO_JOURNAL"


def append(event: str, **fields: object) -> None:
    """Append one event. One write to a file opened for appending: lines of several links do not mix."""
    path = os.environ.get(ENV_JOURNAL)
    if not path:
        return
    line = json.dumps({"event": event, "time": time.time(), **fields}) + "\n"
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            os.write(descriptor, line.encode("utf-8", "surrogateescape"))
        finally:
            os.close(descriptor)
    except OSError as error:
        # A link that can be done is done; klto itself stops over a journal that it cannot write.
        print(f"klto: cannot write {path}: {error.strerror}", file=sys.stderr)
