"""A link on a cluster, as the linker shim and ``klto ld`` do it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from klto.cluster.address import parse_address
from klto.cluster.link import distributed_link
from klto.cluster.local import LocalRunner
from klto.cluster.local_cluster import started_address
from klto.cluster.options import Undistributable
from klto.cluster.use import Use
from klto.kernel.jobserver import ENV_JOBS

if TYPE_CHECKING:
    from contextlib import ExitStack

    from klto import process
    from klto.cluster.local import Runner
    from klto.cluster.toolchain import Compiler
    from klto.link.request import LinkRequest


def cluster_link(
    address: str, linker: str, arguments: list[str], request: LinkRequest, cache: str | None, use: Use
) -> process.Finished | None:
    """Link with backends at ``address``; None when this link cannot be distributed, and nothing was done.

    :raises KltoError: as :func:`klto.cluster.link.distributed_link`, and for a bad address or bad certificates.
    """
    from contextlib import ExitStack

    parse_address(address)
    use.address = address
    with ExitStack() as stack:
        try:
            return distributed_link(
                linker, arguments, request, use, Path(cache) if cache else None,
                lambda compiler, use: runner_at(address, compiler, use, stack),
            )  # fmt: skip
        except Undistributable as problem:
            use.say(f"{request.output} is linked here, not on the cluster: {problem}")
            return None


def runner_at(address: str, compiler: Compiler, use: Use, stack: ExitStack) -> Runner:
    """Who runs jobs for ``address``; empty for this machine alone."""
    local = LocalRunner(compiler, int(os.environ.get(ENV_JOBS, "1")), use)
    if not address:
        return local
    where = stack.enter_context(started_address(parse_address(address)))
    # Late: importing Dask takes half a second, and a link whose modules are all in the cache needs none.
    from klto.cluster.pool import ClusterRunner

    return ClusterRunner(where, compiler, use, local)
