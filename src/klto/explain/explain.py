"""The face: a log in, explanations out."""

from __future__ import annotations

import bz2
import dataclasses
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, Any, cast

from klto.errors import UsageError
from klto.explain.advice import advice
from klto.explain.build_dir import BuildDir, look
from klto.explain.conclude import conclude, remedies_of, uncovered_errors
from klto.explain.conditions import Facts, facts_of_banner, facts_of_build_dir
from klto.explain.error_lines import is_consequence
from klto.explain.knowledge import CONFIDENCES, Entry, entries
from klto.explain.matcher import ErrorLine, Matcher
from klto.explain.model import Explanation, Explanations, Folded, LogLine
from klto.explain.source import LineStream, Readable, windows
from klto.explain.stages import MAKE_FAILED, Stage, stage_of_line, stage_of_target

#: First bytes of compressed files (RFC 1952; the .xz file format 2.1.1.1; bzip2's "BZh").
_COMPRESSED: dict[bytes, Callable[[IO[bytes]], IO[bytes]]] = {
    b"\x1f\x8b\x08": lambda raw: gzip.GzipFile(fileobj=raw),  # type: ignore[dict-item, return-value]
    b"\xfd7z": lambda raw: lzma.LZMAFile(raw),
    b"BZh": lambda raw: bz2.BZ2File(raw),
}
#: Unexplained error lines and folded warnings that are told.
MAX_UNEXPLAINED, MAX_NOISE = 20, 10


def explain_log(
    log: bytes | str | Readable | IO[Any] | Iterable[str | bytes], build_dir: Path | None = None
) -> Explanations:
    """Explain a log.

    :param log: its bytes, its text, a stream (binary or text), or its lines.
    :param build_dir: the build dir it is of, to be looked at too.
    """
    known = entries()
    matcher = Matcher(known)
    lines = 0
    for window in windows(_stream(log)):
        matcher.feed(window)
        lines = window.last_line
    explained = conclude(known, matcher)
    uncovered = uncovered_errors(known, matcher)
    left = [error for error in uncovered if not is_consequence(error.text)]
    targets = _failed_targets(matcher)
    if not left and not any(e.severity == "error" for e in explained):
        # A tool that failed without a word that says error: make's report is all there is.
        left = uncovered[:1]
    first = min((e for e in _real_errors(matcher)), key=lambda e: e.number, default=None)
    stage = _stage(explained, first, targets, left)
    by_id = {entry.id: entry for entry in known}
    facts = _facts(matcher, build_dir)
    explained = [_weighed(e, by_id[e.id], facts, build_dir) for e in explained]
    return Explanations(
        explanations=tuple(explained),
        unexplained=tuple(LogLine(error.number, error.text) for error in left[:MAX_UNEXPLAINED]),
        stage=stage,
        first_error=LogLine(first.number, first.text) if first else None,
        failed_targets=tuple(targets),
        noise=_noise(matcher),
        log_lines=lines,
        advice=advice(stage, targets, build_dir) if left else (),
        unexplained_context=_context(left),
    )


def explain_file(path: Path, build_dir: Path | None = None) -> Explanations:
    """Explain the log in a file.

    :raises UsageError: when it cannot be read.
    """
    try:
        with path.open("rb") as raw:
            opener = _COMPRESSED.get(raw.peek(3)[:3])  # Not read: a pipe cannot go back.
            if opener is None:
                return explain_log(raw, build_dir)
            with opener(raw) as stream:
                return explain_log(stream, build_dir)
    except (EOFError, lzma.LZMAError, zlib.error) as error:
        raise UsageError(
            f"cannot unpack {path}: {error}", "unpack what can be had, then: klto explain FILE"
        ) from error
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from error


def _facts(matcher: Matcher, build_dir: Path | None) -> Facts:
    if build_dir is not None:
        return facts_of_build_dir(build_dir)
    return facts_of_banner(matcher.banner)


def _weighed(found: Explanation, entry: Entry, facts: Facts, build_dir: Path | None) -> Explanation:
    """The explanation with what the build dir says, less sure of itself when conditions do not hold."""
    said = list(facts.against(entry.when))
    confidence, captures = found.confidence, dict(found.captures)
    if said:
        confidence = CONFIDENCES[min(CONFIDENCES.index(confidence) + 1, len(CONFIDENCES) - 1)]
    if build_dir is not None:
        seen, more = look(BuildDir(build_dir), found.lines[0].text, captures)
        said += seen
        captures.update(more, build_dir=str(build_dir))
    return dataclasses.replace(
        found,
        confidence=confidence,
        found=tuple(said),
        captures=captures,
        remedies=remedies_of(entry, captures),
    )


def _stream(log: bytes | str | Readable | IO[Any] | Iterable[str | bytes]) -> Readable:
    if isinstance(log, bytes | bytearray | memoryview):
        return io.BytesIO(log)
    if isinstance(log, str):
        return io.BytesIO(log.encode("utf-8", "replace"))
    if isinstance(log, io.TextIOBase):
        return LineStream(log)
    if hasattr(log, "read"):
        return cast(Readable, log)
    return LineStream(cast("Iterable[str | bytes]", log))


def _real_errors(matcher: Matcher) -> list[ErrorLine]:
    return [error for error in matcher.errors if not is_consequence(error.text)] or matcher.errors


def _failed_targets(matcher: Matcher) -> list[str]:
    """Innermost ones: a make whose sub-make failed repeats that as Error 2 (GNU make's MAKE_FAILURE)."""
    targets: list[str] = []
    for error in matcher.errors:
        found = MAKE_FAILED.search(error.text)
        if found and not (targets and found["how"] == "Error 2") and found["target"] not in targets:
            targets.append(found["target"])
    return targets


def _stage(
    explained: list[Explanation], first: ErrorLine | None, targets: list[str], left: list[ErrorLine]
) -> Stage | None:
    errors = [e for e in explained if e.severity == "error"]
    if errors and (not left or errors[0].lines[0].number <= left[0].number):
        return errors[0].stage
    of_target = next((stage for target in targets if (stage := stage_of_target(target))), None)
    if of_target is not None:
        return of_target
    if first is not None:
        return stage_of_line(first.text) or Stage.UNKNOWN
    return explained[0].stage if explained else None


def _noise(matcher: Matcher) -> tuple[Folded, ...]:
    many = sorted((f for f in matcher.folds.values() if f.count > 1), key=lambda f: -f.count)
    return tuple(Folded(LogLine(f.number, f.text), f.count, matcher.folds_exact) for f in many[:MAX_NOISE])


def _context(left: list[ErrorLine]) -> tuple[LogLine, ...]:
    if not left:
        return ()
    first = left[0]
    begin = first.number - len(first.above)
    texts = (*first.above, first.text, *first.below)
    return tuple(LogLine(begin + place, text) for place, text in enumerate(texts))
