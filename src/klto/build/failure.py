"""What a failed make means, in a few lines."""

from __future__ import annotations

import signal
from pathlib import Path

from klto.build.make import MakeResult
from klto.errors import BuildError
from klto.events import LinkFinished, LinkStarted
from klto.kernel.kbuild import MakeFailure, find_failures
from klto.link.linker import MEMORY, TIMEOUT
from klto.process import describe_status, quote
from klto.report.explanations import short
from klto.units import size

#: Failing targets to show; make runs several jobs, and all that ran may fail.
_SHOWN_FAILURES = 3


def explain_failure(result: MakeResult, log: Path, again: str) -> BuildError:
    """The error for a make that failed.

    :param again: the command line that repeats the run.
    """
    failures = find_failures(result.lines)
    known = _known(result, log)
    killed = next((link for link in result.links if link[1] and link[1].returncode == -signal.SIGKILL), None)
    hints = [*known, f"log: {log}", f"again: {again}"]
    if result.blamed:
        return _blamed(result, hints)
    if killed is not None and killed[1] is not None:
        message, remedy = _killed_link(killed[0], killed[1])
        return BuildError(message, "\n".join([remedy, *hints]), _details(failures))
    if not failures:
        message = f"make ended with {describe_status(result.returncode)} and named no target"
        return BuildError(message, "\n".join(hints), tuple(result.lines[-10:]))
    first = failures[0]
    if _was_killed(first):
        reached = size(result.usage.peak_bytes)
        hints.insert(
            0,
            "something killed it, most often the kernel for want of memory: try fewer jobs (-j); "
            f"the largest process of this build had reached {reached}",
        )
    others = f" (and {len(failures) - 1} more)" if len(failures) > 1 else ""
    message = f"{first.target} failed: {first.reason}{others}"
    return BuildError(message, "\n".join(hints), _details(failures))


def _known(result: MakeResult, log: Path) -> tuple[str, ...]:
    """What is known of the failure, in a few lines, with the command that says all of it."""
    from klto.explain import explain_log

    lines = short(explain_log(result.lines))
    return (*lines, f"all of it: klto explain -b {quote([str(log.parent.parent)])}") if lines else ()


def _blamed(result: MakeResult, hints: list[str]) -> BuildError:
    """The modules that klto.link.blame found."""
    modules = [(link.output, module) for link in result.blamed for module in link.modules]
    output, first = modules[0]
    others = f" (and {len(modules) - 1} more)" if len(modules) > 1 else ""
    where = f", function {first.function}" if first.function else ""
    message = f"code generation for {first.source}{where} fails in the LTO link of {output}: {first.message}{others}"
    details = tuple(f"{module.source}: {module.message}" for _, module in modules[1:])
    remedies = " ".join(f"--no-lto {_in_tree(module.name)}" for _, module in modules)
    reproducer = [f"reproducer: {module.reproducer}" for _, module in modules if module.reproducer][:1]
    return BuildError(message, "\n".join([f"around it: {remedies}", *reproducer, *hints]), details)


def _in_tree(name: str) -> str:
    return name if name.endswith(".o") else name.rpartition("(")[2].rstrip(")")


def _was_killed(failure: MakeFailure) -> bool:
    """SIGKILL, as make says it (``Killed``, strsignal) or as a shell hands it on (128 + 9)."""
    return failure.status == 128 + signal.SIGKILL or failure.reason.startswith("Killed")


def _killed_link(begun: LinkStarted, ended: LinkFinished) -> tuple[str, str]:
    if ended.cause == TIMEOUT:
        message = f"the LTO link of {begun.output} got nowhere until --module-timeout, and was ended"
        return message, "give it more time (--module-timeout S), or look at its output in the log"
    if ended.cause == MEMORY:
        message = (
            f"the LTO link of {begun.output} does not fit into --memory: it was at {size(ended.peak_bytes)}"
        )
        return message, "the log has the smallest setting that could work"
    message = (
        f"the LTO link of {begun.output} was killed (SIGKILL) when it had reached {size(ended.peak_bytes)}; "
        f"{size(begun.memory_available)} were available when it started"
    )
    fewer = (
        f"fewer backends at once (-j {max(1, begun.jobs // 2)}; it had {begun.jobs})"
        if begun.jobs > 1
        else ""
    )
    remedies = [fewer, "--lto thin instead of full" if begun.full else "", "end what else uses memory"]
    return message, "most often the kernel does that for want of memory: " + ", or ".join(
        r for r in remedies if r
    )


def _details(failures: list[MakeFailure]) -> tuple[str, ...]:
    lines: list[str] = []
    for failure in failures[:_SHOWN_FAILURES]:
        if len(failures) > 1:
            lines.append(f"{failure.target}:")
        lines.extend(failure.lines)
    return tuple(lines)
