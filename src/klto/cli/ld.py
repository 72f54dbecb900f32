"""``klto ld``: the linker itself, with klto's link cache.

Takes ld.lld's command line, all of it. The linker is PATH's ld.lld, or the one that ``KLTO_LD`` names; ``KLTO_CACHE``
names another cache, empty for none. ``--cluster=ADDRESS``, as the first argument, has the backends run there.
"""

from __future__ import annotations

import argparse


def run(args: argparse.Namespace) -> int:
    """Link; the linker's own status."""
    import os
    import shutil

    from klto.build.plan import default_cache_dir
    from klto.errors import UsageError
    from klto.link.cached import ENV_CACHE, ENV_WHOLE
    from klto.link.entry import main
    from klto.link.run import ENV_CLUSTER
    from klto.machine import default_jobs

    linker = shutil.which(os.environ.get("KLTO_LD", "ld.lld"))
    if linker is None:
        raise UsageError("no ld.lld in PATH", "name one: KLTO_LD=/usr/lib/llvm-19/bin/ld.lld klto ld ...")
    os.environ.setdefault(ENV_CACHE, str(default_cache_dir()))
    os.environ.setdefault(ENV_WHOLE, "1")
    os.environ.setdefault("KLTO_JOBS", str(default_jobs()))
    arguments = list(args.arguments)
    if arguments and arguments[0].startswith("--cluster"):
        os.environ[ENV_CLUSTER] = _cluster(arguments)
    return main([linker, *arguments])


def _cluster(arguments: list[str]) -> str:
    """Take ``--cluster=ADDRESS`` or ``--cluster ADDRESS`` off the front."""
    from klto.cluster.address import check_cluster
    from klto.errors import UsageError

    name, equals, address = arguments.pop(0).partition("=")
    if name != "--cluster" or (not equals and not arguments):
        raise UsageError(f"no option of klto ld: {name}", "--cluster=tls://HOST:PORT or --cluster=local:N")
    return check_cluster(address if equals else arguments.pop(0)).text
