"""What a distributed link has used and met: for the record and for the eyes of whoever waits."""

from __future__ import annotations

import sys

import msgspec


class Use(msgspec.Struct):
    """Counts of one link, bytes as they went over the wire and (``_raw``) before compression.

    :ivar cached: modules whose objects came from the link cache.
    :ivar remote: modules compiled on workers; ``local``: here.
    :ivar lost: backends that ended without a verdict on their module: worker gone, no memory, no disk, damaged.
    :ivar again: jobs run a second time because the first run was slow or silent.
    :ivar refused: workers with another toolchain.
    :ivar prepare_seconds: from the thin link's end until the last job was ready; the first have run by then.
    :ivar client_cpu_seconds: of the link's own process between thin and final link, loading Dask aside;
        ``helper``: of looking at modules and packing them; ``scheduler``: of the scheduler's process.
    :ivar faults: what happened, in words.
    """

    address: str = ""
    workers: int = 0
    modules: int = 0
    cached: int = 0
    remote: int = 0
    local: int = 0
    lost: int = 0
    again: int = 0
    refused: int = 0
    bytes_sent: int = 0
    bytes_sent_raw: int = 0
    bytes_received: int = 0
    bytes_received_raw: int = 0
    thin_link_seconds: float = 0.0
    prepare_seconds: float = 0.0
    backend_seconds: float = 0.0
    backend_cpu_seconds: float = 0.0
    final_link_seconds: float = 0.0
    client_cpu_seconds: float = 0.0
    helper_cpu_seconds: float = 0.0
    scheduler_cpu_seconds: float = 0.0
    faults: list[str] = []

    def say(self, text: str) -> None:
        """A fault: kept, and told at once."""
        self.faults.append(text)
        print(f"klto: {text}", file=sys.stderr, flush=True)
