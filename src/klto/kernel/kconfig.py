"""Makes a build dir's ``.config`` be what was asked for, or says why it cannot be.

The tree's own kconfig merges and decides, aside of ``.config``; only when every requested value has survived
does the result take its place. A ``.config`` that would not change is not touched, so nothing is rebuilt.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from klto.errors import UsageError
from klto.files import user_cache_dir
from klto.kernel.kconfig_make import Kconfig, cannot_write
from klto.kernel.kconfig_requests import (
    LTO_OPTIONS,
    Request,
    Requests,
    check_config,
    is_canonical,
    lto_of,
    lto_requests,
    parse_requests,
    read_config,
    read_fragment,
    without,
)
from klto.kernel.toolchain import Toolchain
from klto.kernel.tree import KernelTree, check_path

if TYPE_CHECKING:
    from klto.kernel.kconfig_explain import Blocker

__all__ = [
    "LTO_OPTIONS",
    "ConfigResult",
    "Request",
    "Requests",
    "check_width",
    "configure",
    "explain_lto",
    "lto_of",
    "lto_requests",
    "parse_requests",
    "read_config",
    "read_fragment",
    "verify",
]

#: The bases that are targets of make; anything else is a file.
TARGETS = ("defconfig", "allnoconfig")


@dataclass(frozen=True)
class ConfigResult:
    """A configured build dir."""

    config: Path
    #: Whether ``.config`` is new or another than before; it was not touched otherwise.
    changed: bool
    #: Whether kconfig was run; not needed when everything asked for was there.
    ran: bool
    #: ``thin``, ``full`` or ``none``.
    lto: str


def configure(
    tree: KernelTree,
    toolchain: Toolchain,
    build_dir: Path,
    base: str | Path | None,
    requests: Requests,
    make_args: Sequence[str] = (),
) -> ConfigResult:
    """Configure ``build_dir``, which is made when it is not there.

    :param base: None for the ``.config`` that is there, ``defconfig``, ``allnoconfig``, or a file.
    :param make_args: ``NAME=VALUE`` arguments that the build will get too (such as ``LLVM_IAS=0``).
    :raises UsageError: nothing to start from, a file with garbage, a request that cannot be fulfilled (naming
        the first unmet dependency), or a build dir that cannot be written.
    """
    tree.check_build_dir(build_dir)
    config = build_dir / ".config"
    if base is None and not config.exists():
        raise UsageError(
            f"no .config in {build_dir}", "name a configuration: -k defconfig, -k allnoconfig or -k FILE"
        )
    settled = not len(requests) or _is_settled(tree, build_dir)
    if base is None and settled and _is_fulfilled(config, toolchain, requests):
        check_width(tree, config, requests)
        return ConfigResult(config, changed=False, ran=False, lto=lto_of(config))
    kconfig = Kconfig(tree, toolchain, build_dir, tuple(make_args))
    kconfig.prepare()
    with _nothing_left_behind(build_dir):
        _make_result(kconfig, base, requests)
        _check_requests(kconfig, requests)
        check_width(tree, kconfig.result, requests)
        changed = _install(kconfig.result, config)
    kconfig.cleanup()
    return ConfigResult(config, changed=changed, ran=True, lto=lto_of(config))


def verify(
    tree: KernelTree,
    toolchain: Toolchain,
    build_dir: Path,
    requests: Requests,
    make_args: Sequence[str] = (),
) -> None:
    """Check that ``.config`` still fulfils the requests: Kbuild runs kconfig itself when Kconfig files or the
    compiler have changed, and drops what no longer can be.

    :raises UsageError: as :func:`configure`.
    """
    if requests.lost_in(read_config(build_dir / ".config")):
        kconfig = Kconfig(tree, toolchain, build_dir, tuple(make_args))
        kconfig.prepare()
        _write(kconfig.result, (build_dir / ".config").read_bytes())
        _check_requests(kconfig, requests)


def explain_lto(
    tree: KernelTree,
    toolchain: Toolchain,
    build_dir: Path | None,
    mode: str = "thin",
    make_args: Sequence[str] = (),
) -> list[Blocker]:
    """What keeps this tree and configuration from LTO, found without building anything of the kernel.

    :param build_dir: its ``.config`` counts; None or without one, the tree's defconfig does.
    :param mode: ``thin`` or ``full``.
    :returns: empty when nothing does.
    :raises UsageError: the ``.config`` has garbage, or the tree's kconfig cannot be run.
    """
    from klto.kernel.kconfig_ask import asking
    from klto.kernel.kconfig_explain import blockers

    config = build_dir / ".config" if build_dir is not None else None
    content = check_config(config) if config is not None and config.exists() else None
    with _scratch(tree) as scratch:
        kconfig = Kconfig(tree, toolchain, scratch, tuple(make_args))
        kconfig.prepare()
        if content is None:
            kconfig.make("defconfig")
        else:
            _write(kconfig.result, content)
        with asking(kconfig, kconfig.result) as answers:
            found = blockers(answers, LTO_OPTIONS[mode])
        kconfig.cleanup()
    return found


@contextmanager
def _scratch(tree: KernelTree) -> Iterator[Path]:
    """A build dir for kconfig's programs alone, used by one klto at a time.

    It is in the user's cache, so that neither tree nor build dir is written to; only a tree that was built in
    leaves no choice, since Kbuild refuses other build dirs for it.
    """
    if tree.dirty_in_tree() is not None:
        yield tree.path
        return
    scratch = user_cache_dir() / "kconfig" / f"{tree.id}-{tree.arch}"
    try:
        check_path(scratch, "build dir")
        scratch.mkdir(parents=True, exist_ok=True)
    except (UsageError, OSError):
        # A home directory that Kbuild cannot work in, or that is read-only: slower, since not kept.
        with tempfile.TemporaryDirectory(prefix="klto-kconfig-") as folder:
            yield Path(folder)
        return
    with (scratch / ".klto-lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield scratch


def _is_settled(tree: KernelTree, build_dir: Path) -> bool:
    """Whether kconfig has accepted this very ``.config`` with these very Kconfig files: make's syncconfig, which
    may drop what was edited in by hand, has nothing to do (auto.conf.cmd lists the files, confdata.c)."""
    accepted = build_dir / "include/config/auto.conf"
    try:
        since = accepted.stat().st_mtime_ns
        listed = accepted.with_name("auto.conf.cmd").read_text("utf-8", "replace")
        # 6.12 names the file itself first: "autoconfig := ...", a blank line, "deps_config := \", the files.
        files = re.findall(
            r"^\t(\S+)", listed.partition("deps_config :=")[2].partition("\n\n")[0], re.MULTILINE
        )
        newest = max((tree.path / file).stat().st_mtime_ns for file in files)
        return bool(files) and max(newest, (build_dir / ".config").stat().st_mtime_ns) <= since
    except (OSError, ValueError):
        return False


def _is_fulfilled(config: Path, toolchain: Toolchain, requests: Requests) -> bool:
    """Whether ``.config`` is kconfig's own work with this toolchain and holds all that is asked for."""
    check_config(config)
    values = read_config(config)
    major, minor, patch = toolchain.lld_version
    return (
        is_canonical(config)
        and values.get("CC_VERSION_TEXT") == f'"{toolchain.clang_text}"'
        # CONFIG_LLD_VERSION as scripts/ld-version.sh computes it.
        and values.get("LLD_VERSION") == str(10000 * major + 100 * minor + patch)
        and not requests.lost_in(values)
    )


