"""The linker's options in all their spellings, with a cache and without: what tests/real leaves out."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.real.test_link_options import CODE, check_options, spellings


@pytest.mark.parametrize("llvm", [14, 19, 22])
def test_other_options(tmp_path: Path, llvm: int) -> None:
    linker = Path(f"/usr/lib/llvm-{llvm}/bin/ld.lld")
    options = [words for words in spellings(linker) if not CODE.search(words[0])]
    assert len(options) > 200
    check_options(tmp_path, llvm, options)


@pytest.mark.parametrize("llvm", [14, 22])
def test_options_about_code(tmp_path: Path, llvm: int) -> None:
    linker = Path(f"/usr/lib/llvm-{llvm}/bin/ld.lld")
    check_options(tmp_path, llvm, [words for words in spellings(linker) if CODE.search(words[0])])
