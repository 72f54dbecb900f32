"""Why an option did not get the value that was asked for, from kconfig's own answers.

The first unmet dependency is followed through symbols without a visible prompt, which nobody can set, down to
one that explains it: ``LTO_CLANG_THIN`` needs ``HAS_LTO_CLANG``, which needs ``!GCOV_KERNEL``, but
``GCOV_KERNEL=y``.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from klto.kernel.kconfig_ask import MOD, NO, YES, Answers, Expr, Property, Symbol
from klto.kernel.kconfig_requests import LTO_OPTIONS, Request, Requests

_TRISTATE = {"n": NO, "m": MOD, "y": YES}

#: Symbols whose number is a tool's version: major * 10000 and so on (scripts/cc-version.sh, ld-version.sh).
_TOOL_VERSIONS = {"CLANG_VERSION": "clang", "LLD_VERSION": "LLD", "AS_VERSION": "the assembler"}

#: How far prompt-less symbols are followed; chains in 6.12 are at most five long.
_DEPTH = 10
#: How many of the options that select another are named.
_SHOWN = 4
_OTHER_TOOLS = "what would help: another LLVM (-t), or building without what replaces its tools"


@dataclass(frozen=True)
class Blocker:
    """One option that is not as asked, and why."""

    #: ``CONFIG_LTO_CLANG_THIN``.
    option: str
    asked: str
    got: str
    #: Continues "it ...": ``needs HAS_LTO_CLANG, which needs !GCOV_KERNEL, but GCOV_KERNEL=y``.
    reason: str
    #: What to do about it, or None.
    remedy: str | None
    #: ``arch/Kconfig:801``, where the option is defined, or empty.
    where: str
    origin: str = ""

    def line(self) -> str:
        """The whole as one line."""
        asked_by = f" ({self.origin})" if self.origin else ""
        return f"{self.option}={self.asked}{asked_by} did not survive, it is {self.got}: it {self.reason}"


@dataclass(frozen=True)
class _Reason:
    """Words that continue "it ..." or "which ...", and what to do."""

    text: str
    remedy: str | None = None


def explain(answers: Answers, request: Request, requests: Requests | None = None) -> Blocker:
    """Why ``request`` did not survive in the configuration that ``answers`` is about.

    :param requests: everything that was asked for, to name a request that stands in the way.
    """
    symbol = answers.symbol(request.name)
    reason = _Explanation(answers, requests or Requests()).of(symbol, request)
    got = symbol.value if symbol.known else "not there"
    if symbol.type == "string":
        got = f'"{symbol.value}"'
    return Blocker(
        request.option, request.value, got, reason.text, reason.remedy, symbol.where, request.origin
    )


def blockers(answers: Answers, name: str) -> list[Blocker]:
    """Everything that keeps the option ``name`` from being y; empty when it can be chosen.

    Unlike :func:`explain`, which stops at the first, this names every unmet dependency.
    """
    symbol = answers.symbol(name)
    explanation = _Explanation(answers, Requests())
    if not symbol.known:
        reasons = [explanation.of(symbol, Request(name, "y", ""))]
    else:
        reasons = [] if symbol.visible == YES else explanation.all_low(symbol, frozenset())
    got = symbol.value if symbol.known else "not there"
    return [Blocker(f"CONFIG_{name}", "y", got, r.text, r.remedy, symbol.where) for r in reasons]


@dataclass(frozen=True)
class _Explanation:
    answers: Answers
    requests: Requests

    def of(self, symbol: Symbol, request: Request) -> _Reason:
        if not symbol.known:
            return self._unknown(symbol.name)
        if symbol.type in ("bool", "tristate"):
            return self._tristate(symbol, request)
        return self._value(symbol, request)

    def _unknown(self, name: str) -> _Reason:
        """Kconfig drops names that it does not know without a word."""
        close = difflib.get_close_matches(name.upper(), self.answers.names(), n=1, cutoff=0.75)
        text = "is no option of this tree and architecture"
        return _Reason(text, f"did you mean CONFIG_{close[0]}?") if close else _Reason(text)

    def _value(self, symbol: Symbol, request: Request) -> _Reason:
        """An integer, hex or string."""
        if symbol.type == "string" and not request.value.startswith('"'):
            return _Reason("is a string and needs quotes", f"write -K '{request.option}=\"{request.value}\"'")
        if symbol.type != "string" and re.fullmatch(r"-?\d+|(0[xX])?[0-9a-fA-F]+", request.value) is None:
            kind, example = ("an integer", "10") if symbol.type == "integer" else ("hexadecimal", "0x10")
            return _Reason(f"is {kind}", f"ask for a number, as in {request.option}={example}")
        if symbol.visible == NO:
            return self._hidden(symbol, YES)
        if symbol.range is not None:
            low, high = (_text_of(arg) for arg in symbol.range.args)
            return _Reason(f"must be from {low} to {high}", f"ask for a value from {low} to {high}")
        return _Reason(f"is of type {symbol.type} and does not take {request.value}")

    def _tristate(self, symbol: Symbol, request: Request) -> _Reason:
        if request.value not in _TRISTATE:
            values = "y, m or n" if symbol.type == "tristate" else "y or n"
            return _Reason(f"is {symbol.type}", f"ask for {values}")
        want = _TRISTATE[request.value]
        if want == MOD and symbol.type == "bool":
            return _Reason("is bool and cannot be a module", "ask for y")
        if want == MOD and symbol.now == "bool" and symbol.val == YES:
            return _Reason(
                f"can be a module only with MODULES, but {self._state('MODULES', 'n')}", _ask("MODULES", "y")
            )
        if symbol.val > want:
            return self._why_on(symbol)
        if symbol.visible < want:
            return self._hidden(symbol, want)
        taken = next((m.name for m in symbol.choice.members if m.val == YES), None) if symbol.choice else None
        if taken is not None and symbol.choice is not None:
            return _Reason(
                f"is one of the choice '{symbol.choice.prompt}', and {self._state(taken, 'y')}",
                f"ask for one of them: {request.option} or CONFIG_{taken}",
            )
        return _Reason(f"could be {request.value}, yet kconfig made it {symbol.value}")

    def _hidden(self, symbol: Symbol, want: int) -> _Reason:
        """Why a symbol that is asked for cannot be raised to ``want``."""
        reason = self._why_low(symbol, want, frozenset())
        if symbol.prompts:
            return reason
        if symbol.type in ("bool", "tristate"):
            return replace(reason, text=f"has no prompt and follows other options: it {reason.text}")
        return _Reason("has no prompt: kconfig computes it")

    def _why_low(self, symbol: Symbol, want: int, seen: frozenset[str]) -> _Reason:
        """Why a symbol is below ``want``: its prompt's, default's or select's first unmet condition."""
        seen = seen | {symbol.name}
        for prompt in symbol.prompts:
            unmet = first_unmet(prompt.when, want)
            if unmet is not None:
                return self._needs(unmet, want, seen, prompt)
        if symbol.prompts:
            return _Reason(f"is {symbol.value}", _raise(symbol, want))
        for default in symbol.defaults:
            unmet = first_unmet(default.when, want) or first_unmet(default.value, want)
            if unmet is not None:
                return self._needs(unmet, want, seen, default)
        return self._not_selected(symbol, want, seen)

    def all_low(self, symbol: Symbol, seen: frozenset[str]) -> list[_Reason]:
        """Every reason why a bool is not y."""
        seen = seen | {symbol.name}
        found = []
        for place in symbol.prompts or symbol.defaults:
            for part in _unmet_parts(place.when, YES):
                inner = self.answers.symbol(part.name) if part.op == "sym" and not part.const else None
                if inner and inner.known and not inner.prompts and inner.defaults and inner.name not in seen:
                    deeper = self.all_low(inner, seen)
                    found += [replace(r, text=f"needs {inner.name}, which {r.text}") for r in deeper]
                else:
                    found.append(self._needs(part, YES, seen, place))
        return found or [self._why_low(symbol, YES, seen)]

    def _not_selected(self, symbol: Symbol, want: int, seen: frozenset[str]) -> _Reason:
        selectors = []
        for term in _alternatives(symbol.selected):
            selector, *conditions = _factors(term)
            unmet = next((u for c in conditions if (u := first_unmet(c, want)) is not None), None)
            if selector.val >= want and unmet is not None:
                inner = self._needs(unmet, want, seen)
                return _Reason(f"is selected by {selector.name}, which for this {inner.text}", inner.remedy)
            selectors.append(selector.name)
        if not selectors:
            return _Reason("is not set by anything in this architecture's Kconfig files")
        shown = ", ".join(self._state(name) for name in selectors[:_SHOWN])
        more = f" and {len(selectors) - _SHOWN} more" if len(selectors) > _SHOWN else ""
        settable = [name for name in selectors if self.answers.symbol(name).visible >= want]
        return _Reason(
            f"needs one of the options that select it, but {shown}{more}",
            _any_of([_ask(n, "y") for n in settable[:_SHOWN]]),
        )

    def _failed_test(self, where: Property | None) -> _Reason:
        """A condition that has become a plain n: ``$(cc-option,...)`` and the like are computed, and what is
        and-ed with them folded, when kconfig reads the file."""
        if where is None:
            return _Reason("needs what a test of the tools denies", _OTHER_TOOLS)
        tests = self.answers.tests_at(where.file, where.line)
        shown = " and ".join(tests) if tests else "what its Kconfig entry tests"
        return _Reason(
            f"needs {shown} ({where.file}:{where.line}), which these tools do not pass", _OTHER_TOOLS
        )

    def _needs(self, unmet: Expr, want: int, seen: frozenset[str], where: Property | None = None) -> _Reason:
        """An unmet condition in words, followed further when it is one symbol without a visible prompt."""
        if unmet.op == "sym" and unmet.const:
            return self._failed_test(where)
        if unmet.op == "sym" and unmet.name not in seen and len(seen) < _DEPTH:
            symbol = self.answers.symbol(unmet.name)
            if not symbol.known:
                return _Reason(f"needs {unmet.name}, which this architecture does not have")
            if symbol.visible < want and symbol.type in ("bool", "tristate"):
                inner = self._why_low(symbol, want, seen)
                return _Reason(f"needs {unmet.name}, which {inner.text}", inner.remedy)
        states = ", ".join(dict.fromkeys(self._state(leaf.name, leaf.text) for leaf in leaves(unmet)))
        remedies = [self._remedy(part, want) for part in _alternatives(unmet)]
        return _Reason(f"needs {text(unmet)}" + (f", but {states}" if states else ""), _any_of(remedies))

    def _why_on(self, symbol: Symbol) -> _Reason:
        """Why a symbol is higher than asked."""
        active = self._active_selectors(symbol)
        if active:
            shown = ", ".join(self._state(name) for name in active[:_SHOWN])
            return _Reason(f"is selected by {shown}", _any_of([self._switch_off(symbol)]))
        if symbol.choice and symbol.visible != NO:
            return _Reason(
                f"is what the choice '{symbol.choice.prompt}' is at", "ask for another member of the choice"
            )
        unmet = next((u for p in symbol.prompts if (u := first_unmet(p.when, MOD)) is not None), None)
        if unmet is not None:
            reason = self._needs(unmet, MOD, frozenset({symbol.name}))
            return _Reason(
                f"is {symbol.value} by default and can be changed only in a kernel where it {reason.text}",
                reason.remedy,
            )
        if not symbol.prompts:
            return _Reason(f"has no prompt: kconfig makes it {symbol.value} by default")
        return _Reason(f"could be n, yet kconfig made it {symbol.value}")

    def _state(self, name: str, value: str | None = None) -> str:
        """``GCOV_KERNEL=y (-K)``: a symbol's value, and who asked for it."""
        value = self.answers.symbol(name).value if value is None else value
        asked = self.requests.get(name)
        by = f" ({asked.origin})" if asked is not None and asked.survived(value) else ""
        return f"{name}={value}{by}"

    def _active_selectors(self, symbol: Symbol) -> list[str]:
        return [_factors(term)[0].name for term in _alternatives(symbol.selected) if term.val != NO]

    def _remedy(self, part: Expr, want: int) -> str | None:
        """What a user can ask for to make one leaf, negated leaf or comparison true."""
        first, *rest = part.args or (part,)
        if part.op == "sym" and not part.const:
            symbol = self.answers.symbol(part.name)
            return _raise(symbol, want) if symbol.visible >= want else None
        if part.op == "not" and first is not None and first.op == "sym":
            return self._switch_off(self.answers.symbol(first.name))
        if part.op in (">=", ">") and first is not None and first.name in _TOOL_VERSIONS:
            number = _text_of(rest[0])
            return (
                f"{_TOOL_VERSIONS[first.name]} {int(number) // 10000} or later (-t)"
                if number.isdigit()
                else None
            )
        return None

    def _switch_off(self, symbol: Symbol, depth: int = _DEPTH) -> str | None:
        """What to ask for so that a symbol is off: itself, or what turns it on when that is one thing."""
        active = self._active_selectors(symbol)
        if symbol.visible != NO and not active:
            return _ask(symbol.name, "n")
        if len(active) > 1 or depth == 0:
            return None
        if active:
            causes = [active[0]]
        else:
            default = next((d for d in symbol.defaults if d.when is None or d.when.val != NO), None)
            causes = (
                [f.name for f in _factors(default.when) if f.op == "sym"] if default and default.when else []
            )
        for name in causes:
            remedy = self._switch_off(self.answers.symbol(name), depth - 1)
            if remedy is not None:
                return remedy
        return None


