"""``klto minimize objects`` and ``klto minimize flags``."""

from __future__ import annotations

import argparse
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from klto.kernel.tree import KernelTree
    from klto.search.bitcode_link import Linker
    from klto.search.choose import OracleRequest
    from klto.search.minimise_link import LinkResult, LinkSearch, OfKernels, OfLinks
    from klto.search.oracles import Builder
    from klto.search.runner import Runner
    from klto.search.verdicts import Verdict


def run(args: argparse.Namespace) -> int:
    """Search; 0 when there is an answer."""
    from klto.cli.minimize import Watcher, oracle_request
    from klto.errors import UsageError
    from klto.kernel.toolchain import find_toolchain
    from klto.kernel.tree import KernelTree, default_build_dir, is_kernel_tree
    from klto.machine import default_jobs
    from klto.search.bitcode_link import Linker, read_link
    from klto.search.link_spaces import DEFAULT_FLAGS
    from klto.search.minimise_link import LinkSearch
    from klto.search.minimise_options import question_id, state_folder
    from klto.search.runner import Runner

    tree = KernelTree.open(args.tree, args.arch) if is_kernel_tree(args.tree) else None
    if args.build_dir is None and tree is None:
        raise UsageError("no kernel to look at", "name its build dir with -b DIR")
    build_dir = (
        (args.build_dir or default_build_dir(tree, "thin")).absolute() if tree else args.build_dir.absolute()
    )
    link = read_link(build_dir)
    toolchain = find_toolchain(tree, build_dir, args.toolchain)
    request = oracle_request(args)
    flags = tuple(args.flags) or DEFAULT_FLAGS
    asked = question_id(
        args.what, str(build_dir), link.identity, toolchain.clang_text, *request.identity,
        *([args.find, *args.among] if args.what == "objects" else flags),
    )  # fmt: skip
    state = state_folder(args.state, asked)
    runner, watcher = Runner(), Watcher(args.quiet)
    linker = Linker(link, toolchain, state, runner, args.jobs or default_jobs())
    search = LinkSearch(link, state, watcher, watcher.note, runner.stop, args.calls, tuple(args.among), asked)
    oracle = _oracle(request, linker, tree, runner)
    if args.what == "flags":
        result = search.flags(_link_only(oracle).flags, flags)
    else:
        result = search.objects(oracle.objects, args.find)
    _print(args, search, linker, result, _confirmed(args, oracle, result, tree, request))
    return 0


def _oracle(
    request: OracleRequest, linker: Linker, tree: KernelTree | None, runner: Runner
) -> OfLinks | OfKernels:
    from klto.errors import UsageError
    from klto.search.choose import builder_of, command_of
    from klto.search.likeness import read_failure
    from klto.search.minimise_link import CommandOnLink, LinkFailsLike, OfKernels, OfLinks
    from klto.search.oracles import Places

    places = Places(linker.folder / "work")
    if request.run:
        return OfLinks(linker, CommandOnLink(command_of(request, runner), linker.link.build_dir), places)
    if request.build_fails_like is not None:
        return OfLinks(linker, LinkFailsLike(read_failure(request.build_fails_like)[0]), places)
    if tree is None:
        raise UsageError("this oracle builds: it needs the kernel tree", "name it with -C DIR")
    builder = builder_of(request, tree, linker.toolchain, runner, linker.folder / "build")
    return OfKernels(linker, builder, _looks_at(request, builder))


def _looks_at(request: OracleRequest, builder: Builder) -> Callable[[], tuple[Verdict, str]]:
    """The oracle for a kernel that has been built."""
    from klto.search.minimise_link import boots
    from klto.search.oracles import finds

    if request.rule is not None:
        return partial(finds, builder, request.rule)
    return partial(boots, builder, request.timeout)


def _link_only(oracle: OfLinks | OfKernels) -> OfLinks:
    from klto.errors import UsageError
    from klto.search.minimise_link import OfLinks

    if not isinstance(oracle, OfLinks):
        raise UsageError("flags are tried on the link alone", "use --run COMMAND or --build-fails-like LOG")
    return oracle


def _confirmed(
    args: argparse.Namespace,
    oracle: OfLinks | OfKernels,
    result: LinkResult,
    tree: KernelTree | None,
    request: OracleRequest,
) -> tuple[bool, str] | None:
    """One real build, if that was asked for and can be judged; whether it is well, and what was done."""
    if args.what != "objects":
        return None
    if not args.confirm:
        return False, "unconfirmed: --confirm builds once with --no-lto"
    from klto.errors import UsageError
    from klto.search.choose import builder_of
    from klto.search.minimise_link import OfLinks, confirm

    if tree is None:
        raise UsageError("--confirm builds: it needs the kernel tree", "name it with -C DIR")
    left_out = result.cures[:1] or result.found
    linker = oracle.linker
    builder = builder_of(request, tree, linker.toolchain, linker.runner, linker.folder / "confirm")
    if isinstance(oracle, OfLinks):
        return confirm(builder, linker.link, left_out, partial(oracle.judge, True))
    look = _looks_at(request, builder)
    return confirm(builder, linker.link, left_out, lambda build_dir: look())


def _print(
    args: argparse.Namespace,
    search: LinkSearch,
    linker: Linker,
    result: LinkResult,
    confirmed: tuple[bool, str] | None,
) -> None:
    if args.json:
        import json

        told = {
            "schema": "klto/minimize/1",
            "what": args.what,
            "find": args.find if args.what == "objects" else "flags",
            "found": result.found,
            "of": result.of,
            "cures": result.cures,
            "confirmed": confirmed[0] if confirmed else None,
            "calls": result.calls,
            "remembered": result.remembered,
            "backends": linker.backends,
            "links": linker.links,
            "state": str(search.state),
        }
        print(json.dumps(told, indent=2))
        return
    known = f", {result.remembered} known from before" if result.remembered else ""
    how = f"{result.calls} oracle calls{known}; {linker.links} links, {linker.backends} backends, nothing compiled"
    if args.what == "flags":
        print(f"{len(result.found)} of {result.of} options matter ({how}):")
    elif args.find == "enough":
        print(f"{len(result.found)} of {result.of} modules in LTO are enough to fail ({how}):")
    else:
        print(f"well with {len(result.found)} of {result.of} modules left out of LTO ({how}):")
    for name in result.found:
        cure = "   leaving it out alone is enough to be well" if name in result.cures else ""
        print(f"  {name}{cure}")
    if confirmed is not None:
        print(confirmed[1])
