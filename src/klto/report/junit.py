"""Results as JUnit XML, in the form that Jenkins, GitLab and GitHub's actions read (Ant's ``junit`` task)."""

from __future__ import annotations

import re
from xml.etree import ElementTree

from klto.boot.proofs import ProofResult
from klto.boot.run import BootResult

#: Characters that XML 1.0 (section 2.2) does not allow, not even escaped.
_FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")

#: A proof's status to the element that says so: JUnit calls what could not be decided an error.
_ELEMENTS = {"failed": "failure", "unknown": "error", "not-applicable": "skipped"}


def junit_xml(result: BootResult) -> bytes:
    """One test suite, a test case for each proof, with the evidence as its output."""
    statuses = [str(proof.status) for proof in result.proofs]
    counts = {
        "tests": str(len(statuses)),
        "failures": str(statuses.count("failed")),
        "errors": str(statuses.count("unknown")),
        "skipped": str(statuses.count("not-applicable")),
        "time": f"{result.seconds:.3f}",
    }
    root = ElementTree.Element("testsuites", {"name": "klto boot", **counts})
    suite = ElementTree.SubElement(root, "testsuite", {"name": f"klto.boot.{result.arch}", **counts})
    properties = ElementTree.SubElement(suite, "properties")
    for name, value in (
        ("image", str(result.image)),
        ("release", result.release or ""),
        ("arch", result.arch),
    ):
        ElementTree.SubElement(properties, "property", {"name": name, "value": _clean(value)})
    for proof in result.proofs:
        suite.append(_case(proof, result.arch))
    ElementTree.indent(root)
    return bytes(ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)) + b"\n"


def _case(proof: ProofResult, arch: str) -> ElementTree.Element:
    attributes = {"classname": f"klto.boot.{arch}", "name": proof.name, "time": f"{proof.seconds:.3f}"}
    case = ElementTree.Element("testcase", attributes)
    lines = _clean("\n".join(proof.evidence))
    element = _ELEMENTS.get(proof.status)
    first = _clean(proof.evidence[0]) if proof.evidence else str(proof.status)
    if element == "skipped":
        ElementTree.SubElement(case, element, {"message": first})
    elif element is not None:
        ElementTree.SubElement(case, element, {"message": first, "type": str(proof.status)}).text = lines
    if lines:
        ElementTree.SubElement(case, "system-out").text = lines
    return case


def _clean(text: str) -> str:
    return _FORBIDDEN.sub("?", text)
