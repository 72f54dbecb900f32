"""Why an option did not get the value that was asked for, from kconfig's own answers.

The first unmet dependency is followed through symbols without a visible prompt, which nobody can set, down to
one that explains it: ``LTO_CLANG_THIN`` needs ``HAS_LTO_CLANG``, which needs ``!GCOV_KERNEL``, but
``GCOV_KERNEL=y``.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from klto.kernel.kconfig_ask import MOD, NO, YES, Answers, Expr, Property, Symbol
from klto.kernel.kconfig_requests import Request, Requests

_TRISTATE = {"n": NO, "m": MOD, "y": YES}
_LETTER = "nmy"

#: Symbols whose number is a tool's version: major * 10000 and so on (scripts/cc-version.sh, ld-version.sh).
_TOOL_VERSIONS = {"CLANG_VERSION": "clang", "LLD_VERSION": "LLD", "AS_VERSION": "the assembler"}

#: How far prompt-less symbols are followed; chains in 6.12 are at most five long.
_DEPTH = 10
_SELECTORS_SHOWN = 5


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
        asked_by = f" (asked for by {self.origin})" if self.origin else ""
        return f"{self.option}={self.asked} did not survive{asked_by}, it is {self.got}: it {self.reason}"


@dataclass(frozen=True)
class _Reason:
    text: str
    remedy: str | None = None


def explain(answers: Answers, request: Request, requests: Requests | None = None) -> Blocker:
    """Why ``request`` did not survive in the configuration that ``answers`` is about.

    :param requests: everything that was asked for, to name a request that stands in the way.
    """
    requests = requests or Requests()
    symbol = answers.symbol(request.name)
    if not symbol.known:
        reason = _unknown(answers, request.name)
    elif symbol.type in ("bool", "tristate"):
        reason = _explain_tristate(answers, symbol, request, requests)
    else:
        reason = _explain_value(answers, symbol, request)
    got = (symbol.value or '""') if symbol.known else "not there"
    if symbol.type == "string" and symbol.value:
        got = f'"{symbol.value}"'
    return Blocker(
        request.option, request.value, got, reason.text, reason.remedy, symbol.where, request.origin
    )


def _unknown(answers: Answers, name: str) -> _Reason:
    """Kconfig drops names that it does not know without a word."""
    close = difflib.get_close_matches(name.upper(), answers.names(), n=1, cutoff=0.75)
    text = "is no option of this tree and architecture"
    return _Reason(text, f"did you mean CONFIG_{close[0]}?") if close else _Reason(text)


def _explain_value(answers: Answers, symbol: Symbol, request: Request) -> _Reason:
    """An integer, hex or string."""
    is_text = request.value.startswith('"')
    if symbol.type == "string" and not is_text:
        return _Reason(
            f"is a string, {request.value} has no quotes", f"write '{request.option}=\"{request.value}\"'"
        )
    if symbol.type != "string" and re.fullmatch(r"-?\d+|(0[xX])?[0-9a-fA-F]+", request.value) is None:
        kind = "a hexadecimal number" if symbol.type == "hex" else "an integer"
        return _Reason(f"is {kind}", f"write {request.option}={'0x10' if symbol.type == 'hex' else '10'}")
    if symbol.visible == NO:
        return _hidden(answers, symbol, YES)
    if symbol.range is not None:
        low, high = (_value(arg) for arg in symbol.range.args)
        return _Reason(f"must be from {low} to {high}", f"ask for a value from {low} to {high}")
    return _Reason(f"is {symbol.type} and kconfig does not take {request.value} for it")


def _explain_tristate(answers: Answers, symbol: Symbol, request: Request, requests: Requests) -> _Reason:
    if request.value not in _TRISTATE:
        return _Reason(f"is {symbol.type}", f"ask for {request.option}=y or {request.option}=n")
    want = _TRISTATE[request.value]
    if want == MOD and symbol.now == "bool" and symbol.visible != NO and symbol.type == "tristate":
        return _Reason("needs MODULES to be m, but MODULES=n", "ask for it too: -K CONFIG_MODULES=y")
    if want == MOD and symbol.type == "bool":
        return _Reason("is bool: it cannot be a module", f"ask for {request.option}=y")
    if symbol.val > want:
        return _why_on(answers, symbol)
    if symbol.visible < want:
        return _hidden(answers, symbol, want)
    taken = _taken(symbol)
    if taken is not None:
        other = requests.get(taken)
        asked = f", asked for by {other.origin}" if other is not None and other.value == "y" else ""
        prompt = symbol.choice.prompt if symbol.choice else ""
        return _Reason(
            f"is one of the choice '{prompt}', which is at {taken}{asked}",
            f"ask for one of them, not CONFIG_{taken}",
        )
    return _Reason(f"is {_LETTER[symbol.val]} although kconfig would allow {request.value}")


def _taken(symbol: Symbol) -> str | None:
    """The member that a symbol's choice is at, when it is another."""
    members = symbol.choice.members if symbol.choice else ()
    return next((m.name for m in members if m.val == YES and m.name != symbol.name), None)