def _make_result(kconfig: Kconfig, base: str | Path | None, requests: Requests) -> None:
    """Let kconfig make its configuration of base and requests, in ``kconfig.result``."""
    seed = kconfig.folder / "seed"
    if base == "allnoconfig":
        asked = implied_requests(kconfig.tree).merged(requests)
        _write(seed, _lines(asked))
        ask_for = {"KCONFIG_ALLCONFIG": str(seed.absolute())}
        said = kconfig.make("allnoconfig", ask_for, autoconf_aside=False)
        _check_warnings(said, seed, {})
        return
    origin = kconfig.build_dir / ".config" if base is None else Path(base)
    if base == "defconfig":
        kconfig.make("defconfig", autoconf_aside=len(requests) > 0)
        origin = kconfig.result
        if not len(requests):
            return
    content = check_config(origin)
    kept = without(content, frozenset(r.name for r in requests))
    lines = {written: number for written, (number, _) in enumerate(kept, 1)}
    _write(kconfig.result, b"\n".join(line for _, line in kept) + b"\n" + _lines(requests))
    said = kconfig.make("olddefconfig", autoconf_aside=False)
    _check_warnings(said, kconfig.result, {number: f"{origin}:{line}" for number, line in lines.items()})


@contextmanager
def _nothing_left_behind(build_dir: Path) -> Iterator[None]:
    """When a configuration is refused, what kconfig made of it in a fresh build dir goes too."""
    folder = build_dir / "include/config"
    fresh = not folder.exists()
    try:
        yield
    except BaseException:
        if fresh:
            shutil.rmtree(folder, ignore_errors=True)
            for name in ("autoconf.h", "rustc_cfg"):
                (build_dir / "include/generated" / name).unlink(missing_ok=True)
        raise


