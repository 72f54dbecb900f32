"""What a kernel build needs on this machine besides LLVM: programs and headers, each with its Debian package.

Nothing is assumed from a package database: programs are run, headers are compiled, a host program is linked.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from klto import process
from klto.errors import UsageError
from klto.kernel.toolchain import Toolchain

_ANSWER_SECONDS = 20.0


@dataclass(frozen=True)
class Need:
    """A program or header that kernel builds use, and when."""

    name: str
    package: str
    #: What the build uses it for.
    purpose: str
    #: Options any of which makes it necessary; none: always necessary.
    options: tuple[str, ...] = ()
    #: Only for this architecture.
    arch: str | None = None
    #: What makes the program answer.
    question: str = "--version"


@dataclass(frozen=True)
class HostDependency:
    """A need as this machine meets it."""

    need: Need
    #: Whether this build needs it, as far as the configuration is known.
    needed: bool
    #: Where the program is, or its version; empty for headers.
    found: str
    #: What is wrong: None when it works.
    problem: str | None


#: Programs that 6.1 and 6.12 run (Documentation/process/changes.rst, and where the purpose says).
_PROGRAMS = (
    Need("make", "make", "Kbuild itself"),
    Need("flex", "flex", "the lexer of scripts/kconfig"),
    Need("bison", "bison", "the parser of scripts/kconfig"),
    Need("bc", "bc", "kernel/time/timeconst.bc"),
    Need("perl", "perl", "scripts/*.pl"),
    Need("gzip", "gzip", "the compressed image", ("KERNEL_GZIP", "IKCONFIG")),
    Need("xz", "xz-utils", "the compressed image", ("KERNEL_XZ", "MODULE_COMPRESS_XZ", "IKHEADERS")),
    Need("zstd", "zstd", "the compressed image", ("KERNEL_ZSTD", "MODULE_COMPRESS_ZSTD")),
    Need("lz4", "lz4", "the compressed image", ("KERNEL_LZ4",)),
    Need("lzop", "lzop", "the compressed image", ("KERNEL_LZO",)),
    Need("bzip2", "bzip2", "the compressed image", ("KERNEL_BZIP2",)),
    Need("lzma", "xz-utils", "the compressed image", ("KERNEL_LZMA",)),
    Need("cpio", "cpio", "kernel/gen_kheaders.sh", ("IKHEADERS",)),
    Need(
        "openssl", "openssl", "the module signing key (certs/Makefile)", ("MODULE_SIG",), question="version"
    ),
    Need("pahole", "pahole", "BTF (scripts/link-vmlinux.sh)", ("DEBUG_INFO_BTF",)),
    Need("python3", "python3", "scripts/*.py of some drivers", ("DRM_MSM",)),
)

_COMPILER = Need("C library", "libc6-dev", "host programs (scripts/)")
_LINKER = Need("linker", "binutils", "host programs (scripts/)")

#: Headers that host programs include, with the file that asks.
_HEADERS = (
    (Need("libelf", "libelf-dev", "tools/objtool", ("OBJTOOL",), "x86_64"), "gelf.h"),
    (Need("libelf for BTF", "libelf-dev", "tools/bpf/resolve_btfids", ("DEBUG_INFO_BTF",)), "gelf.h"),
    (
        Need(
            "libssl",
            "libssl-dev",
            "certs/extract-cert, scripts/sign-file",
            ("SYSTEM_TRUSTED_KEYRING", "MODULE_SIG_FORMAT"),
        ),
        "openssl/bio.h",
    ),
)


def host_dependencies(
    toolchain: Toolchain | None,
    arch: str | None = None,
    config: Mapping[str, str] | None = None,
    *,
    all_options: bool = True,
) -> list[HostDependency]:
    """Look at what builds use.

    :param toolchain: its clang compiles host programs (HOSTCC of LLVM=1); None leaves out what is compiled.
    :param arch: None for any.
    :param config: options that are on (of ``read_config``); None when not known.
    :param all_options: whether to look at what other configurations would need too.
    """
    programs = [(need, _is_needed(need, arch, config)) for need in _PROGRAMS]
    headers = [(need, header, _is_needed(need, arch, config)) for need, header in _HEADERS]
    found = [look_at(need, needed) for need, needed in programs if needed or all_options]
    if toolchain is not None:
        found += _compiled(toolchain.clang, [h for h in headers if h[2] or all_options])
    return found


def _is_needed(need: Need, arch: str | None, config: Mapping[str, str] | None) -> bool:
    if need.arch is not None and arch is not None and need.arch != arch:
        return False
    if not need.options:
        return True
    # objtool is part of every LTO kernel for x86_64: whoever does not know the configuration needs it.
    if config is None:
        return need.arch is not None and need.arch == arch
    return any(option in config for option in need.options)


def look_at(need: Need, needed: bool) -> HostDependency:
    """Whether a program is there and answers when asked for its version."""
    where = shutil.which(need.name)
    if where is None:
        return HostDependency(need, needed, "", "not found in PATH")
    try:
        done = process.run([where, need.question], check=False, timeout=_ANSWER_SECONDS)
    except (UsageError, process.CommandTimeout) as error:
        return HostDependency(need, needed, where, error.message)
    lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    if done.returncode != 0:
        said = f" ({lines[-1].strip()})" if lines else ""
        problem = f"'{where} {need.question}' gave {process.describe_status(done.returncode)}{said}"
        return HostDependency(need, needed, where, problem)
    if need.name == "make" and not any("GNU Make" in line for line in lines):
        return HostDependency(need, needed, where, f"{where} is not GNU make")
    version = next((m[0] for line in lines if (m := re.search(r"\d+\.\d[\w.]*", line))), "")
    return HostDependency(need, needed, f"{where} {version}".strip(), None)


def _compiled(clang: Path, headers: Sequence[tuple[Need, str, bool]]) -> list[HostDependency]:
    """Compile and link a host program, then one that includes each header."""
    with tempfile.TemporaryDirectory(prefix="klto-host-") as folder:
        source, program = Path(folder, "host.c"), Path(folder, "host")
        source.write_text('#include <stdio.h>\nint main(void) { return puts("") < 0; }\n')
        complaint = _complaint([clang, source, "-o", program])
        no_header = complaint is not None and "file not found" in complaint
        found = [
            HostDependency(_COMPILER, True, "", complaint if no_header else None),
            HostDependency(_LINKER, True, "", None if no_header else complaint),
        ]
        for need, header, needed in headers:
            source.write_text(f"#include <{header}>\n")
            found.append(HostDependency(need, needed, "", _complaint([clang, "-fsyntax-only", source])))
        return found


def _complaint(argv: Sequence[process.Arg]) -> str | None:
    """The first error of a compiler, or None."""
    done = process.run(argv, check=False, timeout=_ANSWER_SECONDS)
    if done.returncode == 0:
        return None
    lines = done.stderr.splitlines() or [process.describe_status(done.returncode)]
    return re.sub(r"^.*?error: ", "", next((line for line in lines if "error:" in line), lines[0]))


def missing(dependencies: Iterable[HostDependency]) -> list[HostDependency]:
    """Those that are needed and do not work."""
    return [d for d in dependencies if d.needed and d.problem is not None]


def install_hint(dependencies: Iterable[HostDependency]) -> str:
    """The one command that installs them all."""
    packages = dict.fromkeys(d.need.package for d in dependencies)
    return "install it: apt-get install " + " ".join(packages)


def check_host(toolchain: Toolchain, arch: str, config: Mapping[str, str] | None) -> None:
    """Refuse to start a build that cannot end.

    :raises UsageError: something is missing or broken, with the command that installs it.
    """
    lacking = missing(host_dependencies(toolchain, arch, config, all_options=False))
    if lacking:
        what = "; ".join(f"{d.need.name}, for {d.need.purpose}: {d.problem}" for d in lacking)
        raise UsageError(f"a kernel build needs {what}", install_hint(lacking))
