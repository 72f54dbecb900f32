"""The face: a log in, explanations out."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

from klto.errors import UsageError
from klto.explain.conclude import conclude, unexplained_errors
from klto.explain.error_lines import is_consequence
from klto.explain.knowledge import entries
from klto.explain.matcher import ErrorLine, Matcher
from klto.explain.model import Explanation, Explanations, Folded, LogLine
from klto.explain.source import LineStream, Readable, windows
from klto.explain.stages import MAKE_FAILED, Stage, stage_of_line, stage_of_target

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
    for window in windows(_stream(log)):
        matcher.feed(window)
    explained = conclude(known, matcher)
    left = unexplained_errors(known, matcher)
    targets = _failed_targets(matcher)
    if not left and not any(e.severity == "error" for e in explained):
        # A tool that failed without a word that says error: make's report is all there is.
        left = [error for error in matcher.errors if MAKE_FAILED.search(error.text)][:1]
    first = min((e for e in _real_errors(matcher)), key=lambda e: e.number, default=None)
    result = Explanations(
        explanations=tuple(explained),
        unexplained=tuple(LogLine(error.number, error.text) for error in left[:MAX_UNEXPLAINED]),
        stage=_stage(explained, first, targets, left),
        first_error=LogLine(first.number, first.text) if first else None,
        failed_targets=tuple(targets),
        noise=_noise(matcher),
        log_lines=matcher.lines,
        unexplained_context=_context(left),
    )
    return result


def explain_file(path: Path, build_dir: Path | None = None) -> Explanations:
    """Explain the log in a file.

    :raises UsageError: when it cannot be read.
    """
    try:
        with path.open("rb") as stream:
            return explain_log(stream, build_dir)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error


def _stream(log: bytes | str | Readable | IO[Any] | Iterable[str | bytes]) -> Readable:
    if isinstance(log, bytes | bytearray | memoryview):
        return io.BytesIO(log)
    if isinstance(log, str):
        return io.BytesIO(log.encode("utf-8", "replace"))
    if isinstance(log, io.TextIOBase):
        return LineStream(log)
    if hasattr(log, "read"):
        return log
    return LineStream(log)


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
    return tuple(Folded(LogLine(f.number, f.text), f.count) for f in many[:MAX_NOISE])


def _context(left: list[ErrorLine]) -> tuple[LogLine, ...]:
    if not left:
        return ()
    first = left[0]
    begin = first.number - len(first.above)
    texts = (*first.above, first.text, *first.below)
    return tuple(LogLine(begin + place, text) for place, text in enumerate(texts))
