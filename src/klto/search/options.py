"""The options search: which of the options that differ between a good and a bad configuration matter.

Every candidate is settled by the tree's own kconfig, and judged by what it became.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass

from klto.kernel.kconfig_requests import Requests
from klto.kernel.kconfig_settle import Settler
from klto.search.engine import Outcome

#: A line of a configuration that sets an option or says that it is off.
_LINE = re.compile(r"(?m)^(?:CONFIG_([A-Za-z0-9_]+)=(.*)|# CONFIG_([A-Za-z0-9_]+) is not set)$")


#: Of an option that the good configuration does not speak of: what kconfig makes of it.
DEFAULT = ""


@dataclass(frozen=True)
class Change:
    """One item of the search: an option that is otherwise in the bad configuration, or a choice's member."""

    name: str
    #: As in a configuration file; ``n`` for off; or ``DEFAULT``.
    good: str
    bad: str
    #: The other members of the choice: they are off where this one is on.
    rivals: tuple[str, ...] = ()

    def line(self) -> str:
        """The bad side, as a line of a fragment."""
        return _line(self.name, self.bad)


@dataclass(frozen=True)
class OptionsOutcome(Outcome):
    """A settled configuration."""

    config: bytes = b""


def _line(name: str, value: str) -> str:
    return f"# CONFIG_{name} is not set" if value == "n" else f"CONFIG_{name}={value}"


def values_of(config: bytes) -> dict[str, str]:
    """Every option that a configuration file speaks of, in its order (kconfig's menus'); off is ``n``."""
    lines = _LINE.findall(config.decode("utf-8", "replace"))
    return {name or unset: value if name else "n" for name, value, unset in lines}


def outcome_key(config: bytes) -> str:
    """Names a configuration by the options that are on: what else the file says does not reach a build."""
    on = sorted(f"{name}={value}" for name, value in values_of(config).items() if value != "n")
    return hashlib.sha256("\n".join(on).encode()).hexdigest()


def options_that_differ(one: bytes, other: bytes) -> list[str]:
    """The names of options that are not the same in two configurations; one that is not there is off."""
    a, b = values_of(one), values_of(other)
    return [name for name in dict.fromkeys((*a, *b)) if a.get(name, "n") != b.get(name, "n")]


def changes_between(
    good: bytes, bad: bytes, prompts: Mapping[str, tuple[str, ...]], held: Requests
) -> list[Change]:
    """The options that differ and that somebody can set, in the order of the bad file, then the good one's.

    :param prompts: the options that can be set, with the other members of their choices.
    :param held: options that every candidate has as they are asked for here: they are no items.
    """
    before, after = values_of(good), values_of(bad)
    fixed = {request.name for request in held}
    found = []
    for name in dict.fromkeys((*after, *before)):
        was, now = before.get(name, "n"), after.get(name, "n")
        if was == now or name in fixed or name not in prompts:
            continue
        rivals = prompts[name]
        if rivals and (now != "y" or fixed.intersection(rivals)):
            continue  # The member that is on in its place is the item.
        found.append(Change(name, was, now, rivals))
    return found


def defaults_turned_off(
    good: bytes,
    bad: bytes,
    changes: Sequence[Change],
    prompts: Mapping[str, tuple[str, ...]],
    held: Requests,
    settler: Settler,
) -> list[Change]:
    """Further items: options on by default that the bad configuration has off, and of which the good one does not
    speak because others of the changes make them appear.

    ``CONFIG_CRYPTO_MANAGER_DISABLE_TESTS`` is such a one: without it all changes together do not make the bad one.
    """
    after, known = values_of(bad), {request.name for request in held} | values_of(good).keys()
    found: list[Change] = []
    while True:
        space = OptionsSpace(good, [*changes, *found], held, settler)
        got = values_of(space.become(frozenset(range(space.count))).config)
        asked = {change.name for change in space.changes} | known
        more = [
            Change(name, DEFAULT, "n")
            for name, value in after.items()
            if value == "n" and got.get(name, "n") != "n" and name not in asked and prompts.get(name) == ()
        ]
        if not more:
            return found
        found += more


class OptionsSpace:
    """Subsets of the changes: those are made to the good configuration.

    :ivar prompts: the options that can be set.
    """

    def __init__(
        self,
        good: bytes,
        changes: Sequence[Change],
        held: Requests,
        settler: Settler,
        prompts: Container[str] = (),
    ) -> None:
        self.prompts = prompts
        self._good = values_of(good)
        self.changes = changes
        self._held = held
        self._settler = settler
        self._settled: dict[frozenset[int], OptionsOutcome] = {}

    @property
    def count(self) -> int:
        """How many changes."""
        return len(self.changes)

    def become(self, chosen: frozenset[int]) -> OptionsOutcome:
        """The good configuration with these changes, settled.

        Those not chosen are asked for as they are in the good one, off where it does not speak of them: a
        default must not bring in what was left out.
        """
        if chosen not in self._settled:
            config = self._settler.settle(self._asked(chosen))
            label = f"{len(chosen)} of {self.count} options"
            self._settled[chosen] = OptionsOutcome(outcome_key(config), label, config)
        return self._settled[chosen]

    def _asked(self, chosen: frozenset[int]) -> bytes:
        values = dict(self._good)
        for number, change in enumerate(self.changes):
            if (
                number not in chosen
                and change.good != DEFAULT
                and (change.name in values or change.bad in ("y", "m", "n"))
            ):
                values[change.name] = values.get(change.name, "n")
        for number in chosen:
            change = self.changes[number]
            values[change.name] = change.bad
            values |= dict.fromkeys(change.rivals, "n")
        for request in self._held:
            values[request.name] = request.value
        return "".join(_line(name, value) + "\n" for name, value in values.items()).encode()

    def loses(self, chosen: frozenset[int], kept: frozenset[int], known: frozenset[int]) -> bool:
        """Whether kconfig drops a needed change here that it let be in ``known``: its dependencies are missing."""
        names = {self.changes[number].name for number in kept}
        gone = {change.name for change in self.lost(chosen)} & names
        return bool(gone) and not gone <= {change.name for change in self.lost(known)}

    def lost(self, chosen: frozenset[int]) -> list[Change]:
        """Which of the chosen changes kconfig did not let be."""
        got = values_of(self.become(chosen).config)
        return [c for c in map(self.changes.__getitem__, sorted(chosen)) if got.get(c.name, "n") != c.bad]

    def fragment(self, chosen: frozenset[int]) -> str:
        """The chosen changes and what is held, as a fragment."""
        lines = [self.changes[number].line() for number in sorted(chosen)]
        return "".join(f"{line}\n" for line in [*(request.line() for request in self._held), *lines])

    def needed_by(self, chosen: frozenset[int]) -> Mapping[str, list[str]]:
        """For each chosen option that kconfig needs for others of them: those others. Asks no oracle."""
        found: dict[str, list[str]] = {}
        already = {change.name for change in self.lost(chosen)}
        for number in sorted(chosen):
            gone = [c.name for c in self.lost(chosen - {number}) if c.name not in already]
            if gone:
                found[self.changes[number].name] = gone
        return found
