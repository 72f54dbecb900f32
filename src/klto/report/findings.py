"""Findings for people and as schema ``klto/check/1``."""

from __future__ import annotations

import json
from collections.abc import Sequence

from klto.check.finding import Finding, Level, counts, many

SCHEMA = "klto/check/1"


def as_text(findings: Sequence[Finding], *, notes: bool = True, verbose: bool = False) -> str:
    """One line for each finding, its best remedy below; the reasons and references only when ``verbose``."""
    lines = []
    told: set[str] = set()
    for finding in findings:
        if finding.level is Level.NOTE and not notes:
            continue
        lines.append(
            f"{finding.level}: {finding.artifact}{_place(finding)}: {finding.message} [{finding.rule}]"
        )
        if finding.source and finding.source not in finding.message:
            lines.append(f"  look at: {finding.source}")
        if finding.level is Level.NOTE and not verbose:
            continue
        # The reason is the rule's: once is enough.
        if finding.rule not in told or verbose:
            told.add(finding.rule)
            if finding.why:
                lines.append(f"  why: {finding.why}")
            shown = finding.remedies if verbose else finding.remedies[:1]
            lines += [f"  to do: {remedy}" for remedy in shown]
            lines += [f"  see: {reference}" for reference in finding.references] if verbose else []
    lines.append(summary_line(findings))
    return "".join(f"{line}\n" for line in lines)


def _place(finding: Finding) -> str:
    if finding.section is None:
        return "" if finding.offset is None else f": at {finding.offset:#x}"
    return f": {finding.section}" + ("" if finding.offset is None else f"+{finding.offset:#x}")


def summary_line(findings: Sequence[Finding]) -> str:
    """``1 error, 0 warnings, 2 notes``."""
    number = counts(findings)
    return ", ".join(many(count, level) for level, count in number.items())


def as_json(findings: Sequence[Finding]) -> str:
    """One object of schema ``klto/check/1``."""
    found = {
        "schema": SCHEMA,
        "findings": [finding.as_json() for finding in findings],
        "summary": counts(findings),
    }
    return json.dumps(found, indent=1) + "\n"
