"""Random configurations by the tree's own kconfig: seeded, and with a base that must hold."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from klto.kernel.kconfig import implied_requests
from klto.kernel.kconfig_make import Kconfig
from klto.kernel.kconfig_requests import Request, Requests
from klto.kernel.kconfig_settle import Settler
from klto.kernel.toolchain import Toolchain
from klto.kernel.tree import KernelTree
from klto.search.options import values_of


@dataclass(frozen=True)
class RandomConfig:
    """The configuration of a seed. ``lost``: what of the base did not hold."""

    config: bytes
    lost: tuple[Request, ...]


def base_of(tree: KernelTree, lto: Requests, asked: Requests) -> Requests:
    """What every configuration of a hunt has: the architecture's width, the LTO mode, what was asked for."""
    return implied_requests(tree).merged(lto).merged(asked)


def random_config(
    kconfig: Kconfig, settler: Settler, seed: int, probability: str, base: Requests
) -> RandomConfig:
    """``make randconfig`` with a seed, and ``base`` put into it once more where randomness overrode it.

    :param probability: KCONFIG_PROBABILITY: percent of y, or ``Y:M`` for tristates, or ``B:Y:M``
        (Documentation/kbuild/kconfig.rst).
    """
    file = kconfig.folder / "base"
    file.write_text("".join(f"{request.line()}\n" for request in base))
    kconfig.make(
        "randconfig",
        {
            "KCONFIG_SEED": str(seed),
            "KCONFIG_PROBABILITY": probability,
            "KCONFIG_ALLCONFIG": str(file.absolute()),
        },
    )
    config = with_base(kconfig.result.read_bytes(), settler, base)
    values = values_of(config)
    lost = tuple(request for request in base if not request.survived(values.get(request.name)))
    return RandomConfig(config, lost)


def with_base(config: bytes, settler: Settler, base: Requests) -> bytes:
    """A configuration with ``base`` on top, settled."""
    values = values_of(config) | {request.name: request.value for request in base}
    lines = [Request(name, value, "").line() for name, value in values.items()]
    return settler.settle("".join(f"{line}\n" for line in lines).encode())


def kconfig_for(tree: KernelTree, toolchain: Toolchain, build_dir: Path) -> Kconfig:
    """The tree's kconfig at work in ``build_dir``, with an empty folder."""
    kconfig = Kconfig(tree, toolchain, build_dir)
    kconfig.prepare()
    return kconfig
