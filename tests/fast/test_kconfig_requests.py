"""What is asked of a configuration, and configuration files as text."""

from __future__ import annotations

from pathlib import Path

import pytest

from klto.errors import UsageError
from klto.kernel.kconfig_requests import (
    Request,
    check_config,
    is_canonical,
    lto_of,
    lto_requests,
    parse_requests,
    read_config,
    without,
)


def lines(*items: str) -> list[str]:
    return [request.line() for request in parse_requests(items)]


def test_values_of_arguments() -> None:
    assert lines("CONFIG_A=y", "CONFIG_B=m", "CONFIG_C=n", "CONFIG_D=17", "CONFIG_E=-3", "CONFIG_F=0x1F") == [
        "CONFIG_A=y",
        "CONFIG_B=m",
        "# CONFIG_C is not set",
        "CONFIG_D=17",
        "CONFIG_E=-3",
        "CONFIG_F=0x1F",
    ]


def test_text_is_quoted_where_the_shell_ate_the_quotes() -> None:
    assert lines(
        "CONFIG_A=-foo", 'CONFIG_B="kept \\" here"', "CONFIG_C=", 'CONFIG_D=a"b\\c', "CONFIG_E=a=b"
    ) == [
        'CONFIG_A="-foo"',
        'CONFIG_B="kept \\" here"',
        'CONFIG_C=""',
        'CONFIG_D="a\\"b\\\\c"',
        'CONFIG_E="a=b"',
    ]


def test_fragment(tmp_path: Path) -> None:
    fragment = tmp_path / "fragment"
    fragment.write_bytes(
        b"# a comment\n\n   \nCONFIG_A=y\r\n# CONFIG_B is not set\n#CONFIG_C=y\n"
        b'CONFIG_D="t # \\" e"  \nCONFIG_E=0x10\nCONFIG_F=\xc3\xa9\n'.replace(b"\xc3\xa9", b'"\xc3\xa9"')
    )
    requests = parse_requests([str(fragment)])
    assert [(r.name, r.value) for r in requests] == [
        ("A", "y"),
        ("B", "n"),
        ("D", '"t # \\" e"'),
        ("E", "0x10"),
        ("F", '"é"'),
    ]
    assert [r.origin for r in requests][:2] == [f"{fragment}:4", f"{fragment}:5"]


@pytest.mark.parametrize(
    "line",
    [
        *("CONFIG_A", "CONFIG_A y", "A=y", " CONFIG_A=y", "CONFIG_A=yes", "CONFIG_A=", "CONFIG_A=text"),
        *('CONFIG_A="open', 'CONFIG_A="x" y', "CONFIG_A-B=y", "<<<<<<< HEAD", "\x00\x01\x02"),
    ],
)
def test_garbage_in_a_fragment_is_named_by_line(tmp_path: Path, line: str) -> None:
    fragment = tmp_path / "fragment"
    fragment.write_text(f"CONFIG_OK=y\n{line}\n")
    with pytest.raises(UsageError, match="not an option") as caught:
        parse_requests([str(fragment)])
    assert caught.value.message.startswith(f"{fragment}:2: ")
    assert "\n" not in caught.value.message
    assert caught.value.message.isprintable()


