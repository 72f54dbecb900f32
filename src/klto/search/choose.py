"""Puts together the oracle that a command line asks for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from klto.errors import UsageError
from klto.kernel.toolchain import Toolchain
from klto.kernel.tree import KernelTree
from klto.search.likeness import read_failure
from klto.search.oracles import BootFails, Builder, BuildFailsLike, CheckFinds, Command
from klto.search.runner import Runner


@dataclass(frozen=True)
class OracleRequest:
    """What a user asks an oracle to be: one of ``run``, ``build_fails_like``, ``boot_fails`` and ``rule``.

    :ivar targets: what to build; empty for what the oracle needs.
    :ivar timeout: seconds that the command or the boot may take.
    """

    run: tuple[str, ...] | None = None
    build_fails_like: Path | None = None
    boot_fails: bool = False
    rule: str | None = None
    targets: tuple[str, ...] = ()
    jobs: int | None = None
    timeout: float | None = None

    @property
    def identity(self) -> tuple[object, ...]:
        """What makes verdicts of one oracle those of another: all but the number of jobs."""
        return (self.run, self.build_fails_like, self.boot_fails, self.rule, self.targets, self.timeout)


def spelled(toolchain: Toolchain) -> str:
    """``-t`` for a toolchain."""
    if toolchain.suffix:
        return f"llvm{toolchain.suffix}"
    plain = toolchain.spelling == "LLVM=1" and toolchain.path_prefix is None
    return "llvm" if plain else str(toolchain.clang.parent)


def builder_of(
    request: OracleRequest, tree: KernelTree, toolchain: Toolchain, runner: Runner, build_dir: Path
) -> Builder:
    """``klto build`` in ``build_dir``, with the targets that were asked for."""
    jobs = () if request.jobs is None else ("-j", str(request.jobs))
    options = ("-C", str(tree.path), "-a", tree.arch, "-t", spelled(toolchain), *jobs)
    return Builder(tree, options, runner, build_dir, request.targets)


def building_judge(
    request: OracleRequest, builder: Builder, failing: Path
) -> tuple[BuildFailsLike | BootFails | CheckFinds, str]:
    """The oracle that builds, and what it builds in words.

    :param failing: the configuration that fails.
    :raises UsageError: the log tells of no failure.
    """
    if request.boot_fails:
        return BootFails(builder, request.timeout), "builds and boots the kernel"
    if request.rule is not None:
        return CheckFinds(builder.for_search(failing), request.rule), f"builds, and checks for {request.rule}"
    assert request.build_fails_like is not None
    like, _ = read_failure(request.build_fails_like)
    if like.id is None and not like.first_error:
        raise UsageError(
            f"{request.build_fails_like} tells of no failure", "give the log of a build that failed"
        )
    targets = request.targets or ((like.target,) if like.target else ())
    what = " ".join(targets) or "the whole kernel"
    narrowed = Builder(builder.tree, builder.options, builder.runner, builder.build_dir, targets)
    return BuildFailsLike(narrowed.for_search(failing), like), f"builds {what}, looks for: {like.title}"


def command_of(request: OracleRequest, runner: Runner) -> Command:
    """The oracle that is a command."""
    assert request.run is not None
    return Command(request.run, runner, request.timeout)
