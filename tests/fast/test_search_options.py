"""The options search with a fake kconfig, likeness of failures, and the objects that a configuration builds."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

from klto.kernel.kbuild_objects import leaves_out, objects_of
from klto.kernel.kconfig_requests import Requests, parse_requests
from klto.kernel.kconfig_settle import Settler
from klto.kernel.tree import KernelTree
from klto.search.engine import Search
from klto.search.likeness import read_failure, without_chance
from klto.search.options import (
    OptionsOutcome,
    OptionsSpace,
    changes_between,
    defaults_turned_off,
    options_that_differ,
    values_of,
)
from klto.search.oracles import Builder, CheckFinds
from klto.search.runner import Ran, Runner
from klto.search.verdicts import Memory, Verdict


class _FakeKconfig:
    """Options named by numbers: those of ``needs`` are off unless the other one is on."""

    def __init__(self, defaults: tuple[str, ...] = (), **needs: str) -> None:
        self._defaults, self._needs = defaults, needs

    def settle(self, config: bytes) -> bytes:
        values = dict.fromkeys(self._defaults, "y") | values_of(config)
        changed = True
        while changed:
            gone = [n for n, v in values.items() if v == "y" and values.get(self._needs.get(n, n)) != "y"]
            changed = bool(gone)
            values |= dict.fromkeys(gone, "n")
        return "".join(f"CONFIG_{n}={v}\n" for n, v in values.items() if v == "y").encode()


def _space(count: int, **needs: str) -> OptionsSpace:
    bad = "".join(f"CONFIG_O{n}=y\n" for n in range(count)).encode()
    prompts = {f"O{n}": () for n in range(count)}
    settler = cast(Settler, _FakeKconfig(**needs))
    return OptionsSpace(b"", changes_between(b"", bad, prompts, Requests()), Requests(), settler)


def test_dependencies_cost_no_oracle_calls(tmp_path: Path) -> None:
    asked: list[str] = []

    def oracle(outcome: OptionsOutcome) -> tuple[Verdict, str]:
        asked.append(outcome.label)
        values = values_of(outcome.config)
        fails = all(values.get(name) == "y" for name in ("O40", "O150", "O290"))
        return (Verdict.FAILS if fails else Verdict.PASSES), ""

    space = _space(300, O40="O12", O12="O3", O150="O100")
    with Memory(tmp_path) as memory:
        search = Search(space, oracle, memory, lambda chosen, outcome: None)
        found = search.minimise()
    assert found == {40, 12, 3, 150, 100, 290}
    assert len(asked) <= 45
    assert search.spared > 10
    needed = space.needed_by(found)
    assert needed == {"O3": ["O12", "O40"], "O12": ["O40"], "O100": ["O150"]}


def test_default_that_the_bad_configuration_has_off(tmp_path: Path) -> None:
    """It appears when its parent is on, in which the good configuration is otherwise; and one more behind it."""
    bad = b"CONFIG_A=y\nCONFIG_B=y\n# CONFIG_TESTS_OFF is not set\nCONFIG_C=y\n# CONFIG_MORE is not set\n"
    prompts: dict[str, tuple[str, ...]] = dict.fromkeys(("A", "B", "C", "TESTS_OFF", "MORE"), ())
    fake = _FakeKconfig(("TESTS_OFF", "MORE"), TESTS_OFF="A", MORE="B", C="B")
    settler = cast(Settler, fake)
    changes = changes_between(b"", bad, prompts, Requests())
    assert [change.name for change in changes] == ["A", "B", "C"]
    changes += defaults_turned_off(b"", bad, changes, prompts, Requests(), settler)
    assert [(change.name, change.bad) for change in changes[3:]] == [("TESTS_OFF", "n"), ("MORE", "n")]
    space = OptionsSpace(b"", changes, Requests(), settler)
    assert space.become(frozenset(range(5))).config == b"CONFIG_A=y\nCONFIG_B=y\nCONFIG_C=y\n"

    def oracle(outcome: OptionsOutcome) -> tuple[Verdict, str]:
        values = values_of(outcome.config)
        fails = values.get("A") == "y" and values.get("TESTS_OFF") != "y"
        return (Verdict.FAILS if fails else Verdict.PASSES), ""

    with Memory(tmp_path) as memory:
        found = Search(space, oracle, memory, lambda chosen, outcome: None).minimise()
    assert space.fragment(found) == "CONFIG_A=y\n# CONFIG_TESTS_OFF is not set\n"


def test_what_kconfig_makes_equal_is_asked_once(tmp_path: Path) -> None:
    space = _space(4, O1="O0", O2="O0", O3="O0")
    assert (
        space.become(frozenset({1})).key
        == space.become(frozenset({2, 3})).key
        == space.become(frozenset()).key
    )
    assert space.become(frozenset({0, 1})).key != space.become(frozenset({0, 2})).key


def test_options_that_differ() -> None:
    one = b"CONFIG_A=y\n# CONFIG_B is not set\nCONFIG_C=3\n"
    assert options_that_differ(one, b"CONFIG_C=3\nCONFIG_A=y\n") == []
    assert options_that_differ(one, b"CONFIG_B=m\nCONFIG_C=4\nCONFIG_D=y\n") == ["A", "B", "C", "D"]


def test_items_of_a_search() -> None:
    good = b"CONFIG_NONE=y\n# CONFIG_THIN is not set\nCONFIG_SAME=y\nCONFIG_NUMBER=3\nCONFIG_HELD=y\nCONFIG_OFF=y\n"
    bad = b"CONFIG_THIN=y\n# CONFIG_NONE is not set\nCONFIG_SAME=y\nCONFIG_NUMBER=17\nCONFIG_DERIVED=y\n"
    prompts = {"NONE": ("THIN",), "THIN": ("NONE",), "SAME": (), "NUMBER": (), "HELD": (), "OFF": ()}
    found = changes_between(good, bad, prompts, parse_requests(["CONFIG_HELD=y"]))
    assert [change.line() for change in found] == [
        "CONFIG_THIN=y", "CONFIG_NUMBER=17", "# CONFIG_OFF is not set"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("/a/b/lib/x.c:12:3: error: bad thing 'foo'", "/c/lib/x.c:99:1: error: bad thing 'foo'"),
        ("ld.lld: error: undefined symbol: foo.llvm.123456", "ld.lld: error: undefined symbol: foo.llvm.99"),
        ("BUG: page fault for address: ffffffff81000000", "BUG: page fault for address: ffffc90000001234"),
    ],
)  # fmt: skip
def test_errors_that_differ_by_chance_only(one: str, other: str) -> None:
    assert without_chance(one) == without_chance(other)


def test_errors_that_differ() -> None:
    assert without_chance("x.c:1:2: error: no 'foo'") != without_chance("x.c:1:2: error: no 'bar'")


def test_the_failure_in_a_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text(
        "  CC      lib/ctype.o\n/src/lib/ctype.c:40:2: error: planted: both are on\n   40 | #error planted\n"
        "1 error generated.\nmake[4]: *** [/src/scripts/Makefile.build:229: lib/ctype.o] Error 1\n"
        "make[1]: *** [/src/Makefile:1938: .] Error 2\n"
    )
    failure, _ = read_failure(log)
    assert (failure.target, failure.first_error) == ("lib/ctype.o", "ctype.c: error: planted: both are on")
    log.write_text(log.read_text().replace("planted", "another"))
    assert not read_failure(log)[0].is_like(failure)


def _tree(path: Path) -> KernelTree:
    files = {
        "Makefile": "VERSION = 6\nPATCHLEVEL = 12\nSUBLEVEL = 0\n",
        "Kconfig": "",
        "arch/Kconfig": "config LTO_CLANG_THIN\n\tbool\n",
        "arch/x86/Kconfig": "config X86\n\tselect ARCH_SUPPORTS_LTO_CLANG\n",
        "arch/x86/Makefile": "drivers-$(CONFIG_PCI) += arch/x86/pci/\ndrivers-$(CONFIG_NOT) += arch/x86/not/\n",
        "arch/x86/pci/Makefile": "obj-y := i386.o\n",
        "scripts/kconfig/Makefile": "",
        "scripts/Makefile.build": "",
        "Kbuild": "obj-y += init/ drivers/\nobj-$(CONFIG_NET) += net/\n",
        "init/Makefile": "obj-y := main.o\nmain-y := one.o two.o\n$(shell touch ran)\ninclude $(obj)/made.mk\n",
        "drivers/Makefile": "obj-$(CONFIG_A) += a/\nobj-$(CONFIG_B) += a/\nflag := $(call cc-option,-x)\n",
        "drivers/a/Kbuild": "obj-$(CONFIG_A) += a.o\nobj-$(CONFIG_B) += ../b.o\nhostprogs := c.o\n"
        "targets += image.o\nsubdir-y += stub\n",
        "drivers/a/stub/Makefile": "lib-y := stub.o\n",
        "drivers/a/Makefile": "$(error not this one)\n",
        "net/Makefile": "obj-m += net.o\nnet-objs := core.o\nnet-$(CONFIG_A) += a.o\n",
        "lib/Makefile": "lib-y := ctype.o\n",
    }
    for name, text in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(text)
    return KernelTree.open(path, "x86_64")


def test_objects_of_a_configuration(tmp_path: Path) -> None:
    tree = _tree(tmp_path)
    always = {"init/one.o", "init/two.o", "lib/ctype.o"}
    assert objects_of(tree, {}) == always
    assert objects_of(tree, {"A": "y", "PCI": "y"}) == always | {"drivers/a/a.o", "arch/x86/pci/i386.o"}
    assert objects_of(tree, {"NET": "y", "B": "m", "S": '"a # $(b)"'}) == always | {
        "net/core.o",
        "drivers/b.o",
    }


def test_whether_one_object_is_built(tmp_path: Path) -> None:
    tree = _tree(tmp_path)
    for config, built in (
        ({"A": "y"}, ["drivers/a/a.o", "./drivers//a/a.o", "drivers/a/", "lib/ctype.o", "init/one.o"]),
        ({"B": "y"}, ["drivers/a/"]),
        ({"NET": "m"}, ["net/core.o", "net/net.o", "net/"]),
        ({"PCI": "y"}, ["arch/x86/pci/i386.o"]),
        # An image's, and what no Kbuild file tells of.
        ({"A": "y"}, ["drivers/a/image.o", "drivers/a/stub/", "drivers/a/stub/stub.o", "arch/x86/boot/x.o"]),
    ):
        assert [target for target in built if leaves_out(tree, config, target)] == []
    for config, left_out in (
        (
            {"A": "y"},
            [
                "net/a.o",
                "net/",
                "init/other.o",
                "init/sub/other.o",
                "drivers/b.o",
                "arch/x86/pci/",
                "arch/x86/pci/i386.o",
            ],
        ),
        ({"B": "y"}, ["drivers/a/a.o", "net/core.o"]),
        ({}, ["drivers/a/", "drivers/a/image.o", "drivers/a/stub/"]),
    ):
        assert [target for target in left_out if not leaves_out(tree, config, target)] == []


def test_targets_that_a_candidate_has(tmp_path: Path) -> None:
    """An oracle's build leaves out what the candidate does not have; without anything left nothing is run."""
    tree = _tree(tmp_path / "tree")
    off, on = b"# CONFIG_A is not set\n", b"CONFIG_A=y\n"
    targets = ("drivers/a/a.o", "net/", "X=1")
    builder = Builder(tree, (), Runner(), tmp_path / "build", targets)
    assert builder.for_candidate(off) is None
    kept = builder.for_candidate(on)
    assert kept is not None
    assert kept.targets == ("drivers/a/a.o", "X=1")
    assert builder.for_candidate(None) is builder
    whole = Builder(tree, (), Runner(), tmp_path / "build", ("vmlinux.o", "X=1"))
    assert whole.for_candidate(off) is whole
    verdict, why = CheckFinds(builder, "split-text")(off)
    assert (verdict, why) == (Verdict.PASSES, "drivers/a/a.o net/ X=1: not built")
    assert not builder.own_log.exists(), "nothing was run"


