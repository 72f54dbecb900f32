"""``klto dtlto-distributor``: runs the backends of LLVM's integrated distributed ThinLTO."""

from __future__ import annotations

import argparse
from pathlib import Path

from klto.cli.options import add_jobs_option


def configure(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.epilog = (
        "Used as: ld.lld --thinlto-distributor=klto --thinlto-distributor-arg=dtlto-distributor "
        "--thinlto-remote-compiler=/usr/bin/clang-22 ..."
    )
    parser.add_argument("request", type=Path, metavar="JSON", help="what the linker wrote; its last argument")
    parser.add_argument(
        "--cluster", metavar="ADDRESS", help="run backends there: tls://HOST:PORT, or local:N"
    )
    parser.add_argument(
        "--cache-dir", type=Path, metavar="DIR", help="the link cache (default: in the user's cache)"
    )
    parser.add_argument("--no-cache", action="store_true", help="generate all code anew")
    parser.add_argument("-v", dest="verbose", action="store_true", help="say what was done")
    add_jobs_option(parser)


def run(args: argparse.Namespace) -> int:
    """Run the backends; 0 when all objects are there."""
    import os
    import shutil
    import sys
    from contextlib import ExitStack

    from klto.build.plan import default_cache_dir
    from klto.cluster.address import check_cluster
    from klto.cluster.dtlto import distribute, read_request
    from klto.cluster.entry import runner_at
    from klto.cluster.use import Use
    from klto.errors import UsageError
    from klto.kernel.jobserver import ENV_JOBS
    from klto.machine import default_jobs

    request = read_request(args.request)
    address = check_cluster(args.cluster).text if args.cluster else ""
    compiler = shutil.which(request.common.args[0])
    if compiler is None:
        raise UsageError(
            f"no compiler {request.common.args[0]}", "give the linker --thinlto-remote-compiler=PATH"
        )
    request.common.args[0] = compiler
    os.environ[ENV_JOBS] = str(args.jobs or default_jobs())
    use = Use(address=address)
    cache = None if args.no_cache else (args.cache_dir or default_cache_dir()).absolute()
    with ExitStack() as stack:
        distribute(request, use, cache, lambda compiler: runner_at(address, compiler, use, stack))
    if args.verbose:
        print(
            f"klto: {use.modules} modules: {use.cached} from the cache, {use.remote} on workers, {use.local} here",
            file=sys.stderr,
        )
    return 0
