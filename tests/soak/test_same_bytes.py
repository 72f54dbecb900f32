"""vmlinux.o of the other test kernels: klto's link gives ld.lld's bytes, cold, from cached modules, and as a whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.real.conftest import Kernel
from tests.real.relink import Relink, lto_links

pytestmark = pytest.mark.real


@pytest.mark.parametrize("name", ["arm64_6_12", "x86_64_6_1", "x86_64_6_12_debug", "x86_64_6_12_full"])
def test_vmlinux_o(
    name: str, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel: Kernel = request.getfixturevalue(name)
    monkeypatch.chdir(kernel.build_dir)
    relink = Relink(kernel.build_dir, tmp_path, Path("/usr/lib/llvm-19/bin/ld.lld"))
    ((_, arguments),) = [link for link in lto_links(kernel.build_dir) if link[0] == "vmlinux.o"]
    fresh = relink.by_lld(arguments)
    assert relink.by_klto(arguments)[0] == fresh
    linked, ended = relink.by_klto(arguments)
    assert linked == fresh
    assert ended.whole
    if not name.endswith("full"):
        relink.forget_whole_links()
        linked, ended = relink.by_klto(arguments)
        assert linked == fresh
        assert (ended.generated, ended.whole) == (0, False)
