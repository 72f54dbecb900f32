"""What assembly text names and includes: the forms that kernels use, and the ones meant to mislead."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from klto.objects.assembly import expand_template, included_files, labels, referenced_names


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (rb' .incbin "kernel/config_data.gz"', [("incbin", "kernel/config_data.gz")]),
        (rb'.incbin "a", 4, 8; .include "b"', [("incbin", "a"), ("include", "b")]),
        (rb'.INCBIN"a"' + b"\n\t.InClUdE\t" + rb'"b"', [("incbin", "a"), ("include", "b")]),
        (rb'# .incbin "in a comment"', [("incbin", "in a comment")]),
        (rb'.incbin "q\"uo\\te\101\x41\t"', [("incbin", 'q"uo\\teAA\t')]),
        (rb".incbin path", [("incbin", None)]),
        (rb'.incbin "\name"', [("incbin", "\name")]),
        (rb'.incbin "\file"', [("incbin", "\x0cile")]),
        (rb'.incbin "\argument"', [("incbin", None)]),
        (b'.incbin "a\nb"', [("incbin", None)]),
        (b'.incbin "\x01"', [("incbin", None)]),
        (b".incbin", [("incbin", None)]),
        (rb'.macro m d; .\d "x"; .endm', [("\\d", None)]),
        (rb'.in\d "x"', [("in\\d", None)]),
        (rb'.Llabel\@: .L\d "x"', []),
        (rb'call my.incbin; .incbinary "x"; .include_next "y"; lea incbin(%rip), %rax', []),
        (b'.incbin "caf\xc3\xa9\xff"', [("incbin", "café\udcff")]),
    ],
)
def test_included_files(text: bytes, wanted: list[tuple[str, str | None]]) -> None:
    assert [(include.directive, include.path) for include in included_files(text)] == wanted


def test_the_line_around_is_kept_short() -> None:
    (include,) = included_files(b"nop\n" + b"x" * 500 + b' .incbin "f" ' + b"y" * 500 + b"\nnop")
    assert len(include.text) <= 200
    (include,) = included_files(b'nop\n first .incbin "f" last \nnop')
    assert include.text == 'first .incbin "f" last'
    assert '.incbin "f"' in include.text


@pytest.mark.parametrize(
    ("template", "text"),
    [
        (b"mov $$4, $0", b"mov $4, \x01"),
        (b"bl ${0:c}", b"bl \x01"),
        (b"$(mov $1, $0$|$0, $1$)", b" mov \x01, \x01 \x01, \x01 "),
        (b"$$$$", b"$$"),
        (b"${:uid}${1:P}", b"\x01\x01"),
    ],
)
def test_templates(template: bytes, text: bytes) -> None:
    assert expand_template(template) == text


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (b"call __x86_return_thunk", {"__x86_return_thunk"}),
        (b"jmp *table(,%rax,8)", {"table"}),
        (b"movq $symbol, %rdi", {"symbol"}),
        (b"call foo@PLT", {"foo"}),
        (b"771: call \x01; .long 771b - ., alt_end - 1f", {"alt_end", "."}),
        (b"label: other: b target", {"target"}),
        (b"adrp x0, page\nadd x0, x0, :lo12:page", {"x0", "page", "lo12"}),
        (b".quad a.b + 0x10, _c$d", {"a.b", "_c$d"}),
        (b"bl prefix\x01suffix", set()),
        (b"bl \\argument", set()),
        (b"nop", set()),
        (b"b.ne out", {"out"}),
    ],
)
def test_referenced_names(text: bytes, wanted: set[str]) -> None:
    assert referenced_names(text) - {"."} == wanted - {"."}


def test_labels() -> None:
    text = b'a: b: nop\n.Llocal: c : .globl d; "quoted name": 1: e::\n x: y'
    assert labels(text) == {"a", "b", "c", "quoted name", "x"}


@given(st.text(st.sampled_from(' \t";:$\\.#%@(){}|incbudle\n\x01aZ09_'), max_size=60))
def test_every_include_is_seen_wherever_it_stands(noise: str) -> None:
    """What comes before cannot hide a directive that stands on a line of its own."""
    text = noise.encode() + b'\n\t.incbin "x/y"\n'
    assert ("incbin", "x/y") in [(include.directive, include.path) for include in included_files(text)]


@given(st.binary(max_size=80))
def test_any_bytes_are_text_enough(text: bytes) -> None:
    for include in included_files(expand_template(text)):
        assert include.text is not None
    assert all(name for name in referenced_names(text) | labels(text) - {""})
