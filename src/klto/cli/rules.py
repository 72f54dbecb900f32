"""``klto rules``: what the checks look for."""

from __future__ import annotations

import argparse
import sys
import textwrap
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from klto.check.rule import Rule


def configure(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("rule", metavar="RULE", nargs="?", help="explain this one")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout, nothing else there")


def run(args: argparse.Namespace) -> int:
    """List the rules, or explain one."""
    from klto.check.rule import all_rules
    from klto.cli.check import named

    rules = [named(args.rule)] if args.rule else all_rules()
    if args.json:
        import json

        text = (
            json.dumps({"schema": "klto/rules/1", "rules": [_fields(rule) for rule in rules]}, indent=1)
            + "\n"
        )
    elif args.rule:
        text = _explained(rules[0])
    else:
        width = max(len(rule.slug) for rule in rules)
        text = "".join(f"{rule.slug:<{width}}  {rule.title}\n" for rule in rules)
    sys.stdout.write(text)
    return 0


def _fields(rule: Rule) -> dict[str, object]:
    return {
        "rule": rule.slug,
        "title": rule.title,
        "what": rule.what,
        "why": rule.why,
        "remedies": list(rule.remedies),
        "references": list(rule.references),
    }


def _explained(rule: Rule) -> str:
    def wrapped(text: str, first: str = "", rest: str = "  ") -> str:
        return textwrap.fill(
            text, 100, initial_indent=first or rest, subsequent_indent=rest, break_on_hyphens=False
        )

    parts = [f"{rule.slug}: {rule.title}", "", "What goes wrong", wrapped(rule.what), "", "Why LTO causes it"]
    parts += [wrapped(f"{rule.why[0].upper()}{rule.why[1:]}."), "", "What to do, best first"]
    parts += [wrapped(remedy, "  * ", "    ") for remedy in rule.remedies]
    parts += ["", "See", *(wrapped(reference, "  * ", "    ") for reference in rule.references)]
    return "\n".join(parts) + "\n"
