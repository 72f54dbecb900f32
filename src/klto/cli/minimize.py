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
    from klto.search.choose import OracleRequest
    from klto.search.engine import Oracle, Progress
    from klto.search.minimise_options import OptionsQuestion, OptionsResult
    from klto.search.options import OptionsOutcome
    from klto.search.runner import Runner

_EPILOG = """\
oracles (one of them): --run COMMAND..., --build-fails-like LOG, --boot-fails, --check RULE.
A command's exit status is read as by "git bisect run": 0 passes, 1 to 124 fails, 125 cannot be judged.

The same command run again goes on where it was stopped; no verdict is asked for twice.

  klto minimize options -C linux --bad bad.config --good good.config --build-fails-like build.log
  klto minimize options -C linux --bad .config --run sh -c '! grep -q CONFIG_KASAN=y "$KLTO_CONFIG"'
  klto minimize objects -b out --run ./check-vmlinux-o.sh
  klto minimize flags -b out --flag="-mllvm -import-instr-limit=0" --run ./check-vmlinux-o.sh
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
        "--good",
        default="allnoconfig",
        metavar="BASE",
        help="options: a .config, defconfig or allnoconfig (default)",
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
        help="flags: an option of the linker to try, as --flag=-OPTION (default: a list of klto's); repeatable",
    )  # fmt: skip
    parser.add_argument(
        "--among", metavar="PATTERN", action="append", default=[],
        help="objects: look among these ('mm/*'), all others stay in LTO; repeatable",
    )  # fmt: skip
    parser.add_argument(
        "--confirm", action="store_true", help="objects: build once with --no-lto, in a copy, and judge that"
    )
    oracle = parser.add_argument_group("oracle")
    oracle.add_argument("--build-fails-like", type=Path, metavar="LOG", help="it fails as this log tells")
    oracle.add_argument("--boot-fails", action="store_true", help="it does not boot, or a proof fails")
    oracle.add_argument("--check", metavar="RULE", help="klto check finds this")
    oracle.add_argument(
        "--run",
        dest="oracle_command",
        nargs=argparse.REMAINDER,
        metavar="COMMAND",
        help="a command's exit status (must come last)",
    )
    parser.add_argument(
        "--timeout", type=float, metavar="S", help="seconds that the command or boot may take"
    )
    parser.add_argument(
        "--target", dest="targets", metavar="TARGET", action="append", default=[],
        help="what to build (default: what the oracle needs); repeatable",
    )  # fmt: skip
    parser.add_argument(
        "--at-once", type=int, default=1, metavar="N", help="oracle calls at once (default 1)"
    )
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

    chosen = [args.oracle_command, args.build_fails_like, args.boot_fails or None, args.check]
    if sum(word is not None for word in chosen) != 1:
        raise UsageError(
            "name one oracle", "--run COMMAND..., --build-fails-like LOG, --boot-fails or --check RULE"
        )
    if args.oracle_command == []:
        raise UsageError("--run needs a command", "--run ./test.sh, as the last option")
    for option, number in (("--at-once", args.at_once), ("--calls", args.calls), ("-j", args.jobs)):
        if number is not None and number < 1:
            raise UsageError(f"{option} {number}: at least one is needed")
    become_subreaper()
    if args.what == "options":
        return _options(args)
    from klto.cli import minimize_link

    return minimize_link.run(args)


def oracle_request(args: argparse.Namespace) -> OracleRequest:
    """The oracle that was asked for; a command's program is named so that it is found from any folder."""
    from klto.search.choose import OracleRequest

    first, *rest = args.oracle_command or [""]
    command = (os.path.abspath(first) if "/" in first else first, *rest) if args.oracle_command else None
    return OracleRequest(
        run=command,
        build_fails_like=args.build_fails_like,
        boot_fails=args.boot_fails,
        rule=args.check,
        targets=tuple(args.targets),
        jobs=args.jobs,
        timeout=args.timeout,
    )