def _raise(symbol: Symbol, want: int) -> str:
    return _ask(symbol.name, "m" if want == MOD and symbol.now == "tristate" else "y")


def _ask(name: str, value: str) -> str:
    mode = next((mode for mode, option in LTO_OPTIONS.items() if option == name and value == "y"), None)
    return f"--lto {mode}" if mode else f"-K CONFIG_{name}={value}"


def _any_of(remedies: Sequence[str | None]) -> str | None:
    known = list(dict.fromkeys(r for r in remedies if r is not None))
    return "what would help: " + " or ".join(known) if known else None


def _text_of(leaf: Expr | None) -> str:
    return leaf.text if leaf is not None else ""


def first_unmet(expr: Expr | None, want: int) -> Expr | None:
    """The first part of a dependency, in its written order, that is below ``want``: never an ``and``."""
    if expr is None or expr.val >= want:
        return None
    if expr.op in ("and", "choice"):
        return next((u for arg in expr.args if (u := first_unmet(arg, want)) is not None), None)
    return expr


def _unmet_parts(expr: Expr | None, want: int) -> list[Expr]:
    """Every part that :func:`first_unmet` could have named."""
    if expr is None or expr.val >= want:
        return []
    if expr.op in ("and", "choice"):
        return [part for arg in expr.args for part in _unmet_parts(arg, want)]
    return [expr]


