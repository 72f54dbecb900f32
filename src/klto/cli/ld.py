"""``klto ld``: the linker itself, with klto's link cache.

Takes ld.lld's command line, all of it. The linker is PATH's ld.lld, or the one that ``KLTO_LD`` names; ``KLTO_CACHE``
names another cache, empty for none.
"""

from __future__ import annotations

import argparse


def run(args: argparse.Namespace) -> int:
    """Link; the linker's own status."""
    import os
    import shutil

    from klto.build.plan import default_cache_dir
    from klto.errors import UsageError
    from klto.link.cached import ENV_CACHE
    from klto.link.entry import main
    from klto.machine import default_jobs

    linker = shutil.which(os.environ.get("KLTO_LD", "ld.lld"))
    if linker is None:
        raise UsageError("no ld.lld in PATH", "name one: KLTO_LD=/usr/lib/llvm-19/bin/ld.lld klto ld ...")
    os.environ.setdefault(ENV_CACHE, str(default_cache_dir()))
    os.environ.setdefault("KLTO_JOBS", str(default_jobs()))
    return main([linker, *args.arguments])