def implied_requests(tree: KernelTree) -> Requests:
    """What ``-a`` means to a configuration that says nothing. Plain make on x86_64 has ARCH=x86, for which
    allnoconfig makes a 32-bit kernel (``config 64BIT`` of arch/x86/Kconfig, 6.1 and 6.12)."""
    if tree.arch == "x86_64" and not tree.make_arch_args():
        return Requests((Request("64BIT", "y", "-a x86_64"),))
    return Requests()


def _lines(requests: Requests) -> bytes:
    return b"".join(request.line().encode() + b"\n" for request in requests)


def _write(path: Path, content: bytes) -> None:
    try:
        path.write_bytes(content)
    except OSError as error:
        raise cannot_write(path, error) from error


def _check_warnings(said: Sequence[str], file: Path, origins: dict[int, str]) -> None:
    """Turn kconfig's warnings about lines that it dropped into an error.

    Lines of requests are left to :func:`_check_requests`, which knows more.
    """
    # The three with which confdata.c (6.1, 6.12) drops a line; others only tell of a value set twice.
    dropped = "unexpected data|symbol value|invalid string"
    pattern = re.compile(re.escape(file.name) + rf":(\d+):warning: ((?:{dropped}).*)$")
    for line in said:
        found = pattern.search(line)
        origin = origins.get(int(found[1])) if found else None
        if found is not None and origin is not None:
            raise UsageError(
                f"{origin}: {found[2]}", "correct the line (kconfig would only warn and drop it)"
            )


def _check_requests(kconfig: Kconfig, requests: Requests) -> None:
    lost = requests.lost_in(read_config(kconfig.result))
    if not lost:
        return
    from klto.kernel.kconfig_ask import asking
    from klto.kernel.kconfig_explain import explain

    with asking(kconfig, kconfig.result) as answers:
        # LTO first: when it is lost with others, it is what the user came for.
        lost.sort(key=lambda request: request.name not in LTO_OPTIONS.values())
        blockers = [explain(answers, request, requests) for request in lost]
    first, *others = blockers
    raise UsageError(
        first.line() + (f" ({len(others)} more above)" if others else ""),
        first.remedy,
        details=tuple(b.line() + (f" ({b.remedy})" if b.remedy else "") for b in others),
    )


def check_width(tree: KernelTree, config: Path, requests: Requests | None = None) -> None:
    """Refuse a configuration of 32-bit x86, which plain make on x86_64 takes as readily as one of x86_64.

    :raises UsageError: it is one.
    """
    if tree.arch == "x86_64" and read_config(config).get("64BIT") != "y":
        asked = requests.get("64BIT") if requests is not None else None
        where = f" ({asked.origin})" if asked else ""
        raise UsageError(
            f"this configuration is for 32-bit x86{where}, klto builds x86_64", "ask for -K CONFIG_64BIT=y"
        )


def _install(result: Path, config: Path) -> bool:
    """Put ``result`` in the place of ``config`` unless they are equal; it becomes ``.config.old``."""
    try:
        if config.exists():
            if config.read_bytes() == result.read_bytes():
                return False
            old = config.with_name(".config.old")
            old.unlink(missing_ok=True)
            os.link(config, old)
        result.replace(config)
    except OSError as error:
        raise cannot_write(config, error) from error
    return True