def text(expr: Expr | None) -> str:
    """An expression as it stands in a Kconfig file."""
    if expr is None:
        return "y"
    if expr.op == "sym":
        return expr.name
    if expr.op == "not":
        inner = expr.args[0]
        return f"!{text(inner)}" if inner is None or inner.op == "sym" else f"!({text(inner)})"
    if expr.op in ("and", "or"):
        sign = " && " if expr.op == "and" else " || "
        return sign.join(
            f"({text(arg)})" if arg is not None and {arg.op, expr.op} == {"and", "or"} else text(arg)
            for arg in expr.args
        )
    if expr.op == "choice":
        return "its choice"
    return f"{text(expr.args[0])} {expr.op} {text(expr.args[1])}"


def leaves(expr: Expr | None) -> Iterator[Expr]:
    """The symbols of an expression; neither constants nor numbers."""
    if expr is None:
        return
    if expr.op == "sym" and not expr.const and re.fullmatch(r"-?\d+|0x[0-9a-fA-F]+", expr.name) is None:
        yield expr
    for arg in expr.args:
        yield from leaves(arg)


def _alternatives(expr: Expr | None) -> Iterator[Expr]:
    """The parts of an ``or``, any of which would do."""
    if expr is not None and expr.op == "or":
        for arg in expr.args:
            yield from _alternatives(arg)
    elif expr is not None:
        yield expr


def _factors(term: Expr) -> list[Expr]:
    """A select as kconfig keeps it: the symbol that selects, then its conditions (menu_finalize, menu.c)."""
    if term.op == "and":
        return [factor for arg in term.args if arg is not None for factor in _factors(arg)]
    return [term]
