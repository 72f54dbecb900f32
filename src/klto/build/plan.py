"""From what the user asked to what will be done: tree, toolchain, build dir, configuration, jobs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from klto import machine
from klto.build.overrides import NoLto, parse_no_lto
from klto.cluster.address import check_cluster
from klto.errors import UsageError
from klto.files import user_cache_dir
from klto.kernel.hostdeps import check_host
from klto.kernel.kbuild import Kbuild
from klto.kernel.kconfig import Requests, lto_of, lto_requests, parse_requests, read_config
from klto.kernel.toolchain import find_toolchain
from klto.kernel.tree import MAKE_ENVIRONMENT_DROP, KernelTree, default_build_dir
from klto.link.run import DEFAULT_MODULE_TIMEOUT, KEEP_NAMES_OPTIONS


@dataclass(frozen=True)
class BuildRequest:
    """What the user asked for, unchecked.

    :param lto: thin, full, none, keep, or None when not said.
    :param base: ``-k``: defconfig, allnoconfig or a file; None: the ``.config`` that is there.
    :param fragments: ``-K`` in order: files or ``CONFIG_X=value``.
    :param fail_on: error, warning or never: findings from this level on end the build.
    :param rejoin: outputs of relocatable links, relative to the build dir, whose split sections are merged.
    :param no_lto: directories and source files that are compiled without LTO.
    :param keep_names: local functions that LTO makes global keep their names, where the linker can.
    :param memory: bytes that each step of the link and after it may use; None: what is available.
    :param module_timeout: seconds after which a backend that gets nowhere is ended; 0: never.
    :param directory: the working directory, to show how to run it again.
    """

    tree: Path
    build_dir: Path | None = None
    arch: str | None = None
    toolchain: str | None = None
    targets: tuple[str, ...] = ()
    make_variables: tuple[str, ...] = ()
    lto: str | None = None
    base: str | None = None
    fragments: tuple[str, ...] = ()
    jobs: int | None = None
    cache_dir: Path | None = None
    no_cache: bool = False
    cluster: str | None = None
    fail_on: str = "error"
    rejoin: tuple[str, ...] = ()
    no_lto: tuple[str, ...] = ()
    keep_names: bool = False
    memory: int | None = None
    module_timeout: float = DEFAULT_MODULE_TIMEOUT
    boot: bool = False
    time_trace: bool = False
    boot_timeout: float | None = None
    argv: tuple[str, ...] = ()
    directory: Path = Path()


@dataclass(frozen=True)
class Plan:
    """A request that can be carried out. ``lto``: thin, full, none, or keep."""

    request: BuildRequest
    kbuild: Kbuild
    base: str | Path | None
    requests: Requests
    lto: str
    jobs: int
    no_lto: NoLto

    @property
    def keep_names(self) -> bool:
        """Whether promoted functions keep their names: there are any, it is wanted, and known to the linker."""
        return (
            self.lto != "none"
            and self.request.keep_names
            and self.kbuild.toolchain.supports(*KEEP_NAMES_OPTIONS)
        )

    @property
    def build_dir(self) -> Path:
        """Where the kernel is built."""
        return self.kbuild.build_dir

    @property
    def link_cache(self) -> Path | None:
        """The root of the link cache; None without one."""
        if self.request.no_cache:
            return None
        return (self.request.cache_dir or default_cache_dir()).absolute()

    @property
    def tree(self) -> KernelTree:
        """The source tree."""
        return self.kbuild.tree


def default_cache_dir() -> Path:
    """The link cache's root when none is named."""
    return user_cache_dir() / "link"


def measured_file() -> Path:
    """Where what links on this machine have needed is kept."""
    return user_cache_dir() / "measured.jsonl"


def linkers_file() -> Path:
    """Where digests of this machine's linkers are remembered."""
    return user_cache_dir() / "linkers.json"


def make_plan(request: BuildRequest) -> Plan:
    """Check everything that can be checked before the first file is written.

    :raises UsageError: one line that says what does not work and what to do.
    """
    if request.jobs is not None and request.jobs < 1:
        raise UsageError(f"-j {request.jobs}: at least one job is needed")
    _check_variables(request.make_variables)
    if request.cluster is not None:
        check_cluster(request.cluster)
    tree = KernelTree.open(request.tree, request.arch)
    wanted = parse_requests(list(request.fragments))
    base = _base(request.base)
    build_dir = (request.build_dir or default_build_dir(tree, request.lto or "thin")).absolute()
    tree.check_build_dir(build_dir)
    lto = _choose_lto(request, wanted, base, build_dir / ".config")
    wanted = wanted.merged(lto_requests(lto))
    toolchain = find_toolchain(tree, build_dir, request.toolchain)
    config = build_dir / ".config"
    check_host(toolchain, tree.arch, read_config(config) if config.is_file() else None)
    kbuild = Kbuild(tree, toolchain, build_dir, request.make_variables)
    no_lto = parse_no_lto(tree.path, build_dir, request.no_lto)
    return Plan(request, kbuild, base, wanted, lto, request.jobs or machine.default_jobs(), no_lto)


#: Variables that klto itself gives to make, and the option that stands for each; with another value make would
#: build another kernel, elsewhere or with other tools, than klto verifies.
_OWN_VARIABLES = {
    **dict.fromkeys(MAKE_ENVIRONMENT_DROP, "klto's own options"),
    **dict.fromkeys(("O", "KBUILD_OUTPUT"), "-b DIR"),
    **dict.fromkeys(("ARCH", "SUBARCH", "SRCARCH", "CROSS_COMPILE"), "-a ARCH"),
    **dict.fromkeys(
        ("LLVM", "CC", "LD", "AR", "NM", "OBJCOPY", "OBJDUMP", "READELF", "STRIP"), "-t TOOLCHAIN"
    ),
    **dict.fromkeys(("SHELL", "CONFIG_SHELL", "MAKE"), "plain make"),
}


def _check_variables(variables: tuple[str, ...]) -> None:
    for variable in variables:
        name = variable.partition("=")[0].rstrip(":+?")
        if name in _OWN_VARIABLES:
            raise UsageError(f"{variable}: klto sets {name} itself", f"use {_OWN_VARIABLES[name]} instead")


def _base(name: str | None) -> str | Path | None:
    if name is None or name in ("defconfig", "allnoconfig"):
        return name
    path = Path(name)
    if not path.is_file():
        raise UsageError(f"-k {name}: no such file", "give defconfig, allnoconfig or a .config file")
    return path


def _choose_lto(request: BuildRequest, wanted: Requests, base: str | Path | None, config: Path) -> str:
    """The LTO mode to set, or ``keep`` when the configuration already says it."""
    if wanted.lto is not None:
        if request.lto not in (None, "keep", wanted.lto):
            raise UsageError(f"--lto {request.lto} contradicts -K, which asks for {wanted.lto} LTO")
        return "keep"
    if request.lto is not None and request.lto != "keep":
        return request.lto
    if base in ("defconfig", "allnoconfig"):
        return request.lto or "thin"
    source = base if isinstance(base, Path) else config
    if not source.is_file():
        raise UsageError(
            f"no configuration: {config} does not exist", "give one: -k defconfig, -k allnoconfig or -k FILE"
        )
    if request.lto == "keep" or lto_of(source) != "none":
        return "keep"
    if isinstance(base, Path) and "LTO_NONE" not in read_config(source):
        return "thin"
    raise UsageError(
        f"{source} builds without LTO (CONFIG_LTO_NONE=y)",
        "say --lto thin (or full) to change that, --lto keep to build it as it is",
    )
