"""Findings as SARIF 2.1.0 (OASIS standard, https://docs.oasis-open.org/sarif/sarif/v2.1.0/)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from urllib.parse import quote

from klto import __version__
from klto.check.finding import Finding
from klto.check.rule import Rule

_SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"


def as_sarif(findings: Sequence[Finding], rules: Sequence[Rule]) -> str:
    """A SARIF log with one run."""
    names = [rule.slug for rule in rules]
    others = sorted({finding.rule for finding in findings} - set(names))
    driver = {
        "name": "klto",
        "version": __version__,
        "rules": [*map(_rule, rules), *({"id": name} for name in others)],
    }
    index = {name: number for number, name in enumerate([*names, *others])}
    run = {
        "tool": {"driver": driver},
        "columnKind": "utf16CodeUnits",
        "results": [_result(finding, index) for finding in findings],
    }
    return json.dumps({"$schema": _SCHEMA, "version": "2.1.0", "runs": [run]}, indent=1) + "\n"


def _rule(rule: Rule) -> dict[str, object]:
    """A reportingDescriptor (3.49)."""
    help_text = "\n".join(("To do:", *rule.remedies, "See:", *rule.references))
    return {
        "id": rule.slug,
        "name": "".join(part.capitalize() for part in rule.slug.split("-")),
        "shortDescription": {"text": rule.title},
        "fullDescription": {"text": f"{rule.what} Why LTO: {rule.why}."},
        "help": {"text": help_text},
    }


def _result(finding: Finding, index: dict[str, int]) -> dict[str, object]:
    """A result (3.27). Places in objects are addresses (3.32), sections and symbols logical locations (3.33)."""
    physical: dict[str, object] = {"artifactLocation": {"uri": quote(finding.artifact, safe="/.-_~+,=@()")}}
    if finding.offset is not None:
        physical["address"] = {
            "relativeAddress": finding.offset,
            "kind": "section",
            **({"name": finding.section} if finding.section else {}),
        }
    location: dict[str, object] = {"physicalLocation": physical}
    logical = [
        {"name": name, "kind": kind}
        for name, kind in ((finding.symbol, "function"), (finding.section, "module"))
        if name
    ]
    if logical:
        location["logicalLocations"] = logical
    result: dict[str, object] = {
        "ruleId": finding.rule,
        "ruleIndex": index[finding.rule],
        "level": str(finding.level),
        "message": {"text": finding.message},
        "locations": [location],
        "properties": {
            key: value
            for key, value in (
                ("seen", finding.seen),
                ("allowed", finding.allowed),
                ("remedies", list(finding.remedies)),
                ("references", list(finding.references)),
            )
            if value
        },
    }
    if finding.source:
        result["relatedLocations"] = [
            {"physicalLocation": {"artifactLocation": {"uri": quote(finding.source, safe="/.-_~+,=@()")}}}
        ]
    return result
