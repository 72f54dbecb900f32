"""Looks for every entry's lines, and for error lines of any kind, in one pass over a log."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from klto.explain.error_lines import ERROR_LITERALS, WARNING_LITERALS, fold_key, is_error, is_warning
from klto.explain.knowledge import Clause, Entry
from klto.explain.literals import Literals
from klto.explain.source import Window

#: Lines of one clause that are kept; the others are counted.
MAX_HITS = 64
#: Lines with one literal that are read; those after them are counted by the literal alone.
MAX_READ = 1500
#: Literals too frequent to be read that are counted still: each costs 0.05 s for 100 MB.
MAX_COUNTED = 16
#: Error lines kept, and kinds of warnings.
MAX_ERRORS, MAX_FOLDED = 400, 200
#: Lines kept above and below an error line.
ABOVE, BELOW = 3, 4
#: The kernel's first line says which it is and who compiled it (init/version.c).
BANNER = b"Linux version "


@dataclass(frozen=True)
class Hit:
    """A line that a clause matches."""

    number: int
    text: str
    captures: Mapping[str, str]
    below: tuple[str, ...]


@dataclass
class Tally:
    """What was found of a clause: hits in order, how many, and how many lines may come on top."""

    hits: list[Hit] = field(default_factory=list)
    count: int = 0
    unread: int = 0
    last: int = 0


@dataclass(frozen=True)
class ErrorLine:
    """A line that speaks of an error, with those around it."""

    number: int
    text: str
    above: tuple[str, ...]
    below: tuple[str, ...]


@dataclass
class Fold:
    """Warnings of one kind."""

    number: int
    text: str
    count: int = 1


@dataclass
class _Line:
    number: int
    begin: int
    end: int
    text: str


class Matcher:
    """Fed with windows in order; holds what was found.

    :ivar errors: error lines in order, the first :data:`MAX_ERRORS`.
    :ivar folds: warnings by what they have in common.
    :ivar folds_exact: whether every warning was read; they are counted no more when there are too many.
    :ivar banner: the kernel's first line, if the log has it.
    """

    def __init__(self, entries: Sequence[Entry]) -> None:
        self.tallies: dict[int, Tally] = {}
        self.errors: list[ErrorLine] = []
        self.folds: dict[str, Fold] = {}
        self.banner = ""
        self.folds_exact = True
        self._clauses: dict[bytes, list[Clause]] = {}
        for entry in entries:
            for clause in entry.clauses():
                for literal in clause.literals:
                    self._clauses.setdefault(literal, []).append(clause)
        words = sorted(set(self._clauses) | ERROR_LITERALS | WARNING_LITERALS | {BANNER})
        self._literals = Literals(words)
        self._read = [0] * len(words)
        self._frequent: list[int] = []
        self._last_error = self._last_warning = 0

    def tally(self, clause: Clause) -> Tally:
        """What was found of it."""
        return self.tallies.setdefault(id(clause), Tally())

    def feed(self, window: Window) -> None:
        """Search one window."""
        for number in self._frequent:
            count = window.data.count(self._literals.literals[number], window.begin, window.end)
            self._unread(self._literals.literals[number], count)
        found = self._literals.find(window.data, window.begin, window.end)
        events: list[tuple[int, int]] = []
        full: dict[int, int] = {}
        for number, places in found.items():
            literal = self._literals.literals[number]
            room = MAX_READ - self._read[number]
            self._read[number] += len(places)
            events.extend(
                (at, number) for at in places[:room].tolist() if window.data.startswith(literal, at)
            )
            if len(places) > room:
                full[number] = window.data.count(literal, int(places[room]), window.end)
        for line, literals in _by_line(window, sorted(events)):
            self._line(window, line, [self._literals.literals[number] for number in literals])
        if full:
            self._too_many(full)

    def _too_many(self, full: Mapping[int, int]) -> None:
        """Read these literals' lines no more; their counts of unread occurrences come with them."""
        self._literals.drop(full)
        literals = self._literals.literals
        self.folds_exact &= WARNING_LITERALS.isdisjoint(literals[number] for number in full)
        for number, count in full.items():
            self._unread(literals[number], count)
            if literals[number] in self._clauses and len(self._frequent) < MAX_COUNTED:
                self._frequent.append(number)

    def _unread(self, literal: bytes, count: int) -> None:
        for clause in self._clauses.get(literal, ()):
            tally = self.tally(clause)
            tally.unread += count if tally.count else 0

    def _line(self, window: Window, line: _Line, literals: Sequence[bytes]) -> None:
        if BANNER in literals:
            self.banner = self.banner or line.text
        for literal in literals:
            for clause in self._clauses.get(literal, ()):
                tally = self.tally(clause)
                if tally.last == line.number:
                    continue
                found = clause.search(line.text)
                if found is None:
                    continue
                tally.last = line.number
                tally.count += 1
                if len(tally.hits) < MAX_HITS:
                    below = window.neighbours(line.begin, line.end, 0, BELOW)[1]
                    captures = {key: value for key, value in found.groupdict().items() if value}
                    tally.hits.append(Hit(line.number, line.text, captures, tuple(below)))
        if (
            not ERROR_LITERALS.isdisjoint(literals)
            and line.number != self._last_error
            and is_error(line.text)
        ):
            self._last_error = line.number
            if len(self.errors) < MAX_ERRORS:
                above, below = window.neighbours(line.begin, line.end, ABOVE, BELOW)
                self.errors.append(ErrorLine(line.number, line.text, tuple(above), tuple(below)))
        elif not WARNING_LITERALS.isdisjoint(literals) and is_warning(line.text):
            self._fold(line)

    def _fold(self, line: _Line) -> None:
        if line.number == self._last_warning:
            return
        self._last_warning = line.number
        key = fold_key(line.text)
        known = self.folds.get(key)
        if known is not None:
            known.count += 1
        elif len(self.folds) < MAX_FOLDED:
            self.folds[key] = Fold(line.number, line.text)


def _by_line(window: Window, events: Sequence[tuple[int, int]]) -> Iterator[tuple[_Line, list[int]]]:
    """Hits in order, put together by line."""
    number, counted = window.line, window.begin
    line: _Line | None = None
    literals: list[int] = []
    for at, literal in events:
        if line is not None and at < line.end:
            literals.append(literal)
            continue
        if line is not None:
            yield line, literals
        begin, end = window.line_bounds(at)
        number += window.data.count(b"\n", counted, at)
        counted = at
        line, literals = _Line(number, begin, end, window.text(begin, end)), [literal]
    if line is not None:
        yield line, literals
