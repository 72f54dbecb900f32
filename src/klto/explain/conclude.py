"""From lines found to explanations: which entries hold, whose lines are whose, in which order they are told."""

from __future__ import annotations

import re
import string
from collections.abc import Mapping, Sequence

from klto.explain.knowledge import CONFIDENCES, Clause, Entry, Signature
from klto.explain.matcher import MAX_HITS, ErrorLine, Hit, Matcher
from klto.explain.model import Explanation, LogLine, Remedy
from klto.explain.stages import MAKE_FAILED

#: Culprits that an explanation names, and lines that it shows.
MAX_CULPRITS, MAX_LINES = 20, 6
#: Lines after an error in which make reports the target that failed by it.
_TARGET_LINES = 60
#: ``mm/built-in.a(gup.o at 2432)``: how lld names a bitcode module of an archive (lld/ELF/InputFiles.cpp, BitcodeFile).
_MEMBER = re.compile(r"(?P<archive>[\w./+-]+\.a)\((?P<name>[\w.+-]+)\.o(?: at \d+)?\)")
#: A message of a tool that calls it an error though it can be a warning too (objtool since 6.15, modpost).
_IS_ERROR = re.compile(r"\berror: |\bERROR: |\bFATAL: ")
#: A path relative to the tree, with a folder.
_IN_TREE = re.compile(r"[\w+-][\w.+-]*/[\w./+-]+\.(?:c|S|o|ko|a)(?:\.\w+)?")
#: Captures that can be the culprit, the most telling first.
CULPRIT_CAPTURES = ("culprit", "symbol", "object", "module", "function", "section", "option", "file")


def conclude(entries: Sequence[Entry], matcher: Matcher) -> list[Explanation]:
    """What is known, best first."""
    found = [(entry, hits) for entry in entries if (hits := _hits_of(entry, matcher))]
    present = {entry.id for entry, _ in found}
    found = [(entry, hits) for entry, hits in found if present.isdisjoint(entry.yields_to)]
    claimed = {hit.number for entry, hits in found if not entry.generic for _, hit, _ in hits}
    explained: list[Explanation] = []
    for entry, hits in found:
        own = [hit for hit in hits if not entry.generic or hit[1].number not in claimed]
        if own:
            explained.append(_explanation(entry, own, matcher))
    order = {name: place for place, name in enumerate(CONFIDENCES)}
    return sorted(
        explained,
        key=lambda e: (e.severity != "error", e.confidence == "low", e.lines[0].number, order[e.confidence]),
    )


def _hits_of(entry: Entry, matcher: Matcher) -> list[tuple[Signature, Hit, dict[str, str]]]:
    """The entry's lines with all captures, those of lines near them included."""
    if any(matcher.tally(clause).count for clause in entry.never):
        return []
    hits = []
    for signature in entry.match:
        for hit in matcher.tally(signature).hits:
            captures = _with_near(signature, hit, matcher)
            if captures is not None:
                hits.append((signature, hit, captures))
    return sorted(hits, key=lambda item: item[1].number)


def _with_near(signature: Signature, hit: Hit, matcher: Matcher) -> dict[str, str] | None:
    captures = dict(hit.captures)
    if any(_nearest(clause, hit.number, matcher) for clause in signature.not_near):
        return None
    for clause in signature.near:
        near = _nearest(clause, hit.number, matcher)
        if near is None:
            return None
        captures = {**near.captures, **captures}
    return captures


def _nearest(clause: Clause, number: int, matcher: Matcher) -> Hit | None:
    hits = matcher.tally(clause).hits
    best = min(hits, key=lambda hit: abs(hit.number - number), default=None)
    return best if best is not None and abs(best.number - number) <= clause.within else None