def _hidden(answers: Answers, symbol: Symbol, want: int) -> _Reason:
    """Why a symbol cannot be raised to ``want``."""
    reason = _why_low(answers, symbol, want, frozenset())
    if symbol.prompts:
        return reason
    if symbol.type in ("bool", "tristate"):
        return replace(reason, text=f"has no prompt, it cannot be asked for: it {reason.text}")
    return _Reason("has no prompt: it cannot be asked for, kconfig computes it", reason.remedy)


def _why_low(answers: Answers, symbol: Symbol, want: int, seen: frozenset[str]) -> _Reason:
    """Why a symbol is below ``want``: its prompt's, default's or select's first unmet condition."""
    seen = seen | {symbol.name}
    for prompt in symbol.prompts:
        unmet = first_unmet(prompt.when, want)
        if unmet is not None:
            return _needs(answers, unmet, want, seen)
    if symbol.prompts:
        return _Reason("is not chosen", f"ask for it too: -K CONFIG_{symbol.name}={_LETTER[want]}")
    for default in symbol.defaults:
        if default.value is not None and default.value.op == "sym" and default.value.name == "n":
            continue
        unmet = first_unmet(default.when, want) or first_unmet(default.value, want)
        if unmet is not None:
            return _needs(answers, unmet, want, seen, default)
    return _not_selected(answers, symbol, want, seen)


def _not_selected(answers: Answers, symbol: Symbol, want: int, seen: frozenset[str]) -> _Reason:
    selectors = []
    for term in _terms(symbol.selected):
        selector, *conditions = _factors(term)
        if selector.val >= want:
            unmet = next((u for c in conditions if (u := first_unmet(c, want)) is not None), None)
            if unmet is not None:
                inner = _needs(answers, unmet, want, seen)
                return _Reason(f"is selected by {selector.name}, which for this {inner.text}", inner.remedy)
        selectors.append(selector.name)
    if not selectors:
        return _Reason("is not set by anything in this architecture's Kconfig files")
    shown = ", ".join(f"{name}={answers.symbol(name).value}" for name in selectors[:_SELECTORS_SHOWN])
    more = f" and {len(selectors) - _SELECTORS_SHOWN} more" if len(selectors) > _SELECTORS_SHOWN else ""
    settable = next((n for n in selectors if answers.symbol(n).visible >= want), None)
    remedy = f"ask for one that selects it: -K CONFIG_{settable}=y" if settable else None
    return _Reason(f"is set only by options that select it, and none of them is on ({shown}{more})", remedy)


def _needs(
    answers: Answers, unmet: Expr, want: int, seen: frozenset[str], where: Property | None = None
) -> _Reason:
    """An unmet condition in words, followed further when it is one symbol that has no visible prompt."""
    if unmet.op == "sym" and unmet.const:
        # $(success,...) and the like have become a plain n when Kconfig files are read.
        at = f" ({where.file}:{where.line})" if where else ""
        return _Reason(f"needs what a test of the tools in its Kconfig file{at} denies")
    if unmet.op == "sym" and unmet.name not in seen and len(seen) < _DEPTH:
        symbol = answers.symbol(unmet.name)
        if not symbol.known:
            return _Reason(f"needs {unmet.name}, which this architecture does not have")
        if symbol.visible < want and symbol.type in ("bool", "tristate"):
            inner = _why_low(answers, symbol, want, seen)
            at_least = f"{unmet.name}=y" if unmet.val == MOD else unmet.name
            return _Reason(f"needs {at_least}, which {inner.text}", inner.remedy)
    values = ", ".join(dict.fromkeys(f"{leaf.name}={_value(leaf)}" for leaf in leaves(unmet)))
    remedies = list(dict.fromkeys(filter(None, (_remedy(answers, part) for part in _alternatives(unmet)))))
    return _Reason(
        f"needs {text(unmet)}" + (f", but {values}" if values else ""),
        ("one of: " if len(remedies) > 1 else "") + "; ".join(remedies) if remedies else None,
    )


