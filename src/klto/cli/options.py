"""Options that every command shares (the contract's common options)."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

ARCHITECTURES = ("x86_64", "arm64")

_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


def size(text: str) -> int:
    """A number of bytes from ``500M``, ``2G``, ``1.5GiB``; an argparse type."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([kmgt]?)(?:i?b)?", text.lower())
    if found is None:
        raise argparse.ArgumentTypeError(f"not a size: {text!r} (such as 500M or 2G)")
    return int(float(found[1]) * _UNITS[found[2]])


def seconds(text: str) -> float:
    """A number of seconds, 0 or more; an argparse type."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"not a number of seconds: {text!r}")
    return value


def add_output_options(parser: argparse.ArgumentParser) -> None:
    """``--json``, ``-q``, ``-v``."""
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout, nothing else there")
    parser.add_argument("-q", "--quiet", action="store_true", help="print errors only")
    parser.add_argument("-v", "--verbose", action="store_true", help="say more")


def add_tree_options(parser: argparse.ArgumentParser) -> None:
    """``-C``, ``-b``, ``-a``, ``-t``."""
    parser.add_argument(
        "-C", dest="tree", metavar="DIR", type=Path, default=Path(), help="kernel tree (default .)"
    )
    parser.add_argument("-b", dest="build_dir", metavar="DIR", type=Path, help="build dir")
    parser.add_argument("-a", dest="arch", metavar="ARCH", help=f"architecture: {', '.join(ARCHITECTURES)}")
    parser.add_argument(
        "-t", dest="toolchain", metavar="TOOLCHAIN", help="llvm, llvm-19 or the bin directory of an LLVM"
    )


def add_jobs_option(parser: argparse.ArgumentParser) -> None:
    """``-j``."""
    parser.add_argument("-j", dest="jobs", metavar="N", type=int, help="jobs at once (default: usable CPUs)")
