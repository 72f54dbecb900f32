"""Address dependencies on arm64."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from klto.check.build_dir import BuildDir
from klto.check.finding import Finding, Level
from klto.check.rule import Rule

_HEADER = "arch/arm64/include/asm/rwonce.h"
_GENERIC = b"include/asm-generic/rwonce.h"
_MOST = 5


class DependentLoad(Rule):
    """READ_ONCE that is a plain load."""

    slug = "dependent-load"
    asks_link = True
    title = "arm64 with LTO whose READ_ONCE is no acquire"
    what = (
        "RCU and lock-free code rely on the CPU keeping an address dependency. A compiler that sees more of the "
        "program may turn it into a control dependency, which arm64 does not order: rare and silent corruption."
    )
    why = "LTO lets the compiler prove what a pointer can be, across files, and replace the dependency by a branch"
    remedies: ClassVar = (
        "take the LTO version of READ_ONCE into the tree: arch/arm64/include/asm/rwonce.h of 5.11 and later",
        "build the object again with the kernel's own headers",
    )
    references: ClassVar = (
        "arch/arm64/include/asm/rwonce.h (6.12)",
        "commit 'arm64: lto: Strengthen READ_ONCE() to acquire when CONFIG_LTO=y'",
    )

    def of_build(self, build: BuildDir) -> Iterator[Finding]:
        if build.lto == "none" or build.config.get("ARM64") != "y":
            return
        text = build.text_of_source(_HEADER)
        if text is None and build.tree is not None:
            text = ""
        if text is not None and not (
            "CONFIG_LTO" in text and "__READ_ONCE" in text and "__LOAD_RCPC" in text
        ):
            yield self.finding(
                _HEADER,
                "has no READ_ONCE with acquire semantics for LTO",
                seen="a plain load",
                allowed="ldar or ldapr",
                source=_HEADER,
            )
            return
        without = []
        for item in build.link.bitcode:
            deps = _dependencies(item.path)
            if _GENERIC in deps and _HEADER.encode() not in deps:
                without.append(item.name)
        if without:
            more = f" and {len(without) - _MOST} more" if len(without) > _MOST else ""
            yield self.finding(
                without[0],
                f"{len(without)} bitcode modules were compiled without {_HEADER}: {', '.join(without[:_MOST])}{more}",
                Level.ERROR,
                seen="asm-generic/rwonce.h alone",
                allowed=_HEADER,
            )


def _dependencies(path: str | None) -> bytes:
    """The whole ``.cmd`` file: what fixdep wrote of the files that the object was made from."""
    if path is None:
        return b""
    folder, _, name = path.rpartition("/")
    try:
        with open(f"{folder}/.{name}.cmd", "rb") as stream:
            return stream.read()
    except OSError:
        return b""
