"""Every entry of the knowledge: its own logs get its answer alone, and no other log does."""

from __future__ import annotations

import re
import re._parser as regex_parser  # type: ignore[import-not-found]
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from klto.explain import Explanations, explain_log
from klto.explain.knowledge import Entry, KnowledgeError, Sample, compiled, entries, parse_entry

CLEAN = sorted((Path(__file__).parent / "clean_logs").iterdir())
ENTRIES = entries()
LOGS = [
    pytest.param(entry, sample, id=f"{entry.id}-{number}")
    for entry in ENTRIES
    for number, sample in enumerate((*entry.real, *entry.variant))
]
#: Logs of failures that no entry is about: none may answer, and the error must be told.
STRANGERS = {
    "compile": "drivers/foo.c:12:3: error: use of undeclared identifier 'x'\n1 error generated.\n"
    "make[4]: *** [scripts/Makefile.build:229: drivers/foo.o] Error 1\n",
    "header": "kernel/x.c:1:10: fatal error: 'nope.h' file not found\n",
    "compiler killed": "clang: error: unable to execute command: Killed\n"
    "make[4]: *** [scripts/Makefile.build:243: drivers/gpu/drm/i915/i915_drv.o] Error 254\n",
    "out of memory": "[  99.1] Out of memory: Killed process 812 (firefox) total-vm:9414000kB\n",
    "cc1 killed": "gcc: fatal error: Killed signal terminated program cc1\ncompilation terminated.\n",
    "no rule": "make[2]: *** No rule to make target 'debian/certs/x.pem', needed by 'certs/list'.  Stop.\n",
    "no root": "[ 1.2] Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)\n",
    "openssl": "certs/extract-cert.c:21:10: fatal error: openssl/bio.h: No such file or directory\n",
    "frame": "drivers/a.c:9:5: error: "
    "stack frame size (2552) exceeds limit (2048) in 'foo' [-Werror,-Wframe-larger-than]\n",
    "assembler": "arch/x86/a.S:12:2: error: invalid instruction mnemonic 'bogus'\n",
    "link of a user program": "/usr/bin/ld: cannot find -lelf: No such file or directory\n",
    "disk": "cp: error writing '/mnt/x': No space left on device\n",
    "null": "[  3.4] BUG: kernel NULL pointer dereference, address: 0000000000000008\n"
    "[  3.5] Kernel panic - not syncing: Fatal exception\n",
    "warn": "[ 2.0] WARNING: CPU: 1 PID: 77 at net/core/dev.c:5000 netif_rx+0x10/0x20\n",
    "host": "/bin/sh: 1: bison: command not found\nmake[1]: *** [scripts/Makefile.host:17: x.tab.c] Error 127\n",
}


def _ids(found: Explanations) -> list[str]:
    return [one.id for one in found.explanations]


def test_there_are_at_least_sixty() -> None:
    assert len(ENTRIES) >= 60
    assert len({entry.id for entry in ENTRIES}) == len(ENTRIES)


@pytest.mark.parametrize(("entry", "sample"), LOGS)
def test_its_log_is_explained_by_it_alone(entry: Entry, sample: Sample) -> None:
    found = explain_log(sample.log)
    assert _ids(found) == [entry.id]
    if sample.culprit is not None:
        assert found.explanations[0].culprit == sample.culprit
    assert not found.unexplained


@pytest.mark.parametrize(
    ("entry", "sample"),
    [param.values for param in LOGS if param.values[0].real],
    ids=lambda x: getattr(x, "id", ""),
)
def test_its_log_among_noise_with_stamps_and_colours(entry: Entry, sample: Sample) -> None:
    noise = "  CC      drivers/net/tun.o\nmake[3]: Entering directory '/x'\n" * 200
    lines = [
        f"2026-01-02T03:04:05.678Z \x1b[1m\x1b[0;31m{line}\x1b[0m\r"
        for line in sample.log.strip().splitlines()
    ]
    found = explain_log(noise + "\n".join(lines) + "\n" + noise)
    assert _ids(found)[:1] == [entry.id]


@pytest.mark.parametrize("entry", [e for e in ENTRIES if e.other], ids=lambda e: e.id)
def test_not_for_its_lookalikes(entry: Entry) -> None:
    for sample in entry.other:
        assert entry.id not in _ids(explain_log(sample.log)), sample.log


def test_twenty_clean_logs_have_no_answer() -> None:
    assert len(CLEAN) >= 20
    for path in CLEAN:
        found = explain_log(path.read_bytes())
        assert _ids(found) == [], path.name
        assert found.unexplained == (), path.name
        assert found.stage is None, path.name