def test_findings_of_other_candidates_do_not_count(tmp_path: Path) -> None:
    """The build dir is shared: what a target that is left out has made for another candidate is still there."""
    tree = _tree(tmp_path / "tree")
    arguments = []

    class FakeRunner(Runner):
        def run(
            self, argv: Sequence[str | os.PathLike[str]], log: Path, *, cwd: Path | None = None,
            extra: Mapping[str, str] | None = None, timeout: float | None = None,
        ) -> Ran:  # fmt: skip
            arguments.append(argv[-1])
            finding = {"rule": "split-text", "artifact": "drivers/a/image.ro"}
            return Ran(0, json.dumps({"findings": [finding]}))

    builder = Builder(tree, (), FakeRunner(), tmp_path / "build", ("drivers/a/", "init/"))
    judge = CheckFinds(builder, "split-text")
    assert judge(b"CONFIG_A=y\n")[0] is Verdict.FAILS
    assert judge(b"") == (Verdict.PASSES, "no split-text")
    assert arguments == ["init/", "json", "init/", "json"]


def test_a_target_that_the_failing_configuration_seems_not_to_build(tmp_path: Path) -> None:
    """``../b.o`` of another folder's Kbuild file: no candidate is taken for one without it."""
    tree = _tree(tmp_path / "tree")
    failing = tmp_path / "failing.config"
    failing.write_text("CONFIG_B=y\n")
    builder = Builder(tree, (), Runner(), tmp_path / "build", ("drivers/b.o", "drivers/a/"))
    assert builder.for_candidate(b"CONFIG_B=y\n") == replace(
        builder, targets=("drivers/a/",), left_out=("drivers/b.o",)
    )
    knowing = builder.for_search(failing)
    assert knowing.for_candidate(b"CONFIG_B=y\n") == knowing
    assert knowing.for_candidate(b"") == replace(knowing, targets=("drivers/b.o",), left_out=("drivers/a/",))
