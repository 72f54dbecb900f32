"""``klto doctor`` as a user runs it."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest

from klto.kernel.hostdeps import host_dependencies, missing
from tests.conftest import Klto, Ran
from tests.conftest import missing as missing_tool
from tests.fake_kernel import make_fake_kernel

SCHEMA = {
    "type": "object",
    "required": ["schema", "ready", "toolchains", "chosen", "host", "qemu", "machine", "tree", "problems"],
    "properties": {
        "schema": {"const": "klto/doctor/1"},
        "ready": {"type": "boolean"},
        "toolchains": {
            "type": "array",
            "items": {
                "required": ["name", "spelling", "clang", "lld", "builds", "missing", "problem"],
                "properties": {"name": {"type": "string"}, "spelling": {"pattern": "^LLVM="}},
            },
        },
        "host": {
            "type": "array",
            "minItems": 8,
            "items": {"required": ["name", "package", "purpose", "needed", "found", "problem"]},
        },
        "machine": {
            "required": ["cpus", "memory_total", "memory_available"],
            "additionalProperties": {"type": "integer", "minimum": 1},
        },
        "problems": {"type": "array", "items": {"required": ["message", "hint"]}},
    },
}


@pytest.fixture(autouse=True)
def _host_is_complete() -> None:
    lacking = missing(host_dependencies(None))
    if lacking:
        missing_tool(", ".join(d.need.name for d in lacking))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that these tests share: asking three LLVMs for two architectures takes a second."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def doctor(klto: Klto, cache: Path, tmp_path: Path) -> Klto:
    """``klto doctor`` in an empty directory."""

    def run(*arguments: str | Path, cwd: Path = tmp_path, env: dict[str, str] | None = None) -> Ran:
        return klto("doctor", *arguments, cwd=cwd, env={"XDG_CACHE_HOME": str(cache)} | (env or {}))

    return run


def test_machine_without_a_tree(doctor: Klto, tmp_path: Path) -> None:
    done = doctor()
    assert (done.status, done.err) == (0, "")
    assert "clang 19." in done.out
    assert "(make LLVM=1): x86_64, arm64" in done.out
    assert "CPUs usable" in done.out
    assert done.out.endswith("ready to build\n")
    assert "kernel" not in done.out.split("machine")[1]


def test_json(doctor: Klto, tmp_path: Path) -> None:
    done = doctor("--json")
    found = json.loads(done.out)
    jsonschema.validate(found, SCHEMA)
    assert (done.status, done.err, found["ready"], found["tree"]) == (0, "", True, None)
    assert found["toolchains"][0]["builds"] == ["x86_64", "arm64"]


def test_quiet_says_nothing_when_all_is_well(doctor: Klto, tmp_path: Path) -> None:
    done = doctor("-q")
    assert (done.status, done.out, done.err) == (0, "", "")


def test_missing_program_is_a_problem(doctor: Klto, tmp_path: Path, llvm_bin: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/flex").write_text("#!/bin/sh\necho broken >&2\nexit 1\n")
    (tmp_path / "bin/flex").chmod(0o755)
    env = {"PATH": f"{tmp_path}/bin:{llvm_bin}:/usr/bin:/bin"}
    done = doctor("-q", env=env)
    assert done.status == 2
    assert done.out.splitlines() == [
        f"flex, for the lexer of scripts/kconfig: '{tmp_path}/bin/flex --version' gave exit status 1 (broken)",
        "  apt-get install flex",
    ]
    found = json.loads(doctor("--json", env=env).out)
    jsonschema.validate(found, SCHEMA)
    assert [p["hint"] for p in found["problems"]] == ["apt-get install flex"]


def test_no_toolchain(doctor: Klto, tmp_path: Path) -> None:
    done = doctor("-t", "/nowhere")
    assert done.status == 2
    assert "no toolchain '/nowhere'" in done.out


def test_not_a_tree(doctor: Klto, tmp_path: Path) -> None:
    for arguments in (["-C", tmp_path / "nothing"], ["-C", "/usr"], ["-b", tmp_path]):
        done = doctor("-q", *arguments)
        assert done.status == 2
        assert "-C DIR" in done.out


def test_unknown_architecture(doctor: Klto, tmp_path: Path) -> None:
    done = doctor("-q", "-a", "m68k")
    assert (done.status, done.out.splitlines()[0]) == (2, "klto cannot build for the architecture 'm68k'")


def test_tree_whose_kconfig_does_not_work(doctor: Klto, tmp_path: Path) -> None:
    """The fake kernel has no kconfig."""
    tree = make_fake_kernel(tmp_path / "linux")
    done = doctor("-a", "x86_64", cwd=tree)
    assert done.status == 2
    assert "Linux 6.12.0-fake for x86_64" in done.out
    assert "the kernel's own configuration failed (make listnewconfig: exit status 2)" in done.out
    found = json.loads(doctor("--json", "-a", "x86_64", cwd=tree).out)
    assert (found["ready"], found["tree"]["lto_possible"]) == (False, None)


def test_dirty_tree(doctor: Klto, tmp_path: Path) -> None:
    tree = make_fake_kernel(tmp_path / "linux")
    (tree / ".config").touch()
    done = doctor("-q", "-C", tree, "-b", tmp_path / "o", "-a", "x86_64")
    assert done.status == 2
    assert "Kbuild refuses a build dir outside" in done.out
    assert "mrproper" in done.out
