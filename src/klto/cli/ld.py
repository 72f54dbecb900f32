"""``klto ld``: the linker itself, with klto's link cache.

Takes ld.lld's command line, all of it. The linker is PATH's ld.lld, or the one that ``KLTO_LD`` names. klto's own
options stand before the linker's: ``--cache-dir=DIR`` and ``--no-cache`` (or ``KLTO_CACHE``, empty for none), and
``--cluster=ADDRESS``, which has the backends run there.
"""

from __future__ import annotations

import argparse


def run(args: argparse.Namespace) -> int:
    """Link; the linker's own status."""
    import os
    import shutil

    from klto.build.plan import default_cache_dir, linkers_file
    from klto.errors import UsageError
    from klto.link.cached import ENV_CACHE, ENV_LINKERS, ENV_WHOLE
    from klto.link.entry import main
    from klto.link.run import ENV_CLUSTER
    from klto.machine import default_jobs

    linker = shutil.which(os.environ.get("KLTO_LD", "ld.lld"))
    if linker is None:
        raise UsageError("no ld.lld in PATH", "name one: KLTO_LD=/usr/lib/llvm-19/bin/ld.lld klto ld ...")
    arguments = list(args.arguments)
    while (option := _own_option(arguments)) is not None:
        name, value = option
        if name == "--cluster":
            from klto.cluster.address import check_cluster

            os.environ[ENV_CLUSTER] = check_cluster(value).text
        else:
            os.environ[ENV_CACHE] = os.path.abspath(os.path.expanduser(value)) if value else ""
    os.environ.setdefault(ENV_CACHE, str(default_cache_dir()))
    os.environ.setdefault(ENV_LINKERS, str(linkers_file()))
    os.environ.setdefault(ENV_WHOLE, "1")
    os.environ.setdefault("KLTO_JOBS", str(default_jobs()))
    return main([linker, *arguments])


def _own_option(arguments: list[str]) -> tuple[str, str] | None:
    """Take one of klto's options off the front: (name, value); None when the linker's begin there."""
    from klto.errors import UsageError

    name, equals, value = arguments[0].partition("=") if arguments else ("", "", "")
    if name == "--no-cache" and not equals:
        arguments.pop(0)
        return name, ""
    if name not in ("--cluster", "--cache-dir"):
        return None
    arguments.pop(0)
    if not equals and arguments:
        value = arguments.pop(0)
    if not value or value.startswith("-"):
        raise UsageError(f"klto ld: {name} without a value", f"{name}=...")
    return name, value