@pytest.mark.parametrize("name", STRANGERS)
def test_what_is_not_known_stays_unknown(name: str) -> None:
    found = explain_log(STRANGERS[name])
    assert _ids(found) == []
    assert found.unexplained, "the error must be told"
    assert found.first_error is not None
    assert found.advice


def test_texts_are_whole() -> None:
    for entry in ENTRIES:
        assert len(entry.cause.split()) >= 8, entry.id
        assert entry.references, entry.id
        assert entry.affects, entry.id
        for remedy in entry.remedies:
            assert remedy.command is None or remedy.command.startswith("klto "), entry.id


def _repeats(tree: Any, inside: bool = False) -> Iterator[str]:
    """Unbounded repeats inside of unbounded repeats, which backtrack exponentially."""
    for operation, value in tree:
        name = str(operation)
        if name in ("MAX_REPEAT", "MIN_REPEAT"):
            unbounded = value[1] == regex_parser.MAXREPEAT
            if unbounded and inside:
                yield name
            yield from _repeats(value[2], inside or unbounded)
        elif name == "SUBPATTERN":
            yield from _repeats(value[3], inside)
        elif name == "BRANCH":
            for branch in value[1]:
                yield from _repeats(branch, inside)
        elif name in ("ASSERT", "ASSERT_NOT"):
            yield from _repeats(value[1], inside)


def test_no_pattern_nests_repeats() -> None:
    assert list(_repeats(regex_parser.parse("(a+)*b")))
    for entry in ENTRIES:
        for clause in entry.clauses():
            for pattern in (clause.pattern, *clause.unless):
                assert not list(_repeats(regex_parser.parse(pattern))), (entry.id, pattern)


#: What makes a careless pattern slow: runs of one character class, cut into words, paths and quotes.
HOSTILE = (
    "a",
    "a ",
    "a/",
    "a.",
    "_",
    "x+",
    '"',
    "'",
    "(",
    " ",
    "1",
    "0x1",
    ": ",
    "a.o ",
    ".a(",
    "-",
    "[",
    "> ",
)


def _seconds(pattern: re.Pattern[str], text: str) -> float:
    best = 1.0
    for _ in range(3):
        begun = time.thread_time()
        pattern.search(text)
        best = min(best, time.thread_time() - begun)
    return best


def test_patterns_take_no_more_than_linear_time() -> None:
    """Against a pattern that is linear: a quadratic one takes hundreds of times as long on lines as long as these."""
    plain = re.compile(r"\A(?:[a-m]|[^a-m])*!")
    assert _seconds(re.compile(r"[^\s:]+\.o\S*: x"), "a." * 800) > 50 * _seconds(plain, "a." * 800)
    for entry in ENTRIES:
        for clause in entry.clauses():
            literal = clause.literals[0].decode()
            for part in (*HOSTILE, literal):
                filler = (part * 800)[:800]
                text = filler + literal + filler
                # A busy machine makes one measurement long, not every one.
                assert any(
                    _seconds(compiled(clause.pattern), text) < 50 * max(_seconds(plain, text), 20e-6)
                    for _ in range(8)
                ), (entry.id, part)


def test_literals_are_in_what_the_pattern_matches() -> None:
    """Else the pattern would never be tried: some log of the entry has to reach each signature."""
    for entry in ENTRIES:
        text = "\n".join(sample.log for sample in (*entry.real, *entry.variant))
        assert any(literal in text.encode() for clause in entry.match for literal in clause.literals), (
            entry.id
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace('id = "duplicate-symbol"', 'id = "other"'), "name must be other.toml"),
        (lambda text: text.replace("stage = ", "stages = "), "stages"),
        (lambda text: text.replace("vmlinux.o-link", "nowhere"), "nowhere"),
        (lambda text: re.sub(r"(?m)^literal = .*", 'literal = "short"', text), "fewer than 7"),
        (lambda text: re.sub(r"(?m)^pattern = .*", 'pattern = "("', text), "pattern"),
        (lambda text: re.sub(r"source = .*\n", "", text), "source"),
        (lambda text: text + "]", "duplicate-symbol.toml"),
    ],
)
def test_a_broken_entry_says_what_is_wrong(change: Any, message: str) -> None:
    import klto.explain

    text = (Path(klto.explain.__file__).parent / "knowledge/duplicate-symbol.toml").read_text()
    assert parse_entry(text, "duplicate-symbol.toml").id == "duplicate-symbol"
    with pytest.raises(KnowledgeError, match=message):
        parse_entry(change(text), "duplicate-symbol.toml")
