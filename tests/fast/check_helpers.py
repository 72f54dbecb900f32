"""Small build dirs of real objects, and one rule's findings in them."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from objects_helpers import compiled, run, tool

from klto.check.build_dir import BuildDir
from klto.check.finding import Finding
from klto.check.link_inputs import LinkInputs
from klto.check.run import check_build, check_link, check_paths
from klto.cli.check import named

X86 = "--target=x86_64-linux-gnu"
ARM64 = "--target=aarch64-linux-gnu"
THIN = ("-O2", "-ffreestanding", "-flto=thin")
FULL = ("-O2", "-ffreestanding", "-flto")


def of_paths(rule: str, *paths: Path) -> list[Finding]:
    """A rule's findings in files."""
    return check_paths([str(path) for path in paths], [named(rule)])


def of_link(
    rule: str, *paths: Path, words: Sequence[str] = (), lto: str = "thin", root: str = ""
) -> list[Finding]:
    """A rule's findings in the inputs of a link."""
    return check_link(LinkInputs("vmlinux.o", [str(path) for path in paths], words, lto, root), [named(rule)])


def of_build(rule: str, path: Path) -> list[Finding]:
    """A rule's findings in a build dir."""
    return check_build(BuildDir(path), [named(rule)])


def put(source: Path, place: Path, command: str | None = None) -> Path:
    """Copy an object to its place, with the command that Kbuild would have saved."""
    place.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, place)
    if command is not None:
        (place.parent / f".{place.name}.cmd").write_text(f"savedcmd_{place.name} := {command}\n\n")
    return place


def linked(output: Path, *inputs: Path, flags: Sequence[str] = ("-r",), version: int = 19) -> Path:
    """What ld.lld makes."""
    output.parent.mkdir(parents=True, exist_ok=True)
    run(tool("ld.lld", version), *flags, "-o", output, *inputs)
    return output


def c(text: str, *flags: str, version: int = 19) -> Path:
    """An object of C text."""
    return compiled(text, version, *(flags or (X86, "-O2", "-ffreestanding")))


def asm(text: str, target: str = X86, version: int = 19) -> Path:
    """An object of assembly text."""
    return compiled(text, version, target, suffix=".s")


def build_dir(path: Path, config: str = "CONFIG_LTO_CLANG_THIN=y\n", inputs: Sequence[Path] = ()) -> Path:
    """A build dir with a configuration and the objects of its vmlinux.o link in a thin archive."""
    path.mkdir(parents=True, exist_ok=True)
    (path / ".config").write_text(config)
    if inputs:
        names = [str(item.relative_to(path)) for item in inputs]
        (path / "vmlinux.a").unlink(missing_ok=True)
        run(tool("llvm-ar", 19), "cDPrST", "vmlinux.a", *names, cwd=path)
        (path / ".vmlinux.o.cmd").write_text(
            "savedcmd_vmlinux.o := ld.lld -m elf_x86_64 -r -o vmlinux.o --whole-archive vmlinux.a\n\n"
        )
    return path
