"""What ``klto doctor`` tells of toolchains, host programs and a kernel tree, as data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from klto.errors import KltoError
from klto.kernel.hostdeps import HostDependency, host_dependencies, missing
from klto.kernel.kconfig import check_width, explain_lto, lto_of, read_config
from klto.kernel.kconfig_explain import Blocker
from klto.kernel.toolchain import Candidate, Toolchain, candidates, find_toolchain, toolchain_of
from klto.kernel.tree import SRCARCH, KernelTree, check_arch, default_build_dir, is_kernel_tree


@dataclass(frozen=True)
class Problem:
    """Something that stops a build: what, and what to do."""

    message: str
    hint: str | None


@dataclass(frozen=True)
class FoundToolchain:
    """An LLVM on this machine."""

    candidate: Candidate
    #: None when it is incomplete or broken.
    toolchain: Toolchain | None
    #: Architectures that it was tried for and can build.
    builds: tuple[str, ...]
    problem: Problem | None


@dataclass(frozen=True)
class TreeSurvey:
    """A kernel tree and its build dir."""

    tree: KernelTree
    build_dir: Path
    #: The LTO of the build dir's ``.config``, or None without one.
    lto: str | None
    #: What keeps the configuration (the tree's defconfig where there is no ``.config``) from ThinLTO.
    blockers: tuple[Blocker, ...]
    #: None when it could not be asked.
    lto_possible: bool | None


@dataclass(frozen=True)
class Survey:
    """The whole."""

    toolchains: tuple[FoundToolchain, ...]
    #: What a build here would use, or None.
    chosen: Toolchain | None
    host: tuple[HostDependency, ...]
    tree: TreeSurvey | None
    problems: tuple[Problem, ...]

    @property
    def ready(self) -> bool:
        """Whether a build can start and LTO is possible."""
        return not self.problems


def survey(path: Path, build_dir: Path | None, arch: str | None, request: str | None) -> Survey:
    """Look at the machine, and at the kernel tree in ``path`` where there is one.

    :param path: ``-C``. The default, the current directory, need not be a tree.
    :param request: ``-t``.
    """
    problems: list[Problem] = []
    arch_name, tree = None, None
    try:
        arch_name = check_arch(arch)
        if path != Path() or build_dir is not None or is_kernel_tree(path):
            tree = KernelTree.open(path, arch)
    except KltoError as error:
        problems.append(Problem(error.message, error.hint))
    where = build_dir or (default_build_dir(tree, "thin") if tree else None)
    chosen = None
    try:
        chosen = find_toolchain(tree, where, request)
    except KltoError as error:
        problems.append(Problem(error.message, error.hint))
    config = where / ".config" if where is not None and (where / ".config").is_file() else None
    host = host_dependencies(chosen, arch_name, read_config(config) if config else None)
    problems += [
        Problem(f"{d.need.name}, for {d.need.purpose}: {d.problem}", f"apt-get install {d.need.package}")
        for d in missing(host)
    ]
    found_tree = None
    if tree is not None and where is not None:
        found_tree = _survey_tree(tree, where, config, chosen if not missing(host) else None, problems)
    return Survey(
        tuple(_survey_toolchain(c) for c in candidates(tree)),
        chosen,
        tuple(host),
        found_tree,
        tuple(problems),
    )


def _survey_tree(
    tree: KernelTree,
    build_dir: Path,
    config: Path | None,
    toolchain: Toolchain | None,
    problems: list[Problem],
) -> TreeSurvey:
    """The tree's part; what is wrong is appended to ``problems``."""
    blockers: tuple[Blocker, ...] = ()
    possible = None
    try:
        tree.check_build_dir(build_dir)
        if config is not None:
            check_width(tree, config)
        if toolchain is not None:
            blockers = tuple(explain_lto(tree, toolchain, build_dir))
            possible = not blockers
    except KltoError as error:
        problems.append(Problem(error.message, error.hint))
    problems += [Problem(f"no LTO: {b.option} {b.reason}", b.remedy) for b in blockers]
    return TreeSurvey(tree, build_dir, lto_of(config) if config else None, blockers, possible)


def _survey_toolchain(candidate: Candidate) -> FoundToolchain:
    if not candidate.complete:
        problem = Problem(f"no {', no '.join(candidate.missing)}", candidate.install_hint())
        return FoundToolchain(candidate, None, (), problem)
    toolchain, builds, trouble = None, [], None
    for arch in SRCARCH:
        try:
            toolchain = toolchain_of(candidate, arch)
            builds.append(arch)
        except KltoError as error:
            trouble = Problem(error.message, error.hint)
    return FoundToolchain(candidate, toolchain, tuple(builds), trouble)