def _explanation(
    entry: Entry, hits: Sequence[tuple[Signature, Hit, dict[str, str]]], matcher: Matcher
) -> Explanation:
    signature, first, captures = min(
        hits, key=lambda item: (CONFIDENCES.index(item[0].confidence), item[1].number)
    )
    confidence = signature.confidence
    if not entry.confirmed and confidence == "high":
        confidence = "medium"
    culprits = tuple(dict.fromkeys(name for _, _, names in hits if (name := culprit_of(names))))
    texts = {hit.text for _, hit, _ in hits}
    lines = [LogLine(first.number, first.text)]
    lines += [
        LogLine(first.number + 1 + place, text)
        for place, text in enumerate(first.below)
        if text.lstrip().startswith(">>>")
    ]
    for _, hit, _ in hits:
        if hit.text in texts and hit.text != first.text:
            lines.append(LogLine(hit.number, hit.text))
            texts.discard(hit.text)
    tallies = [matcher.tally(s) for s in entry.match]
    kept = {hit.number for _, hit, _ in hits}
    beyond = sum(
        max(0, tally.count - len(tally.hits)) for tally in tallies if not any(s.near for s in entry.match)
    )
    unread = sum(tally.unread for tally in tallies)
    captures = _with_places(captures, first, matcher)
    culprit = culprit_of(captures) or (culprits[0] if culprits else None) or captures.get("target")
    return Explanation(
        id=entry.id,
        title=fill(entry.title, captures) or entry.title,
        stage=entry.stage,
        confidence=confidence,
        culprit=culprit,
        culprits=culprits[:MAX_CULPRITS],
        lines=tuple(dict.fromkeys(lines))[:MAX_LINES],
        count=len(kept) + beyond + unread,
        count_exact=unread == 0,
        severity="error" if _IS_ERROR.search(first.text) else entry.severity,
        lto=entry.lto,
        confirmed=entry.confirmed,
        cause=" ".join(entry.cause.split()),
        why=" ".join(entry.why.split()),
        affects=" ".join(entry.affects.split()),
        remedies=remedies_of(entry, captures),
        references=tuple(entry.references),
        captures=captures,
    )


def _with_places(captures: dict[str, str], hit: Hit, matcher: Matcher) -> dict[str, str]:
    """Captures with ``target``, what make could not make just after the line, and ``path``, what ``--no-lto`` takes:
    a source file or folder of the tree."""
    target = next(
        (
            found["target"]
            for error in matcher.errors
            if hit.number <= error.number <= hit.number + _TARGET_LINES
            and (found := MAKE_FAILED.search(error.text))
        ),
        None,
    )
    places = {"target": target} if target else {}
    names = [captures[name] for name in ("path", "file", "object", "member", "module") if name in captures]
    path = next((place for name in (*names, *places.values()) if (place := source_place(name))), "PATH")
    return {**places, "path": path, **captures}


def source_place(name: str) -> str | None:
    """The source file or folder behind the name of an object, an archive's member or a kernel module; None when the
    name does not tell: no folder in it, or not in the tree."""
    member = _MEMBER.fullmatch(name)
    if member and "/" in member["archive"]:
        return f"{member['archive'].rpartition('/')[0]}/{member['name']}.c"
    if not _IN_TREE.fullmatch(name) or ".." in name:
        return None
    return name if name.endswith((".c", ".S")) else name.rpartition("/")[0] + "/"


def culprit_of(captures: Mapping[str, str]) -> str | None:
    """The capture that names what is at fault."""
    return next((captures[name] for name in CULPRIT_CAPTURES if name in captures), None)


def remedies_of(entry: Entry, captures: Mapping[str, str]) -> tuple[Remedy, ...]:
    """The entry's remedies with captures filled in."""
    return tuple(_remedy(remedy.text, remedy.command, captures) for remedy in entry.remedies)


def _remedy(text: str, command: str | None, captures: Mapping[str, str]) -> Remedy:
    plain = " ".join((fill(text, captures) or _without_fields(text)).split())
    return Remedy(plain, fill(command, captures) if command else None)


def fill(text: str, captures: Mapping[str, str]) -> str | None:
    """Text with captures for ``{names}``; None when one is missing."""
    names = [name for _, name, _, _ in string.Formatter().parse(text) if name]
    if any(name not in captures for name in names):
        return None
    for name in names:
        text = text.replace("{" + name + "}", captures[name])
    return text


def _without_fields(text: str) -> str:
    for name in [name for _, name, _, _ in string.Formatter().parse(text) if name]:
        text = text.replace("{" + name + "}", f"the {name}")
    return text


def uncovered_errors(entries: Sequence[Entry], matcher: Matcher) -> list[ErrorLine]:
    """Error lines that no entry explains, nor would if another did not explain the same failure better."""
    covered: set[int] = set()
    for entry in entries:
        hits = _hits_of(entry, matcher)
        covered.update(hit.number for _, hit, _ in hits)
        for signature in {id(signature): signature for signature, _, _ in hits}.values():
            for clause in (signature, *signature.near):
                covered.update(hit.number for hit in matcher.tally(clause).hits if clause is not signature)
                if matcher.tally(clause).count > MAX_HITS:
                    covered.update(error.number for error in matcher.errors if clause.search(error.text))
    return [error for error in matcher.errors if error.number not in covered]
