"""What a rule is: a small class that says what goes wrong and looks for it.

A rule is a subclass of :class:`Rule` in a module of :mod:`klto.check.rules`; nothing else has to know it.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable
from typing import TYPE_CHECKING, ClassVar

from klto.check.finding import Finding, Level

if TYPE_CHECKING:
    from klto.check.build_dir import BuildDir
    from klto.check.link_inputs import LinkInputs
    from klto.check.subject import Subject


class Rule:
    """One rule. Of the three ``of_`` methods it has those that fit it.

    :cvar slug: its name in findings.
    :cvar title: what it finds, in a line.
    :cvar what: what goes wrong.
    :cvar why: why LTO causes it.
    :cvar remedies: what to do, best first.
    :cvar references: upstream's commits, threads and files.
    :cvar asks_link: whether ``of_build`` looks at the build's link; where there are two processes, one reads that.
    """

    slug: ClassVar[str]
    title: ClassVar[str]
    what: ClassVar[str]
    why: ClassVar[str]
    remedies: ClassVar[tuple[str, ...]]
    references: ClassVar[tuple[str, ...]]
    asks_link: ClassVar[bool] = False

    def of_object(self, subject: Subject) -> Iterable[Finding]:
        """Findings in one object: ELF or bitcode, an input of a link or its result."""
        return ()

    def of_link(self, link: LinkInputs) -> Iterable[Finding]:
        """Findings in the inputs of one LTO link together, before it."""
        return ()

    def of_build(self, build: BuildDir) -> Iterable[Finding]:
        """Findings in a finished build dir."""
        return ()

    def finding(
        self,
        artifact: str,
        message: str,
        level: Level = Level.ERROR,
        *,
        symbol: str | None = None,
        section: str | None = None,
        offset: int | None = None,
        seen: str | None = None,
        allowed: str | None = None,
        source: str | None = None,
        remedies: tuple[str, ...] | None = None,
    ) -> Finding:
        """A finding of this rule, with its reasons, remedies and references."""
        return Finding(
            rule=self.slug,
            level=level,
            artifact=artifact,
            message=message,
            symbol=symbol,
            section=section,
            offset=offset,
            seen=seen,
            allowed=allowed,
            why=self.why,
            remedies=self.remedies if remedies is None else remedies,
            references=self.references,
            source=source,
        )


def all_rules() -> list[Rule]:
    """Every rule of :mod:`klto.check.rules`, by name."""
    from klto.check import rules

    found: list[Rule] = []
    for info in pkgutil.iter_modules(rules.__path__):
        module = importlib.import_module(f"{rules.__name__}.{info.name}")
        found += [
            value()
            for value in vars(module).values()
            if isinstance(value, type) and issubclass(value, Rule) and value.__module__ == module.__name__
            if "slug" in vars(value)
        ]
    return sorted(found, key=lambda rule: rule.slug)
