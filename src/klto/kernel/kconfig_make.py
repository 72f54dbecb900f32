"""Runs the tree's own configuration programs, aside of the build dir's ``.config``.

What they write goes to a folder below the build dir's ``.klto``: kconfig reads and writes the file that
KCONFIG_CONFIG names. It also writes KCONFIG_AUTOCONFIG and its kin where those are not there yet (conf.c and
confdata.c, 6.1 and 6.12).
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from klto import process
from klto.errors import UsageError
from klto.kernel.toolchain import Toolchain
from klto.kernel.tree import MAKE_ENVIRONMENT_DROP, KernelTree

#: Seconds for one ``make *config``; it takes two to ten.
_DEADLINE = 600.0

#: A Kconfig file whose only effect is to write down conf's environment: ``srctree``, ``CC`` and some 150 more
#: that the top Makefile computes and exports. KBUILD_KCONFIG is its way to name another Kconfig file.
_ENVIRONMENT_KCONFIG = """\
mainmenu "klto asks for the environment"
klto-environment := $(shell,env -0 > {folder}/environment)
"""


@dataclass(frozen=True)
class Kconfig:
    """A tree's kconfig, working for one build dir with one toolchain."""

    tree: KernelTree
    toolchain: Toolchain
    build_dir: Path
    #: More arguments for make (``NAME=VALUE``), the same that the build gets.
    make_args: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        """Where everything is written."""
        return self.build_dir / ".klto" / "kconfig"

    @property
    def result(self) -> Path:
        """The configuration that :meth:`make` reads and writes instead of ``.config``."""
        return self.folder / "config"

    def prepare(self) -> None:
        """An empty folder.

        :raises UsageError: the build dir cannot be written.
        """
        try:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True)
            # Its presence keeps kconfig from writing it, and a file for each of thousands of options beside it.
            (self.folder / "auto.conf").touch()
        except OSError as error:
            raise cannot_write(self.folder, error) from error

    def cleanup(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def make(
        self, target: str, extra: Mapping[str, str] | None = None, *, autoconf_aside: bool = True
    ) -> list[str]:
        """Run a configuration target.

        :param autoconf_aside: False lets kconfig write ``include/config`` and ``include/generated`` where they
            are not there yet, as plain ``make *config`` does; otherwise the build has to run it once more.
        :returns: what it said, as lines.
        :raises UsageError: it failed.
        """
        environment = self._environment({**(self._autoconf() if autoconf_aside else {}), **(extra or {})})
        done = process.run(self._command(target), env=environment, check=False, timeout=_DEADLINE)
        said = (done.stdout + done.stderr).splitlines()
        if done.returncode != 0:
            raise self._failure(target, done, said)
        return said

    def environment(self) -> dict[str, str]:
        """The environment that make gives to kconfig's programs, which are built where they are missing."""
        kconfig = self.folder / "Kconfig.environment"
        folder = self.folder.relative_to(self.build_dir)
        written = self.folder / "environment"
        try:
            kconfig.write_text(_ENVIRONMENT_KCONFIG.format(folder=folder))
        except OSError as error:
            raise cannot_write(self.folder, error) from error
        self.make("listnewconfig", {"KBUILD_KCONFIG": str(kconfig.absolute())})
        text = written.read_bytes().decode("utf-8", "surrogateescape")
        return dict(entry.split("=", 1) for entry in text.split("\0") if "=" in entry)

    def objects(self) -> list[Path]:
        """The objects that every front end of the tree's kconfig shares: ``common-objs`` of
        scripts/kconfig/Makefile (6.1 and 6.12)."""
        names = ("confdata", "expr", "lexer.lex", "menu", "parser.tab", "preprocess", "symbol", "util")
        return [self.build_dir / "scripts/kconfig" / f"{name}.o" for name in names]

    def _command(self, target: str) -> Sequence[str]:
        command = self.tree.make_command(self.build_dir)
        return [*command, *self.toolchain.make_args(), *self.make_args, "-s", "--no-print-directory", target]

    def _environment(self, extra: Mapping[str, str]) -> dict[str, str]:
        own = {"PATH": self.toolchain.search_path(), "KCONFIG_CONFIG": str(self.result.absolute())}
        return process.child_environment({**own, **extra}, drop=MAKE_ENVIRONMENT_DROP)

    def _autoconf(self) -> dict[str, str]:
        folder = self.folder.absolute()
        return {
            "KCONFIG_AUTOCONFIG": f"{folder}/auto.conf",
            "KCONFIG_AUTOHEADER": f"{folder}/autoconf.h",
            "KCONFIG_RUSTCCFG": f"{folder}/rustc_cfg",
        }

    def _failure(self, target: str, done: process.Finished, said: Sequence[str]) -> UsageError:
        from klto.kernel import hostdeps

        if any("No space left on device" in line for line in said) or self._disk_is_full():
            return cannot_write(self.build_dir, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
        lines = [line for line in said if line.strip() and not re.match(r"make(\[\d+\])?: ", line)]
        telling = [
            line for line in lines if re.search(r"\*\*\*|error|not found|cannot|:\d+: ", line, re.IGNORECASE)
        ]
        lacking = hostdeps.missing(hostdeps.host_dependencies(self.toolchain, all_options=False))
        return UsageError(
            f"the kernel's own configuration failed (make {target}: "
            f"{process.describe_status(done.returncode)}) for {self.build_dir}",
            hostdeps.install_hint(lacking)
            if lacking
            else f"the command: {process.quote(self._command(target))}",
            details=tuple((telling or lines or list(said))[-10:]),
        )

    def _disk_is_full(self) -> bool:
        """Whether not even a configuration would fit; dash calls that an "I/O error" (its echo)."""
        probe = self.folder / "probe"
        try:
            probe.write_bytes(bytes(1 << 18))
            probe.unlink()
        except OSError as error:
            return error.errno == errno.ENOSPC
        return False


def cannot_write(where: Path, error: OSError) -> UsageError:
    """The error for a build dir that cannot be written, or a full disk."""
    return UsageError(f"cannot write {where}: {error.strerror}", "choose another build dir with -b")
