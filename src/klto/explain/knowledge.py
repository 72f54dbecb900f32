"""The entries: one TOML file per failure in ``knowledge/``. docs/explain.md describes the schema."""

from __future__ import annotations

import functools
import re
import tomllib
from collections.abc import Iterable, Iterator
from importlib import resources

import msgspec

from klto.errors import KltoError
from klto.explain.literals import SPAN
from klto.explain.stages import Stage

CONFIDENCES = ("high", "medium", "low")
#: A line that has to be near another is looked for so many lines above and below, unless the entry says otherwise.
NEAR_LINES = 40


class KnowledgeError(KltoError):
    """An entry that breaks the schema."""


class Clause(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A line that has to be, or must not be, in the log.

    :ivar literal: text that every such line holds, at least seven bytes; one of several.
    :ivar pattern: regular expression, searched in the cleaned line; named groups are captures.
    :ivar unless: patterns of which none may be found in that line.
    :ivar within: for ``near`` and ``not_near``: lines above and below where it is looked for.
    """

    literal: str | list[str]
    pattern: str
    unless: list[str] = []
    within: int = NEAR_LINES

    @property
    def literals(self) -> list[bytes]:
        """As the bytes to look for."""
        texts = [self.literal] if isinstance(self.literal, str) else self.literal
        return [text.encode() for text in texts]

    def search(self, text: str) -> re.Match[str] | None:
        """The match in a line, None when it is not such a line."""
        found = compiled(self.pattern).search(text)
        if found is None or any(compiled(pattern).search(text) for pattern in self.unless):
            return None
        return found


class Signature(Clause, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One way in which a failure shows.

    :ivar confidence: that it is this failure when the line is there.
    :ivar near: further lines, all of which must be near it. Their captures count too.
    :ivar not_near: lines none of which may be near it.
    """

    confidence: str = "high"
    near: list[Clause] = []
    not_near: list[Clause] = []


class RemedyText(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A remedy; ``{name}`` in both stands for a capture, and ``command`` is left out when one is missing."""

    text: str
    command: str | None = None


class When(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where it can be: kernel and LLVM from (included) and until (excluded), architectures, configuration.

    Lines of ``config`` are ``CONFIG_X=y`` or ``!CONFIG_X``; all of them must hold.
    """

    kernel_from: str | None = None
    kernel_until: str | None = None
    llvm_from: str | None = None
    llvm_until: str | None = None
    arch: list[str] = []
    config: list[str] = []


class Sample(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A log as its test.

    :ivar source: where it is from, of a real one.
    :ivar culprit: what must be named.
    """

    log: str
    source: str | None = None
    culprit: str | None = None


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A failure that is known; the fields are described in docs/explain.md."""

    id: str
    title: str
    stage: Stage
    cause: str
    confirmed: bool
    match: list[Signature]
    remedies: list[RemedyText]
    references: list[str]
    real: list[Sample]
    severity: str = "error"
    lto: bool = True
    generic: bool = False
    why: str = ""
    affects: str = ""
    when: When = When()
    never: list[Clause] = []
    yields_to: list[str] = []
    variant: list[Sample] = []
    other: list[Sample] = []

    def clauses(self) -> Iterator[Clause]:
        """Every line that has to be looked for."""
        for signature in self.match:
            yield signature
            yield from signature.near
            yield from signature.not_near
        yield from self.never


@functools.cache
def compiled(pattern: str) -> re.Pattern[str]:
    """A pattern, compiled when it is first needed."""
    return re.compile(pattern)


@functools.lru_cache(maxsize=1)
def entries() -> tuple[Entry, ...]:
    """All entries, by id.

    :raises KnowledgeError: when one breaks the schema.
    """
    folder = resources.files(__package__) / "knowledge"
    files = sorted((item for item in folder.iterdir() if item.name.endswith(".toml")), key=lambda f: f.name)
    found = tuple(parse_entry(file.read_text("utf-8"), file.name) for file in files)
    known = {entry.id for entry in found}
    for entry in found:
        if missing := set(entry.yields_to) - known:
            raise KnowledgeError(f"{entry.id}.toml: yields_to names no entry: {', '.join(sorted(missing))}")
    return found


def parse_entry(text: str, name: str) -> Entry:
    """One entry from its file.

    :raises KnowledgeError: when it breaks the schema.
    """
    try:
        entry = msgspec.convert(tomllib.loads(text), Entry)
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise KnowledgeError(f"{name}: {error}", "docs/explain.md describes an entry") from error
    if problems := list(_problems(entry, name)):
        raise KnowledgeError(f"{name}: {problems[0]}", "docs/explain.md describes an entry")
    return entry


def _problems(entry: Entry, name: str) -> Iterable[str]:
    if name != f"{entry.id}.toml":
        yield f"its id is {entry.id}, so its name must be {entry.id}.toml"
    if entry.severity not in ("error", "warning"):
        yield f"severity is {entry.severity}, not error or warning"
    if not entry.match or not entry.real or not entry.remedies:
        yield "it needs at least one [[match]], one [[real]] and one remedy"
    if any(sample.source is None for sample in entry.real):
        yield "a [[real]] log needs its source"
    for signature in entry.match:
        if signature.confidence not in CONFIDENCES:
            yield f"confidence is {signature.confidence}, not one of {', '.join(CONFIDENCES)}"
    for clause in entry.clauses():
        if any(len(literal) < SPAN for literal in clause.literals):
            yield f"literal {clause.literal!r} has fewer than {SPAN} bytes"
        try:
            for pattern in (clause.pattern, *clause.unless):
                re.compile(pattern)
        except re.error as error:
            yield f"pattern {clause.pattern!r}: {error}"
