"""``klto hunt``."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from klto.cli.options import add_jobs_option, add_output_options, add_tree_options

if TYPE_CHECKING:
    from klto.search.hunt import HuntRequest
    from klto.search.hunt_store import HuntStore

_EPILOG = """\
The same command run again goes on where it was stopped. Results: hunt.sqlite and a folder per finding in --dir.

  klto hunt -C linux --count 5 --max-objects 1000 -K hunt.config
  klto hunt -C linux --time 8h --boot -K hunt.config
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _EPILOG
    add_tree_options(parser)
    parser.add_argument(
        "-K", dest="fragments", metavar="FRAGMENT", action="append", default=[],
        help="what must hold in every configuration: CONFIG_X=y or a fragment file; repeatable",
    )  # fmt: skip
    parser.add_argument(
        "--lto", choices=("thin", "full"), default="thin", help="the LTO mode (default: thin)"
    )
    parser.add_argument("--dir", type=Path, metavar="DIR", help="results (default: in the user's cache)")
    parser.add_argument("--count", type=int, metavar="N", help="stop after N kernels in all")
    parser.add_argument(
        "--time", type=_seconds, metavar="T", help="start no new one after this: 90s, 30m, 8h"
    )
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="the first seed (default 1)")
    parser.add_argument(
        "--probability", type=_probability, default="10", metavar="P",
        help="KCONFIG_PROBABILITY: percent of options that are on (default 10)",
    )  # fmt: skip
    parser.add_argument(
        "--max-objects", type=int, metavar="N", help="leave out configurations of more objects"
    )
    parser.add_argument("--each", type=_seconds, metavar="T", help="time that one build may take")
    parser.add_argument("--boot", action="store_true", help="boot what was built, in QEMU")
    parser.add_argument(
        "--target", dest="targets", metavar="TARGET", action="append", default=[],
        help="what to build (default: the whole kernel); repeatable",
    )  # fmt: skip
    parser.add_argument(
        "--minimize-calls", type=int, default=80, metavar="N",
        help="oracle calls to minimise a new failure with (default 80; 0: do not)",
    )  # fmt: skip
    parser.add_argument("--list", action="store_true", help="print what was found so far, and stop")
    add_jobs_option(parser)
    add_output_options(parser)


def _seconds(text: str) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"not a time: {text!r} (90, 90s, 30m, 8h)")
    return float(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[found[2]]


def _probability(text: str) -> str:
    # conf.c (6.12), conf_set_all_new_symbols: one to three numbers, of which the last two add up to 100 at most.
    numbers = [int(word) for word in text.split(":")] if re.fullmatch(r"\d+(:\d+){0,2}", text) else [101]
    if max(numbers) > 100 or (len(numbers) > 1 and sum(numbers[-2:]) > 100):
        raise argparse.ArgumentTypeError(f"not a probability: {text!r} (percent: P, Y:M or B:Y:M)")
    return text


def run(args: argparse.Namespace) -> int:
    """Hunt; 0 when the count or the time is reached."""
    from klto.cli.minimize import Watcher
    from klto.errors import UsageError
    from klto.files import user_cache_dir
    from klto.kernel.kconfig_requests import lto_requests, parse_requests
    from klto.kernel.toolchain import find_toolchain
    from klto.kernel.tree import KernelTree
    from klto.process import become_subreaper
    from klto.search.hunt import Hunt, HuntRequest
    from klto.search.hunt_config import base_of
    from klto.search.hunt_store import HuntStore
    from klto.search.runner import Runner

    for option, number in (("--count", args.count), ("--max-objects", args.max_objects), ("-j", args.jobs)):
        if number is not None and number < 1:
            raise UsageError(f"{option} {number}: at least one is needed")
    if args.boot and args.targets:
        raise UsageError("--boot needs the whole kernel", "leave out --target")
    if args.build_dir is not None:
        raise UsageError("a hunt makes its own build dirs", "name the folder for all of it with --dir")
    tree = KernelTree.open(args.tree, args.arch)
    folder = (args.dir or user_cache_dir() / "hunt" / f"{tree.id}-{tree.arch}").absolute()
    tree.check_build_dir(folder / "work")
    request = HuntRequest(
        tree=tree,
        toolchain=find_toolchain(tree, None, args.toolchain),
        base=base_of(tree, lto_requests(args.lto), parse_requests(list(args.fragments))),
        folder=folder,
        first_seed=args.seed,
        probability=args.probability,
        count=args.count,
        seconds=args.time,
        most_objects=args.max_objects,
        each=args.each,
        boot=args.boot,
        targets=tuple(args.targets),
        jobs=args.jobs,
        minimise_calls=args.minimize_calls,
    )
    store = HuntStore(folder, request.campaign)
    watcher = Watcher(args.quiet)
    try:
        if not args.list:
            become_subreaper()
            watcher.note(f"results: {folder}")
            Hunt(request, store, Runner(), watcher.note, watcher).carry_out()
    finally:
        _print(args, request, store)
    return 0


def _print(args: argparse.Namespace, request: HuntRequest, store: HuntStore) -> None:
    if args.json:
        import json
        from dataclasses import asdict

        listing = {
            "schema": "klto/hunt/1",
            "campaign": request.campaign,
            "runs": [asdict(run) for run in store.runs()],
            "findings": [asdict(f) | {"folder": str(f.folder)} for f in store.findings()],
        }
        print(json.dumps(listing, indent=2))
        return
    if args.quiet:
        return
    runs, findings = store.runs(), store.findings()
    numbers = {finding.signature: finding.number for finding in findings}
    print(f"{'seed':>6} {'objects':>8} {'time':>8}  outcome")
    for run in runs:
        found = numbers.get(run.signature or "")
        what = run.outcome or "under way"
        told = f"{what}, finding {found}" if found else f"{what}: {run.detail}" if run.detail else what
        took = "" if run.seconds is None else f"{run.seconds:.0f} s"
        print(f"{run.seed:>6} {'' if run.objects is None else run.objects:>8} {took:>8}  {told}")
    for finding in findings:
        shrunk = f", {finding.options} options" if finding.options is not None else ""
        times = "once" if finding.seen <= 1 else f"{finding.seen} times"
        print(f"finding {finding.number}: {finding.title}")
        state = f"{finding.state}{shrunk}{_part_of_lto(finding.folder)}"
        print(f"  seen {times}, first with seed {finding.seed}; {state}: {finding.folder}")
    sys.stdout.flush()


def _part_of_lto(folder: Path) -> str:
    """Whether it is known that a finding is not LTO's, by the explanation that lies beside it."""
    import json

    try:
        known = json.loads((folder / "explanation.json").read_bytes())["explanations"]
        return ", not LTO's fault" if known and not any(one["lto"] for one in known) else ""
    except (OSError, ValueError, KeyError, TypeError):
        return ""  # Nothing is known.
