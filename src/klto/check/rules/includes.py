"""Files that assembly includes at the link."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import ClassVar

from klto.check.finding import Finding, Level
from klto.check.link_inputs import BitcodeInput, LinkInputs
from klto.check.rule import Rule
from klto.check.saved import read_saved


class StaleInclude(Rule):
    """A module whose .incbin file is newer than its bitcode."""

    slug = "stale-include"
    title = "a bitcode module that includes a file which is newer than the object, or is not there"
    what = (
        "The kernel embeds an old file (the configuration of CONFIG_IKCONFIG, a certificate, firmware), or the link "
        "takes the new file where everything else is still made from the old one."
    )
    why = (
        ".incbin is carried out when the linker assembles, not when the object is compiled; LLVM's cache key does "
        "not cover the file"
    )
    remedies: ClassVar = (
        "build again: klto's link cache covers what .incbin reads",
        "remove the object, so that make compiles it again",
        "do without LLVM's own --thinlto-cache-dir",
    )
    references: ClassVar = ("https://github.com/ClangBuiltLinux/linux/issues/2021", "kernel/configs.c (6.12)")

    def of_link(self, link: LinkInputs) -> Iterator[Finding]:
        for item in link.bitcode:
            if item.path is not None and item.may_include:
                yield from self._of_module(link, item)

    def _of_module(self, link: LinkInputs, item: BitcodeInput) -> Iterator[Finding]:
        assert item.path is not None
        made = os.stat(item.path).st_mtime_ns
        for include in item.read().includes():
            if include.path is None:
                continue
            root = link.root or _made_in(item.path)
            path = os.path.join(root, include.path)
            try:
                changed = os.stat(path).st_mtime_ns
            except OSError:
                if not os.path.isabs(path):
                    continue  # Relative to where the link will run, which is not known.
                yield self.finding(
                    item.name, f"includes {include.path}, which is not there", symbol=include.path
                )
                continue
            if changed > made:
                later = (changed - made) / 1e9
                yield self.finding(
                    item.name,
                    f"includes {include.path}, which is {later:.1f} s newer than the object",
                    Level.WARNING,
                    symbol=include.path,
                    seen=f"{later:.1f} s newer",
                    allowed="older",
                )


def _made_in(path: str) -> str:
    """The folder in which make has made an object, by the name that its saved command has for it; "" if unknown."""
    command = read_saved(path)
    whole = os.path.abspath(path)
    if command is None or not whole.endswith(f"/{command.target}"):
        return ""
    return whole[: -len(command.target)]