@pytest.mark.parametrize(
    ("item", "said"),
    [
        ("CONFIG_A", "no option"),
        ("CONFIG_=y", "no option"),
        ("CONFIG_A B=y", "no option"),
        ("CONFIG_A=two\nlines", "newline"),
        ("DEBUG_FS=y", "neither a file nor"),
        ("nothing.config", "no such configuration file"),
        ("/", "cannot read"),
    ],
)
def test_arguments_that_are_none(item: str, said: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        parse_requests([item])
    assert "\n" not in caught.value.message


def test_the_last_wins(tmp_path: Path) -> None:
    fragment = tmp_path / "fragment"
    fragment.write_text("CONFIG_A=y\nCONFIG_B=1\nCONFIG_B=2\n")
    requests = parse_requests(["CONFIG_B=0", str(fragment), "CONFIG_A=m"])
    assert [(r.name, r.value, r.origin) for r in requests] == [("B", "2", f"{fragment}:3"), ("A", "m", "-K")]


def test_later_requests_come_later() -> None:
    """Kconfig gives a choice to the last of its members in a file."""
    assert lines("CONFIG_A=y", "CONFIG_B=y", "CONFIG_A=m") == ["CONFIG_B=y", "CONFIG_A=m"]


def test_lto_modes_exclude_each_other() -> None:
    requests = parse_requests(["CONFIG_LTO_CLANG_FULL=y", "CONFIG_A=y"])
    assert requests.lto == "full"
    merged = requests.merged(lto_requests("thin"))
    assert [r.line() for r in merged] == ["CONFIG_A=y", "CONFIG_LTO_CLANG_THIN=y"]
    assert (merged.lto, merged.items[-1].origin) == ("thin", "--lto thin")
    assert requests.merged(lto_requests("keep")) == requests
    assert [r.line() for r in lto_requests("none")] == ["CONFIG_LTO_NONE=y"]
    off = parse_requests(["CONFIG_LTO_CLANG_FULL=n"]).merged(lto_requests("thin"))
    assert (off.lto, len(off)) == ("thin", 2)
    assert parse_requests(["CONFIG_LTO_CLANG_FULL=n"]).lto is None


@pytest.mark.parametrize(
    ("asked", "got", "survived"),
    [
        *[("y", "y", True), ("y", "m", False), ("y", None, False), ("m", "y", False), ("0x10", None, False)],
        *[("n", None, True), ("n", "n", True), ("n", "y", False), ("n", "0", False)],
        *[("17", "17", True), ("017", "17", True), ("17", "18", False), ("0x10", "16", False)],
        *[("0x10", "0x10", True), ("0X1f", "0x1F", True), ("10", "0x10", True), ("1f", "0x1f", True)],
        *[("16", "0x10", False), ('"a"', '"a"', True), ('"a"', '"b"', False), ('"1"', "1", False)],
    ],
)
def test_what_survived(asked: str, got: str | None, survived: bool) -> None:
    assert Request("X", asked, "-K").survived(got) is survived


def test_lost_requests() -> None:
    requests = parse_requests(["CONFIG_A=y", "CONFIG_B=n", "CONFIG_C=m"])
    assert [r.option for r in requests.lost_in({"A": "y", "B": "m"})] == ["CONFIG_B", "CONFIG_C"]


CONFIG = (
    "#\n# Automatically generated file; DO NOT EDIT.\n#\n"
    'CONFIG_CC_VERSION_TEXT="clang \\"19\\""\nCONFIG_64BIT=y\n# CONFIG_LTO_NONE is not set\n'
    "CONFIG_LTO_CLANG_THIN=y\nCONFIG_M=m\nCONFIG_BASE=0x1000\nCONFIG_NEG=-1\n# end of it\n\n"
)


def test_configuration_as_kconfig_writes_it(tmp_path: Path) -> None:
    config = tmp_path / ".config"
    config.write_text(CONFIG)
    assert read_config(config) == {
        "CC_VERSION_TEXT": '"clang \\"19\\""',
        "64BIT": "y",
        "LTO_CLANG_THIN": "y",
        "M": "m",
        "BASE": "0x1000",
        "NEG": "-1",
    }
    assert lto_of(config) == "thin"
    assert is_canonical(config)
    assert check_config(config) == CONFIG.encode()


def test_lto_of_other_configurations(tmp_path: Path) -> None:
    config = tmp_path / ".config"
    for text, mode in {
        "": "none",
        "CONFIG_LTO_CLANG_FULL=y\n": "full",
        "CONFIG_LTO_NONE=y\n": "none",
    }.items():
        config.write_text(text)
        assert lto_of(config) == mode
    with pytest.raises(UsageError, match="no such configuration file"):
        lto_of(tmp_path / "nothing")


@pytest.mark.parametrize(
    "line", ["CONFIG_A", "A=y", " CONFIG_A=y", "<<<<<<< HEAD", "CONFIG_A y", "\t", "\x7fELF"]
)
def test_garbage_in_a_configuration_is_named_by_line(tmp_path: Path, line: str) -> None:
    config = tmp_path / ".config"
    config.write_text(f"{CONFIG}{line}\nCONFIG_B=y\n")
    with pytest.raises(UsageError, match="not a configuration line") as caught:
        check_config(config)
    assert caught.value.message.startswith(f"{config}:13: ")
    assert caught.value.message.isprintable()
    assert not is_canonical(config)


@pytest.mark.parametrize(
    "line", ["#!anything", "#CONFIG_A=y", "CONFIG_A=yes", "CONFIG_a-b=1", "CONFIG_A=y\r", "\r"]
)
def test_what_kconfig_takes_or_skips_is_no_garbage(tmp_path: Path, line: str) -> None:
    config = tmp_path / ".config"
    config.write_bytes(CONFIG.encode() + line.encode() + b"\n")
    check_config(config)


def test_values_that_kconfig_should_see_are_not_canonical(tmp_path: Path) -> None:
    config = tmp_path / ".config"
    for line in ("CONFIG_A=yes", "CONFIG_A=", "CONFIG_A=y\r", 'CONFIG_A="x', "CONFIG_A=y "):
        config.write_bytes(CONFIG.encode() + line.encode() + b"\n")
        assert not is_canonical(config), line


def test_lines_without_some_options() -> None:
    content = b"CONFIG_A=y\n# CONFIG_B is not set\nCONFIG_AB=y\n# CONFIG_A says\n"
    assert without(content, frozenset({"A", "B"})) == [(3, b"CONFIG_AB=y"), (4, b"# CONFIG_A says"), (5, b"")]
