"""What a build needs on the host, asked for by running it."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from klto.errors import UsageError
from klto.kernel import hostdeps
from klto.kernel.hostdeps import check_host, host_dependencies, install_hint, missing
from klto.kernel.toolchain import Toolchain, find_toolchain
from tests.conftest import missing as missing_tool

Host = Callable[..., None]


@pytest.fixture
def toolchain(llvm_bin: Path) -> Toolchain:
    return find_toolchain(request=str(llvm_bin))


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Host:
    """A PATH with the real tools that are named, and fake ones: scripts of the test."""
    folder = tmp_path / "bin"

    def make(*real: str, **fake: str) -> None:
        folder.mkdir()
        for name in real:
            where = shutil.which(name)
            if where is None:
                missing_tool(name)
            else:
                (folder / name).symlink_to(where)
        for name, script in fake.items():
            (folder / name).write_text(script)
            (folder / name).chmod(0o755)
        monkeypatch.setenv("PATH", str(folder))

    return make


ALWAYS = ("make", "flex", "bison", "bc", "perl")


def test_everything_is_there(host: Host, toolchain: Toolchain) -> None:
    host(*ALWAYS, "ld")
    check_host(toolchain, "x86_64", {})
    found = {d.need.name: d for d in host_dependencies(toolchain, "x86_64", {})}
    assert "make 4." in found["make"].found
    assert missing(found.values()) == []
    assert found["lzop"].problem == "not found in PATH"
    assert not found["lzop"].needed


def test_missing_ones_are_one_command(host: Host, toolchain: Toolchain) -> None:
    host("make", "perl", "ld")
    with pytest.raises(UsageError) as caught:
        check_host(toolchain, "x86_64", {})
    assert caught.value.message.startswith("a kernel build needs flex, for ")
    assert "\n" not in caught.value.message
    assert caught.value.hint == "install it: apt-get install flex bison bc"


@pytest.mark.parametrize(
    ("script", "said"),
    [
        (
            "#!/bin/sh\necho 'libfl.so: cannot open' >&2\nexit 127\n",
            r"exit status 127 \(libfl.so: cannot open\)",
        ),
        ("#!/bin/sh\nkill -SEGV $$\n", "killed by SIGSEGV"),
        ("", "cannot start|exit status"),
        ("#!/no/such/interpreter\n", "cannot start"),
        ("#!/bin/sh\nwhile :; do /bin/sleep 1; done\n", r"no answer within 0\.3 s"),
    ],
)
def test_broken_program(
    host: Host, toolchain: Toolchain, script: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hostdeps, "_ANSWER_SECONDS", 0.3)
    host("make", "bison", "bc", "perl", "ld", flex=script)
    flex = next(d for d in host_dependencies(None) if d.need.name == "flex")
    assert flex.problem is not None
    assert re.search(said, flex.problem), flex.problem
    assert missing([flex]) == [flex]
    assert install_hint([flex]) == "install it: apt-get install flex"


def test_make_that_is_not_gnu(host: Host) -> None:
    host(make="#!/bin/sh\necho 'bmake 2023'\n")
    make = next(d for d in host_dependencies(None) if d.need.name == "make")
    assert make.problem is not None
    assert "not GNU make" in make.problem


def test_options_need_more(host: Host, toolchain: Toolchain) -> None:
    host(*ALWAYS, "ld")
    with pytest.raises(UsageError) as caught:
        check_host(toolchain, "x86_64", {"KERNEL_ZSTD": "y", "DEBUG_INFO_BTF": "y"})
    assert caught.value.hint == "install it: apt-get install zstd pahole"


def test_headers_are_compiled(
    host: Host, toolchain: Toolchain, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    host(*ALWAYS, "ld")
    need = hostdeps.Need("nothing", "libnothing-dev", "a test", ("OBJTOOL",), "x86_64")
    monkeypatch.setattr(hostdeps, "_HEADERS", ((need, "klto/no-such-header.h"),))
    for config in (None, {"OBJTOOL": "y"}):
        with pytest.raises(UsageError, match=r"no-such-header\.h.* file not found") as caught:
            check_host(toolchain, "x86_64", config)
        assert caught.value.hint == "install it: apt-get install libnothing-dev"
    check_host(toolchain, "x86_64", {})
    check_host(toolchain, "arm64", None)
    check_host(toolchain, "arm64", {"OBJTOOL": "y"})


def test_host_programs_are_linked(host: Host, toolchain: Toolchain, tmp_path: Path) -> None:
    """HOSTCC is clang, which uses the binutils' ld."""
    host(*ALWAYS, ld="#!/bin/sh\necho 'ld: broken' >&2\nexit 1\n")
    broken = type(toolchain)(**{**vars(toolchain), "clang": tmp_path / "clang"})
    (tmp_path / "clang").write_text(f'#!/bin/sh\nexec {toolchain.clang} --ld-path={tmp_path}/bin/ld "$@"\n')
    (tmp_path / "clang").chmod(0o755)
    with pytest.raises(UsageError, match="a kernel build needs linker, for host programs") as caught:
        check_host(broken, "x86_64", {})
    assert caught.value.hint == "install it: apt-get install binutils"
