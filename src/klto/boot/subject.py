"""What is booted, and what is known about it besides its image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from klto.boot.guest import Compiler
from klto.boot.images import KernelImage
from klto.boot.proofs import NotApplicable


@dataclass(frozen=True)
class Subject:
    """A kernel to be put to the proof.

    ``build_dir``: where it was built, None for a lone image. ``config``: its configuration (name without
    ``CONFIG_`` to value), None when unknown. ``modules``: kernel modules asked for, names or paths; none means
    all that were built. ``names``: the file with the names of functions for ``livepatch-names``.
    """

    image: KernelImage
    compiler: Compiler
    build_dir: Path | None = None
    config: Mapping[str, str] | None = None
    modules: tuple[str, ...] = ()
    names: Path | None = None

    def has(self, option: str) -> bool:
        """Whether an option is built in, as far as is known."""
        return self.config is not None and self.config.get(option) == "y"

    def needed_build_dir(self) -> Path:
        """The build dir.

        :raises NotApplicable: when only an image was given.
        """
        if self.build_dir is None:
            raise NotApplicable("needs a build dir: name it with -b DIR")
        return self.build_dir
