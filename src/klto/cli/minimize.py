"""``klto minimize``."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from klto.cli.options import add_jobs_option, add_output_options, add_tree_options

if TYPE_CHECKING:
    from klto.kernel.toolchain import Toolchain
    from klto.kernel.tree import KernelTree
    from klto.search.engine import Progress
    from klto.search.minimise_options import OptionsResult
    from klto.search.oracles import Builder
    from klto.search.runner import Runner

_EPILOG = """\
oracles (one of them): --run COMMAND..., --build-fails-like LOG, --boot-fails, --check RULE.
A command's exit status is read as by "git bisect run": 0 passes, 1 to 124 fails, 125 cannot be judged.

The same command run again goes on where it was stopped; no verdict is asked for twice.

  klto minimize options -C linux --bad bad.config --good good.config --build-fails-like build.log
  klto minimize options -C linux --bad .config --run sh -c '! grep -q CONFIG_KASAN=y "$KLTO_CONFIG"'
  klto minimize objects -b out --run ./check-vmlinux-o.sh
  klto minimize flags -b out --flag "-mllvm -import-instr-limit=0" --run ./check-vmlinux-o.sh
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _EPILOG
    parser.add_argument(
        "what",
        choices=("options", "objects", "flags"),
        help="options of a .config; objects to leave out of LTO; options of the linker",
    )
    add_tree_options(parser)
    parser.add_argument("--bad", type=Path, metavar="FILE", help="options: fails (default: -b's .config)")
    parser.add_argument(
        "--good", default="allnoconfig", metavar="BASE", help="options: a .config, defconfig or allnoconfig (default)"
    )
    parser.add_argument(
        "-K", dest="fragments", metavar="FRAGMENT", action="append", default=[],
        help="options: CONFIG_X=y or a fragment file that every candidate has; repeatable",
    )  # fmt: skip
    parser.add_argument(
        "--find",
        choices=("enough", "leave-out"),
        default="enough",
        help="objects: the fewest that fail when only they are in LTO (default), or that must be left out of it",
    )
    parser.add_argument(
        "--flag", dest="flags", metavar="WORDS", action="append", default=[],
        help="flags: an option of the linker to try (default: a list of klto's); repeatable",
    )  # fmt: skip
    oracle = parser.add_argument_group("oracle")
    oracle.add_argument("--build-fails-like", type=Path, metavar="LOG", help="it fails as this log tells")
    oracle.add_argument("--boot-fails", action="store_true", help="it does not boot, or a proof fails")
    oracle.add_argument("--check", metavar="RULE", help="klto check finds this")
    oracle.add_argument(
        "--run", nargs=argparse.REMAINDER, metavar="COMMAND", help="a command's exit status (must come last)"
    )
    parser.add_argument("--timeout", type=float, metavar="S", help="seconds that the command or boot may take")
    parser.add_argument(
        "--target", dest="targets", metavar="TARGET", action="append", default=[],
        help="what to build (default: what the oracle needs); repeatable",
    )  # fmt: skip
    parser.add_argument("--at-once", type=int, default=1, metavar="N", help="oracle calls at once (default 1)")
    parser.add_argument("--calls", type=int, metavar="N", help="stop after N oracle calls")
    parser.add_argument(
        "--state", type=Path, metavar="DIR", help="where verdicts are kept (default: in the user's cache)"
    )
    add_jobs_option(parser)
    add_output_options(parser)


def run(args: argparse.Namespace) -> int:
    """Search; 0 when there is an answer."""
    from klto.errors import UsageError
    from klto.process import become_subreaper

    chosen = [args.run, args.build_fails_like, args.boot_fails or None, args.check]
    if sum(word is not None for word in chosen) != 1:
        raise UsageError(
            "name one oracle", "--run COMMAND..., --build-fails-like LOG, --boot-fails or --check RULE"
        )
    if args.run == []:
        raise UsageError("--run needs a command", "--run ./test.sh, as the last option")
    for option, number in (("--at-once", args.at_once), ("--calls", args.calls), ("-j", args.jobs)):
        if number is not None and number < 1:
            raise UsageError(f"{option} {number}: at least one is needed")
    become_subreaper()
    if args.what == "options":
        return _options(args)
    from klto.cli import minimize_link

    return minimize_link.run(args)


def command_of(args: argparse.Namespace) -> tuple[str, ...]:
    """The oracle's command, its program named so that it is found from any folder."""
    first, *rest = args.run
    return (os.path.abspath(first) if "/" in first else first, *rest)


def at_once(args: argparse.Namespace) -> int:
    """Oracle calls at once, within the machine's limits."""
    from klto.machine import default_jobs

    return min(int(args.at_once), default_jobs())


def show_progress(args: argparse.Namespace) -> Progress:
    """Prints each verdict on stderr."""


class Watcher:
    """Prints each verdict on stderr, with the best result so far."""

    def __init__(self, quiet: bool) -> None:
        self._quiet = quiet
        self._begun = time.monotonic()

    def __call__(self, progress: Progress) -> None:
        if self._quiet:
            return
        judged = progress.judged
        how = f"call {progress.calls}" if progress.fresh else "known"
        best = f"; best so far {progress.best}" if progress.best is not None else ""
        took = f", {judged.seconds:.1f} s" if progress.fresh else ""
        print(
            f"{how:>9}  {judged.label}: {judged.verdict.value} ({judged.evidence}{took}){best}", file=sys.stderr
        )

    def note(self, text: str) -> None:
        """Something said once."""
        if not self._quiet:
            print(f"klto: {text}", file=sys.stderr)


def _options(args: argparse.Namespace) -> int:
    from klto.errors import UsageError
    from klto.files import user_cache_dir
    from klto.kernel.kconfig_requests import parse_requests
    from klto.kernel.toolchain import find_toolchain
    from klto.kernel.tree import KernelTree, default_build_dir
    from klto.search.minimise_options import OptionsQuestion, minimise_options, question_id
    from klto.search.runner import Runner

    tree = KernelTree.open(args.tree, args.arch)
    where = args.build_dir or default_build_dir(tree, "thin")
    bad = args.bad or where / ".config"
    if not bad.is_file():
        raise UsageError(f"no configuration that fails: {bad} does not exist", "name one with --bad FILE")
    good = args.good if args.good in ("allnoconfig", "defconfig") else Path(args.good)
    if isinstance(good, Path) and not good.is_file():
        raise UsageError(f"--good {good}: no such file", "give a .config file, defconfig or allnoconfig")
    toolchain = find_toolchain(tree, where, args.toolchain)
    held = parse_requests(list(args.fragments))
    oracle_id = (args.run, args.boot_fails, args.check, args.build_fails_like, args.timeout, args.targets)
    state = args.state or user_cache_dir() / "minimize" / question_id(
        "options", tree.id, tree.arch, toolchain.clang_text, good, bad, [r.line() for r in held], *oracle_id
    )
    question = OptionsQuestion(tree, toolchain, good, bad, held, state.absolute())
    runner = Runner()
    watcher = Watcher(args.quiet)
    result = minimise_options(
        question,
        _oracle(args, tree, toolchain, question.state, runner, watcher),
        watcher,
        note=watcher.note,
        stop=runner.stop,
        at_once=at_once(args),
        limit=args.calls,
    )
    _print_options(args, question, result)
    return 0
