"""Why an option is blocked, told from answers that a tree's kconfig gave or could give."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from klto.kernel.kconfig_ask import MOD, NO, YES, Choice, Expr, Member, Property, Symbol
from klto.kernel.kconfig_explain import Blocker, blockers, explain, first_unmet, leaves, text
from klto.kernel.kconfig_requests import Request, parse_requests

LETTERS = {"n": NO, "m": MOD, "y": YES}


@dataclass
class FakeAnswers:
    """Answers written down in the test."""

    symbols: dict[str, Symbol] = field(default_factory=dict)

    def symbol(self, name: str) -> Symbol:
        return self.symbols.get(name, Symbol(name, known=False))

    def names(self) -> list[str]:
        return sorted(self.symbols)

    def tests_at(self, file: str, line: int) -> list[str]:
        return [f"$(test-of,{file})"]


def leaf(name: str, value: str) -> Expr:
    return Expr("sym", LETTERS.get(value, NO), name=name, text=value)


def const(value: str) -> Expr:
    return Expr("sym", LETTERS.get(value, NO), name=value, text=value, const=value in LETTERS)


def conjunction(*args: Expr) -> Expr:
    return Expr("and", min(a.val for a in args), args)


def disjunction(*args: Expr) -> Expr:
    return Expr("or", max(a.val for a in args), args)


def negation(arg: Expr) -> Expr:
    return Expr("not", 2 - arg.val, (arg,))


def at_least(name: str, value: int, wanted: int) -> Expr:
    return Expr(">=", YES if value >= wanted else NO, (leaf(name, str(value)), const(str(wanted))))


def prompt(when: Expr | None) -> tuple[Property, ...]:
    return (Property("arch/Kconfig", 801, when, prompt="an option"),)


def default(when: Expr | None, value: str = "y") -> tuple[Property, ...]:
    return (Property("arch/Kconfig", 752, when, value=const(value)),)


def option(
    name: str, value: str = "n", when: Expr | None = None, type_: str = "bool", **more: object
) -> Symbol:
    """A symbol with a prompt."""
    visible = YES if when is None else when.val
    return Symbol(
        name,
        True,
        type_,
        str(more.pop("now", type_)),
        value,
        LETTERS.get(value, NO),
        visible,
        prompt(when),
        **more,  # type: ignore[arg-type]
    )


def hidden(name: str, value: str = "n", when: Expr | None = None, **more: object) -> Symbol:
    """A symbol without a prompt, y by default under a condition."""
    defaults = default(when) if when is not None else ()
    return Symbol(name, True, "bool", "bool", value, LETTERS[value], NO, (), defaults, **more)  # type: ignore[arg-type]


def asked(answers: FakeAnswers, *items: str) -> Blocker:
    """Explain the first of some requests."""
    requests = parse_requests(items)
    return explain(answers, requests.items[0], requests)


def answers(*symbols: Symbol) -> FakeAnswers:
    return FakeAnswers({s.name: s for s in symbols})


def test_followed_through_symbols_without_a_prompt() -> None:
    gcov = leaf("GCOV_KERNEL", "y")
    found = asked(
        answers(
            option("LTO_CLANG_THIN", "n", conjunction(leaf("HAS_LTO_CLANG", "n"), leaf("SUPPORTS", "y"))),
            hidden("HAS_LTO_CLANG", "n", conjunction(leaf("CC_IS_CLANG", "y"), negation(gcov))),
            option("GCOV_KERNEL", "y"),
        ),
        "CONFIG_LTO_CLANG_THIN=y",
        "CONFIG_GCOV_KERNEL=y",
    )
    assert found.line() == (
        "CONFIG_LTO_CLANG_THIN=y (-K) did not survive, it is n: "
        "it needs HAS_LTO_CLANG, which needs !GCOV_KERNEL, but GCOV_KERNEL=y (-K)"
    )
    assert found.remedy == "what would help: -K CONFIG_GCOV_KERNEL=n"
    assert found.where == "arch/Kconfig:801"


def test_alternatives_are_shown_with_all_their_values() -> None:
    clang = at_least("CLANG_VERSION", 140006, 170000)
    when = disjunction(
        negation(leaf("KASAN", "y")), leaf("KASAN_HW_TAGS", "n"), clang, negation(leaf("DEBUG_INFO", "y"))
    )
    found = asked(
        answers(
            option("LTO", "n", when),
            option("KASAN", "y"),
            option("KASAN_HW_TAGS", "n", leaf("ARM64", "n")),
            hidden("DEBUG_INFO", "y", selected=conjunction(leaf("DWARF5", "y"), leaf("X", "y"))),
            option("DWARF5", "y"),
        ),
        "CONFIG_LTO=y",
    )
    assert found.reason == (
        "needs !KASAN || KASAN_HW_TAGS || CLANG_VERSION >= 170000 || !DEBUG_INFO, "
        "but KASAN=y, KASAN_HW_TAGS=n, CLANG_VERSION=140006, DEBUG_INFO=y"
    )
    assert (
        found.remedy == "what would help: -K CONFIG_KASAN=n or clang 17 or later (-t) or -K CONFIG_DWARF5=n"
    )


def test_the_first_unmet_dependency_is_named() -> None:
    when = conjunction(leaf("A", "y"), conjunction(leaf("B", "n"), leaf("C", "n")))
    found = asked(answers(option("X", "n", when), option("A", "y"), option("B"), option("C")), "CONFIG_X=y")
    assert (found.reason, found.remedy) == ("needs B, but B=n", "what would help: -K CONFIG_B=y")


def test_all_unmet_dependencies_for_the_doctor() -> None:
    known = answers(
        option("X", "n", conjunction(leaf("B", "n"), leaf("HAS", "n"), leaf("D", "n"))),
        hidden("HAS", "n", conjunction(negation(leaf("C", "y")), leaf("D", "n"), leaf("E", "y"))),
        *(option(name, "y" if name in "CE" else "n") for name in "BCDE"),
    )
    assert [b.reason for b in blockers(known, "X")] == [
        "needs B, but B=n",
        "needs HAS, which needs !C, but C=y",
        "needs HAS, which needs D, but D=n",
        "needs D, but D=n",
    ]
    assert blockers(known, "B") == []
    assert [b.reason for b in blockers(known, "NOPE")] == ["is no option of this tree and architecture"]


def test_unknown_option_and_its_nearest_name() -> None:
    found = asked(answers(option("DEBUG_FS"), option("DEBUG_INFO")), "CONFIG_DEBUGFS=y")
    assert (found.got, found.reason) == ("not there", "is no option of this tree and architecture")
    assert found.remedy == "did you mean CONFIG_DEBUG_FS?"
    assert asked(answers(option("DEBUG_FS")), "CONFIG_ZZZ=y").remedy is None


def test_dependency_that_the_architecture_lacks() -> None:
    found = asked(answers(option("X", "n", leaf("S390", "n"))), "CONFIG_X=y")
    assert found.reason == "needs S390, which this architecture does not have"


def test_option_that_is_only_selected() -> None:
    selected = disjunction(
        leaf("LTO_CLANG_FULL", "n"), conjunction(leaf("LTO_CLANG_THIN", "n"), leaf("HAS", "y"))
    )
    found = asked(
        answers(
            hidden("LTO_CLANG", "n", selected=selected), option("LTO_CLANG_FULL"), option("LTO_CLANG_THIN")
        ),
        "CONFIG_LTO_CLANG=y",
    )
    assert found.reason == (
        "has no prompt and follows other options: it needs one of the options that select it, "
        "but LTO_CLANG_FULL=n, LTO_CLANG_THIN=n"
    )
    assert found.remedy == "what would help: --lto full or --lto thin"


def test_select_with_an_unmet_condition() -> None:
    selected = conjunction(leaf("ARM64", "y"), leaf("CPU_LITTLE_ENDIAN", "n"))
    found = asked(
        answers(
            option("THIN", "n", leaf("ARCH_SUPPORTS", "n")),
            hidden("ARCH_SUPPORTS", "n", selected=selected),
            hidden("ARM64", "y"),
            option("CPU_LITTLE_ENDIAN", "n"),
        ),
        "CONFIG_THIN=y",
    )
    assert found.reason == (
        "needs ARCH_SUPPORTS, which is selected by ARM64, which for this needs CPU_LITTLE_ENDIAN, "
        "but CPU_LITTLE_ENDIAN=n"
    )
    assert found.remedy == "what would help: -K CONFIG_CPU_LITTLE_ENDIAN=y"


def test_option_that_nothing_sets() -> None:
    found = asked(answers(option("X", "n", leaf("HAVE_X", "n")), hidden("HAVE_X", "n")), "CONFIG_X=y")
    assert found.reason == "needs HAVE_X, which is not set by anything in this architecture's Kconfig files"


def test_test_of_the_tools_is_quoted() -> None:
    for symbol in (option("X", "n", const("n")), hidden("X", "n", const("n"))):
        found = asked(answers(symbol), "CONFIG_X=y")
        assert "needs $(test-of,arch/Kconfig) (arch/Kconfig:" in found.reason
        assert "these tools do not pass" in found.reason
        assert "another LLVM" in (found.remedy or "")


def test_choice_taken_by_another_member() -> None:
    members = (Member("LTO_NONE", YES, YES), Member("LTO_CLANG_THIN", NO, YES))
    choice = Choice("Link Time Optimization (LTO)", members)
    known = answers(option("LTO_CLANG_THIN", "n", choice=choice), option("LTO_NONE", "y", choice=choice))
    found = asked(known, "CONFIG_LTO_CLANG_THIN=y")
    assert found.reason == "is one of the choice 'Link Time Optimization (LTO)', and LTO_NONE=y"
    requests = parse_requests(["CONFIG_LTO_NONE=y"])
    found = explain(known, Request("LTO_CLANG_THIN", "y", "--lto thin"), requests)
    assert found.reason.endswith("and LTO_NONE=y (-K)")
    found = asked(known, "CONFIG_LTO_NONE=n")
    assert found.reason == "is what the choice 'Link Time Optimization (LTO)' is at"


def test_modules() -> None:
    known = answers(
        option("T", "y", type_="tristate", now="bool"),
        option("B", "n"),
        option("MODULES", "n"),
        option("D", "m", leaf("M", "m"), type_="tristate", now="tristate"),
        option("M", "m", type_="tristate", now="tristate"),
    )
    found = asked(known, "CONFIG_T=m")
    assert found.reason == "can be a module only with MODULES, but MODULES=n"
    assert found.remedy == "-K CONFIG_MODULES=y"
    assert asked(known, "CONFIG_B=m").reason == "is bool and cannot be a module"
    found = asked(known, "CONFIG_D=y")
    assert (found.reason, found.remedy) == ("needs M, but M=m", "what would help: -K CONFIG_M=y")


def test_option_that_is_selected_and_cannot_be_off() -> None:
    selected = disjunction(conjunction(leaf("A", "y"), leaf("B", "y")), leaf("C", "n"))
    known = answers(option("X", "y", selected=selected), option("A", "y"), option("B", "y"), option("C"))
    found = asked(known, "CONFIG_X=n", "CONFIG_A=y")
    assert found.reason == "is selected by A=y (-K)"
    assert found.remedy == "what would help: -K CONFIG_A=n"


def test_option_that_is_on_by_default() -> None:
    known = answers(option("X", "y", leaf("EXPERT", "n")), option("EXPERT"), hidden("Y", "y", const("y")))
    found = asked(known, "CONFIG_X=n")
    assert "can be changed only in a kernel where it needs EXPERT, but EXPERT=n" in found.reason
    assert found.remedy == "what would help: -K CONFIG_EXPERT=y"
    assert asked(known, "CONFIG_Y=n").reason == "has no prompt: kconfig makes it y by default"


def test_what_turns_a_symbol_without_prompt_on_is_found() -> None:
    known = answers(
        option("LTO", "n", negation(leaf("RECORDMCOUNT", "y"))),
        hidden("RECORDMCOUNT", "y", conjunction(leaf("MCOUNT", "y"), negation(leaf("OTHER", "n")))),
        hidden("MCOUNT", "y", leaf("DYNAMIC_FTRACE", "y")),
        option("DYNAMIC_FTRACE", "y"),
        option("OTHER"),
    )
    found = asked(known, "CONFIG_LTO=y")
    assert found.reason == "needs !RECORDMCOUNT, but RECORDMCOUNT=y"
    assert found.remedy == "what would help: -K CONFIG_DYNAMIC_FTRACE=n"


def test_numbers_and_strings() -> None:
    limits = Expr("range", NO, (const("12"), const("25")))
    known = answers(
        option("SHIFT", "25", type_="integer", range=limits),
        option("HIDDEN", "17", leaf("PRINTK", "n"), type_="integer"),
        option("PRINTK"),
        option("START", "0x100", type_="hex"),
        option("NAME", "", type_="string"),
        Symbol("VERSION", True, "integer", "integer", "190107"),
    )
    assert asked(known, "CONFIG_SHIFT=99").line() == (
        "CONFIG_SHIFT=99 (-K) did not survive, it is 25: it must be from 12 to 25"
    )
    assert asked(known, "CONFIG_SHIFT=y").reason == "is an integer"
    assert asked(known, "CONFIG_HIDDEN=15").reason == "needs PRINTK, but PRINTK=n"
    assert asked(known, "CONFIG_START=y").reason == "is hexadecimal"
    found = asked(known, "CONFIG_NAME=17")
    assert (found.got, found.reason) == ('""', "is a string and needs quotes")
    assert found.remedy == "write -K 'CONFIG_NAME=\"17\"'"
    assert asked(known, "CONFIG_VERSION=1").reason == "has no prompt: kconfig computes it"
    assert asked(answers(option("B")), "CONFIG_B=17").remedy == "ask for y or n"


def test_circles_end() -> None:
    known = answers(hidden("A", "n", leaf("B", "n")), hidden("B", "n", leaf("A", "n")))
    assert "needs B, which needs A, but A=n" in asked(known, "CONFIG_A=y").reason
    assert len(blockers(known, "A")) == 1


def test_condition_of_the_choice_itself() -> None:
    when = conjunction(Expr("choice", NO, (leaf("C", "n"),)), leaf("D", "y"))
    assert asked(answers(option("X", "n", when), option("C")), "CONFIG_X=y").reason == "needs C, but C=n"


@pytest.mark.parametrize(
    ("expr", "written"),
    [
        (conjunction(disjunction(leaf("A", "y"), leaf("B", "n")), leaf("C", "n")), "(A || B) && C"),
        (disjunction(conjunction(leaf("A", "y"), leaf("B", "n")), leaf("C", "n")), "(A && B) || C"),
        (disjunction(disjunction(leaf("A", "n"), leaf("B", "n")), leaf("C", "n")), "A || B || C"),
        (negation(conjunction(leaf("A", "y"), leaf("B", "n"))), "!(A && B)"),
        (negation(leaf("A", "y")), "!A"),
        (at_least("V", 1, 2), "V >= 2"),
    ],
)
def test_expressions_in_words(expr: Expr, written: str) -> None:
    assert text(expr) == written


def test_leaves_are_symbols_only() -> None:
    expr = conjunction(
        at_least("V", 1, 2), const("y"), leaf("A", "n"), Expr("sym", NO, name="0x10", text="0x10")
    )
    assert [e.name for e in leaves(expr)] == ["V", "A"]


def test_module_is_enough_where_module_is_asked() -> None:
    when = conjunction(leaf("A", "m"), leaf("B", "y"))
    assert first_unmet(when, MOD) is None
    unmet = first_unmet(when, YES)
    assert unmet is not None
    assert unmet.name == "A"
