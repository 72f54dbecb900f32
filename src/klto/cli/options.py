"""Options that every command shares (the contract's common options)."""

from __future__ import annotations

import argparse
from pathlib import Path

ARCHITECTURES = ("x86_64", "arm64")


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
