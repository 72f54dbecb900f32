"""``klto check``."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from klto.check.finding import Finding
    from klto.check.rule import Rule

FAIL_ON = ("error", "warning", "never")


def configure(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument(
        "paths",
        metavar="PATH",
        nargs="*",
        type=Path,
        help="objects, archives, modules, images, folders, build dirs",
    )
    parser.add_argument(
        "-b", dest="build_dir", metavar="DIR", type=Path, help="a build dir: every artifact by what it is for"
    )
    parser.add_argument(
        "--format",
        choices=("text", "json", "sarif"),
        default="text",
        help="how to print findings (default text)",
    )
    parser.add_argument("--json", dest="format", action="store_const", const="json", help="as --format json")
    parser.add_argument(
        "--fail-on", choices=FAIL_ON, default="error", help="exit with 3 from this level on (default error)"
    )
    parser.add_argument(
        "--rule", dest="rules", metavar="RULE", action="append", default=[], help="only this rule; repeatable"
    )
    parser.add_argument(
        "--single-text", action="store_true", help="every object must have one executable section"
    )
    parser.add_argument(
        "-K",
        dest="fragments",
        metavar="FRAGMENT",
        action="append",
        default=[],
        help="a fragment or CONFIG_X=y that the build dir's .config must have; repeatable",
    )
    parser.add_argument("-o", dest="output", metavar="FILE", help="write to FILE instead of stdout")
    parser.add_argument("-q", "--quiet", action="store_true", help="print errors and warnings only")
    parser.add_argument("-v", "--verbose", action="store_true", help="all reasons, remedies and references")


def run(args: argparse.Namespace) -> int:
    """Check; 3 when a finding is at or above ``--fail-on``."""
    from klto.check.finding import fails, in_order
    from klto.check.run import check_build, check_paths
    from klto.errors import FindingsError, UsageError

    rules = _rules(args.rules, args.single_text, args.fragments)
    builds = [path for path in args.paths if (path / ".config").is_file()]
    builds += [args.build_dir] if args.build_dir is not None else []
    files = [str(path) for path in args.paths if path not in builds]
    if not files and not builds:
        if not Path(".config").is_file():
            raise UsageError(
                "nothing to check: this folder is no build dir", "name one with -b DIR, or files"
            )
        builds = [Path()]
    if args.fragments and not builds:
        raise UsageError("-K needs a build dir", "name one with -b DIR")
    found = check_paths(files, rules) if files else []
    for path in builds:
        from klto.check.build_dir import BuildDir

        build = BuildDir(path.absolute())
        if build.is_empty and not args.quiet:
            print(f"klto: nothing is built in {path}: only its configuration is checked", file=sys.stderr)
        found += check_build(build, rules, aside=len(os.sched_getaffinity(0)) > 1)
    found = in_order(found)
    _write(_shown(found, rules, args), args.output)
    return FindingsError.exit_status if fails(found, args.fail_on) else 0


def _rules(names: Sequence[str], single_text: bool, fragments: Sequence[str]) -> list[Rule]:
    from klto.check.rule import all_rules
    from klto.check.rules.lost import LtoLost
    from klto.check.rules.text import SplitText

    rules = all_rules()
    if names:
        rules = [named(name) for name in dict.fromkeys(names)]
    for rule in rules:
        if isinstance(rule, SplitText):
            rule.everywhere = single_text
        if isinstance(rule, LtoLost) and fragments:
            from klto.kernel.kconfig_requests import parse_requests

            rule.wanted = {request.name: request.value for request in parse_requests(list(fragments))}
    return rules


def named(name: str) -> Rule:
    """The rule of that name.

    :raises UsageError: when there is none.
    """
    from klto.check.rule import all_rules
    from klto.errors import UsageError

    rules = {rule.slug: rule for rule in all_rules()}
    if name not in rules:
        raise UsageError(f"there is no rule '{name}'", f"rules: {', '.join(rules)}")
    return rules[name]


def _shown(found: Sequence[Finding], rules: Sequence[Rule], args: argparse.Namespace) -> str:
    from klto.report.findings import as_json, as_text

    if args.format == "json":
        return as_json(found)
    if args.format == "sarif":
        from klto.report.sarif import as_sarif

        return as_sarif(found, rules)
    return as_text(found, notes=not args.quiet, verbose=args.verbose)


def _write(text: str, output: str | None) -> None:
    if output is None:
        sys.stdout.write(text)
        return
    from klto.files import write_whole

    write_whole(Path(output), text)
