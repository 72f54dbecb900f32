"""The proof ``cfi``: a call through a pointer of the wrong type is caught, in a boot of its own."""

from __future__ import annotations

import re

from klto.boot.console import ReportKind
from klto.boot.initramfs import Entry, regular
from klto.boot.proofs import Finding, Heard, NotApplicable, Place, Step
from klto.boot.subject import Subject

#: kernel/cfi.c, report_cfi_failure (6.1 and 6.12), at the function of drivers/misc/lkdtm/cfi.c that makes the call.
_CAUGHT = re.compile(r"CFI failure at lkdtm_indirect_call\S* ")
#: 6.0 and before: "CFI failure (target: lkdtm_increment_int.cfi_jt...)".
_CAUGHT_BEFORE = re.compile(r"CFI failure \(target: lkdtm_increment_int")


def prepare(subject: Subject) -> tuple[Step, ...]:
    """One step in a boot of its own, since the kernel ends of it.

    :raises NotApplicable: when the kernel has no LKDTM.
    """
    plan: tuple[str, ...] = ()
    files: tuple[Entry, ...] = ()
    if subject.config is not None and subject.config.get("LKDTM") == "m":
        module = subject.needed_build_dir() / "drivers/misc/lkdtm/lkdtm.ko"
        if not module.is_file():
            raise NotApplicable(f"needs LKDTM: {module} is missing")
        plan = ("module lkdtm /klto/lkdtm.ko",)
        files = (regular("klto/lkdtm.ko", module.read_bytes()),)
    elif subject.config is not None and not subject.has("LKDTM"):
        raise NotApplicable("needs CONFIG_LKDTM")
    return (Step("cfi", check, Place.CFI, plan, files, dies=True),)


def check(heard: Heard) -> Finding:
    """Whether the kernel has caught the call and nothing else went wrong before it."""
    lines = tuple(f"{report.kind}: {report.line}" for report in heard.reports)
    called = heard.facts.get("called") == "yes"
    first = heard.reports[0] if heard.reports else None
    if first is None:
        return Finding("a call through a pointer of the wrong type was made, and the kernel said nothing")
    if first.kind is not ReportKind.CFI or not called or not _is_ours(first.line):
        return Finding("the kernel complained of something else than LKDTM's call", lines)
    if heard.facts.get("survived") == "yes":
        return Finding(None, (first.line, "permissive: the call was reported and made all the same"))
    return Finding(None, (first.line, "the call was not made: its task was ended"))


def _is_ours(line: str) -> bool:
    return bool(_CAUGHT.search(line) or _CAUGHT_BEFORE.search(line))
