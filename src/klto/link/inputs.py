"""The inputs of a link, told apart: LLVM bitcode or native code."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from klto.objects.archive import read_archive
from klto.objects.kind import Kind, kind_of


@dataclass(frozen=True)
class Inputs:
    """Counts of a link's input objects (archive members count one each) and the bytes of the bitcode ones."""

    bitcode: int
    native: int
    bitcode_bytes: int
