"""The options search from a good and a bad configuration to a fragment."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from klto.errors import UsageError
from klto.files import make_directory, user_cache_dir, write_whole
from klto.kernel.kconfig import implied_requests
from klto.kernel.kconfig_make import Kconfig
from klto.kernel.kconfig_requests import Requests, check_config
from klto.kernel.kconfig_settle import Settler, settling
from klto.kernel.toolchain import Toolchain
from klto.kernel.tree import KernelTree
from klto.search.engine import Oracle, Progress, Search
from klto.search.options import (
    Change,
    OptionsOutcome,
    OptionsSpace,
    changes_between,
    defaults_turned_off,
    options_that_differ,
)
from klto.search.verdicts import Memory, Verdict

#: Options that are named where a configuration is not what it should be.
_SHOWN = 10


@dataclass(frozen=True)
class OptionsQuestion:
    """What is asked.

    :ivar good: ``allnoconfig``, ``defconfig`` or a file.
    :ivar bad: a file.
    :ivar held: what every candidate must have.
    :ivar state: where verdicts and the best result are kept; the same question goes on there.
    :ivar id: of :func:`question_id`; empty when nobody else uses ``state``.
    """

    tree: KernelTree
    toolchain: Toolchain
    good: str | Path
    bad: Path
    held: Requests
    state: Path
    id: str = ""

    @property
    def best_config(self) -> Path:
        """The best configuration so far: it fails."""
        return self.state / "best.config"

    @property
    def best_fragment(self) -> Path:
        """The changes that make it, as a fragment."""
        return self.state / "best.fragment"


@dataclass(frozen=True)
class OptionsResult:
    """The answer.

    :ivar needed_by: options that kconfig needs for others of the changes, and which.
    """

    changes: tuple[Change, ...]
    of: int
    needed_by: Mapping[str, list[str]]
    calls: int
    remembered: int
    fragment: str


def question_id(*parts: object) -> str:
    """A name for a question, the same when the same is asked again. Paths count by what is in them."""
    told = [
        hashlib.sha256(part.read_bytes()).hexdigest() if isinstance(part, Path) else str(part)
        for part in parts
    ]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]


def state_folder(chosen: Path | None, question: str) -> Path:
    """Where verdicts on a question are kept: the folder that was chosen, or one of its own in the user's cache."""
    return (chosen or user_cache_dir() / "minimize" / question).absolute()


def minimise_options(
    question: OptionsQuestion,
    oracle: Oracle[OptionsOutcome],
    watch: Callable[[Progress], None],
    *,
    note: Callable[[str], None] = lambda text: None,
    stop: Callable[[], None] = lambda: None,
    at_once: int = 1,
    limit: int | None = None,
) -> OptionsResult:
    """Carry it out.

    :param note: told once what is searched.
    :raises UsageError: the bad configuration does not fail, or the good one does.
    :raises CallLimit: past ``limit``; what is best so far is on disk.
    """
    make_directory(question.state)
    with _space(question) as space, Memory(question.state, question.id) as memory:
        note(f"{space.count} options differ; state: {question.state}")

        def save(chosen: frozenset[int], outcome: OptionsOutcome) -> None:
            write_whole(question.best_config, outcome.config)
            write_whole(question.best_fragment, space.fragment(chosen))

        search = Search(space, oracle, memory, save, watch, stop, at_once=at_once, limit=limit)
        everything = frozenset(range(space.count))
        _check_ends(search, everything, question, space.prompts)
        found = search.minimise()
        return OptionsResult(
            tuple(space.changes[number] for number in sorted(found)),
            space.count,
            space.needed_by(found),
            search.calls,
            search.remembered,
            space.fragment(found),
        )


def _check_ends(
    search: Search[OptionsOutcome],
    everything: frozenset[int],
    question: OptionsQuestion,
    prompts: Container[str],
) -> None:
    bad = search.judge(everything)
    if bad.verdict is not Verdict.FAILS:
        asked = check_config(question.bad)
        judged = search.space.become(everything).config
        other = [name for name in options_that_differ(asked, judged) if name in prompts]
        raise UsageError(
            f"{question.bad} does not fail as it should: {bad.verdict.value} ({bad.evidence})",
            f"what was judged differs from it in {', '.join(other[:_SHOWN])}: are they held otherwise (-K)?"
            if other
            else "a search needs a configuration that fails; try the oracle on it by hand",
        )
    good = search.judge(frozenset())
    if good.verdict is Verdict.FAILS:
        raise UsageError(
            f"the good configuration ({question.good}) fails too: {good.evidence}",
            "name one that does not with --good",
        )


@contextmanager
def _space(question: OptionsQuestion) -> Iterator[OptionsSpace]:
    """The candidates, while the tree's kconfig runs."""
    build_dir = make_directory(question.state / "kconfig")
    question.tree.check_build_dir(build_dir)
    kconfig = Kconfig(question.tree, question.toolchain, build_dir)
    kconfig.prepare()
    bad = check_config(question.bad)
    with ExitStack() as stack:
        good = _good(question, kconfig)
        settler = stack.enter_context(settling(kconfig))
        good, bad = (_held(settler, config, question.held) for config in (good, bad))
        prompts = settler.prompts()
        changes = changes_between(good, bad, prompts, question.held)
        changes += defaults_turned_off(good, bad, changes, prompts, question.held, settler)
        if not changes:
            raise UsageError(f"{question.bad} and {question.good} do not differ in options that can be set")
        yield OptionsSpace(good, changes, question.held, settler, prompts)
    kconfig.cleanup()


def _good(question: OptionsQuestion, kconfig: Kconfig) -> bytes:
    if isinstance(question.good, Path):
        return check_config(question.good)
    if question.good == "allnoconfig":
        seed = kconfig.folder / "seed"
        asked = implied_requests(question.tree).merged(question.held)
        seed.write_text("".join(f"{request.line()}\n" for request in asked))
        kconfig.make("allnoconfig", {"KCONFIG_ALLCONFIG": str(seed.absolute())})
    else:
        kconfig.make(question.good)
    return kconfig.result.read_bytes()


def _held(settler: Settler, config: bytes, held: Requests) -> bytes:
    """A configuration with what is held, settled.

    :raises UsageError: kconfig does not let it be.
    """
    from klto.kernel.kconfig_requests import without
    from klto.search.options import values_of

    kept = without(config, frozenset(request.name for request in held))
    lines = [line for _, line in kept] + [request.line().encode() for request in held]
    settled = settler.settle(b"\n".join(lines) + b"\n")
    values = values_of(settled)
    for request in held:
        if not request.survived(values.get(request.name)):
            raise UsageError(
                f"{request.option}={request.value} ({request.origin}) does not hold in every configuration",
                "leave it out, or hold what it depends on too",
            )
    return settled