def _why_on(answers: Answers, symbol: Symbol) -> _Reason:
    """Why a symbol is higher than asked."""
    active = [_factors(term)[0].name for term in _terms(symbol.selected) if term.val >= symbol.val]
    if active:
        settable = next((n for n in active if answers.symbol(n).visible != NO), None)
        remedy = f"ask for that to be off too: -K CONFIG_{settable}=n" if settable else None
        return _Reason(f"is selected by {', '.join(active[:_SELECTORS_SHOWN])}", remedy)
    if symbol.choice and symbol.visible != NO:
        return _Reason(
            f"is where the choice '{symbol.choice.prompt}' stands", "ask for another member of the choice"
        )
    unmet = next((u for p in symbol.prompts if (u := first_unmet(p.when, MOD)) is not None), None)
    if unmet is not None:
        values = ", ".join(f"{leaf.name}={_value(leaf)}" for leaf in leaves(unmet))
        return _Reason(
            f"is y by default, and can be chosen only with {text(unmet)} ({values})", _remedy(answers, unmet)
        )
    if not symbol.prompts:
        return _Reason("has no prompt: kconfig sets it by its default")
    return _Reason(f"is {_LETTER[symbol.val]}")


def _remedy(answers: Answers, part: Expr) -> str | None:
    """What a user can ask for to make one leaf, negated leaf or comparison true."""
    if part.op == "sym" and not part.const:
        return f"-K CONFIG_{part.name}=y" if answers.symbol(part.name).visible == YES else None
    if part.op == "not" and part.args[0] is not None and part.args[0].op == "sym":
        symbol = answers.symbol(part.args[0].name)
        if symbol.visible != NO:
            return f"-K CONFIG_{symbol.name}=n"
        active = [_factors(term)[0].name for term in _terms(symbol.selected) if term.val > NO]
        settable = [name for name in active if answers.symbol(name).visible != NO]
        return f"-K CONFIG_{settable[0]}=n" if len(active) == 1 and settable else None
    if part.op in (">=", ">") and part.args[0] is not None and part.args[1] is not None:
        tool, number = _TOOL_VERSIONS.get(part.args[0].name), part.args[1].text
        if tool and number.isdigit():
            return f"{tool} {int(number) // 10000} or later (-t)"
    return None


def first_unmet(expr: Expr | None, want: int) -> Expr | None:
    """The first part of a dependency, in its written order, that is below ``want``: never an ``and``."""
    if expr is None or expr.val >= want:
        return None
    if expr.op in ("and", "choice"):
        return next((u for arg in expr.args if (u := first_unmet(arg, want)) is not None), None)
    return expr


def unmet_parts(expr: Expr | None, want: int) -> list[Expr]:
    """Every part that :func:`first_unmet` could have named."""
    if expr is None or expr.val >= want:
        return []
    if expr.op in ("and", "choice"):
        return [part for arg in expr.args for part in unmet_parts(arg, want)]
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


def _value(leaf: Expr | None) -> str:
    return leaf.text if leaf is not None else ""


def _alternatives(expr: Expr | None) -> Iterator[Expr]:
    """The parts of an ``or``, any of which would do."""
    if expr is not None and expr.op == "or":
        for arg in expr.args:
            yield from _alternatives(arg)
    elif expr is not None:
        yield expr


def _terms(selected: Expr | None) -> list[Expr]:
    return list(_alternatives(selected))


def _factors(term: Expr) -> list[Expr]:
    """A select as kconfig keeps it: the symbol that selects, then its conditions (menu_finalize, menu.c)."""
    if term.op == "and":
        return [factor for arg in term.args if arg is not None for factor in _factors(arg)]
    return [term]