def at_once(args: argparse.Namespace) -> int:
    """Oracle calls at once, within the machine's limits."""
    from klto.machine import default_jobs

    return min(int(args.at_once), default_jobs())


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
            f"{how:>9}  {judged.label}: {judged.verdict.value} ({judged.evidence}{took}){best}",
            file=sys.stderr,
        )

    def note(self, text: str) -> None:
        """Something said once."""
        if not self._quiet:
            print(f"klto: {text}", file=sys.stderr)


def _options(args: argparse.Namespace) -> int:
    from klto.errors import UsageError
    from klto.kernel.kconfig_requests import parse_requests
    from klto.kernel.toolchain import find_toolchain
    from klto.kernel.tree import KernelTree, default_build_dir
    from klto.search.minimise_options import OptionsQuestion, minimise_options, question_id, state_folder
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
    request = oracle_request(args)
    if request.build_fails_like is not None and not request.build_fails_like.is_file():
        raise UsageError(f"--build-fails-like {request.build_fails_like}: no such file")
    asked = question_id(
        "options",
        tree.id,
        tree.arch,
        toolchain.clang_text,
        good,
        bad,
        *(r.line() for r in held),
        *request.identity,
    )
    question = OptionsQuestion(tree, toolchain, good, bad, held, state_folder(args.state, asked), asked)
    runner, watcher = Runner(), Watcher(args.quiet)
    result = minimise_options(
        question,
        _oracle_of_options(request, question, runner, watcher),
        watcher,
        note=watcher.note,
        stop=runner.stop,
        at_once=at_once(args) if request.run else 1,
        limit=args.calls,
    )
    _print_options(args, question, result)
    return 0


def _oracle_of_options(
    request: OracleRequest, question: OptionsQuestion, runner: Runner, watcher: Watcher
) -> Oracle[OptionsOutcome]:
    from klto.search.choose import builder_of, building_judge, command_of
    from klto.search.oracles import ConfigCommand, OfOptions, Places

    if request.run:
        return ConfigCommand(command_of(request, runner), Places(question.state / "work"))
    builder = builder_of(request, question.tree, question.toolchain, runner, question.state / "build")
    judge, words = building_judge(request, builder, question.bad)
    watcher.note(f"the oracle {words}")
    return OfOptions(judge)


def _print_options(args: argparse.Namespace, question: OptionsQuestion, result: OptionsResult) -> None:
    from klto.process import quote

    again = quote(
        ["klto", "build", "-C", question.tree.path, "-k", question.best_config, "--lto", "keep", "-b", "DIR"]
    )
    if args.json:
        import json

        told = {
            "schema": "klto/minimize/1",
            "what": "options",
            "options": [
                {"name": c.name, "bad": c.bad, "good": c.good, "needed_by": result.needed_by.get(c.name, [])}
                for c in result.changes
            ],
            "of": result.of,
            "calls": result.calls,
            "remembered": result.remembered,
            "fragment": str(question.best_fragment),
            "config": str(question.best_config),
            "again": again,
        }
        print(json.dumps(told, indent=2))
        return
    helpers = [change for change in result.changes if change.name in result.needed_by]
    also = f", and {len(helpers)} that kconfig needs for them" if helpers else ""
    count = len(result.changes) - len(helpers)
    print(f"{count} of {result.of} options matter{also} ({_calls(result.calls, result.remembered)}):")
    for change in result.changes:
        if change not in helpers:
            print(f"  {change.line()}   good: {change.good}")
    for change in helpers:
        print(
            f"  {change.line()}   good: {change.good}   needed for {', '.join(result.needed_by[change.name])}"
        )
    print(f"fragment  {question.best_fragment}\n.config   {question.best_config}\nagain     {again}")


def _calls(calls: int, remembered: int) -> str:
    known = f", {remembered} known from before" if remembered else ""
    return f"{calls} oracle calls{known}"
