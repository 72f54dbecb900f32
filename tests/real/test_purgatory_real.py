"""A purgatory that went through LTO, under today's loader and under the one before: found, shown to fail, mended in
both ways, and shown to work."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from klto.build.checks import executable_sections
from klto.files import user_cache_dir
from tests.conftest import Ran
from tests.real.conftest import Kernel, run_klto

pytestmark = pytest.mark.real

LOADER, MAKEFILE = "kernel/kexec_file.c", "arch/x86/purgatory/Makefile"
PURGATORY = "arch/x86/purgatory/purgatory.ro"


def _put(path: Path, text: str) -> None:
    """Write a file that may be a hard link to another tree's."""
    path.unlink()
    path.write_text(text)


def _with_old_loader(text: str) -> str:
    """kexec_purgatory_setup_sechdrs as it was before it looked for the symbol purgatory_start."""
    by_symbol = re.compile(
        r"\n\t\tif \(!start_fixed && entry_sym && i == entry_shndx &&.*?\n\t\t\}\n", re.DOTALL
    )
    text, count = by_symbol.subn("\n", text)
    assert count == 1
    text, count = re.subn(
        r"\n\tentry_sym = kexec_purgatory_find_symbol.*?\n\t\}\n", "\n", text, flags=re.DOTALL
    )
    assert count == 1
    for declaration in ("const Elf_Sym *entry_sym", "u16 entry_shndx = 0", "unsigned long entry_off = 0"):
        assert text.count(f"\t{declaration};\n") == 1
        text = text.replace(f"\t{declaration};\n", "")
    text = text.replace("\tbool start_fixed = false;\n", "").replace("\t\t\tstart_fixed = true;\n", "")
    text = text.replace("if (!start_fixed && sechdrs[i]", "if (sechdrs[i]")
    mended, warns = (
        "kbuf->image->start == pi->ehdr->e_entry)",
        "!WARN_ON(kbuf->image->start != pi->ehdr->e_entry))",
    )
    assert text.count(mended) == 1
    text = text.replace(mended, warns)
    assert "start_fixed" not in text
    assert "entry_sym" not in text
    return text


def _moved(kernel: Kernel, tree: Path, build_dir: Path) -> Kernel:
    """A copy of a build dir, with the saved commands of one that was built there from ``tree``."""
    subprocess.run(["cp", "-a", kernel.build_dir, build_dir], check=True)
    places = ((str(kernel.tree), str(tree)), (str(kernel.build_dir), str(build_dir)))
    for folder, _, names in os.walk(build_dir):
        for name in names:
            if name.endswith((".cmd", ".d")) or (name == "Makefile" and folder == str(build_dir)):
                path = Path(folder, name)
                text = path.read_bytes()
                for old, new in places:
                    text = text.replace(os.fsencode(old), os.fsencode(new))
                path.write_bytes(text)
    (build_dir / "source").unlink()
    (build_dir / "source").symlink_to(tree)
    return Kernel(tree, build_dir, kernel.arch, ("-C", str(tree), "-b", str(build_dir), "-a", kernel.arch))


@pytest.fixture
def kernel(x86_64_6_12: Kernel) -> Iterator[Kernel]:
    """6.12 with LTO left on in the purgatory, configured and compiled but for what that changes."""
    place = user_cache_dir() / "test" / f"purgatory-{os.getpid()}"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    tree = place / "linux"
    subprocess.run(["cp", "-al", x86_64_6_12.tree, tree], check=True)
    makefile = (tree / MAKEFILE).read_text()
    left_on, count = re.subn(r"KBUILD_CFLAGS := \$\(filter-out \$\(CC_FLAGS_LTO\).*\n", "", makefile)
    assert count == 1
    _put(tree / MAKEFILE, left_on)
    yield _moved(x86_64_6_12, tree, place / "build")
    shutil.rmtree(place)


def _kexec(kernel: Kernel, log: Path) -> Ran:
    return run_klto("boot", "kexec", "-b", kernel.build_dir, "--json", "--log", log)


def _proof(done: Ran) -> tuple[str, str]:
    """Status and evidence of the proof."""
    [proof] = json.loads(done.out)["proofs"]
    return proof["status"], "\n".join(proof["evidence"])


def test_kexec_with_lto_left_on_in_the_purgatory(kernel: Kernel, tmp_path: Path) -> None:
    """Today's loader takes it, since kexec_purgatory_setup_sechdrs (kernel/kexec_file.c, 6.12.117) looks for the symbol
    purgatory_start: a warning of the check. With that function as it was before, looking for the section that e_entry
    lies in and warning when there are several: an error, and the kernel's own warning at kexec. Either remedy takes
    both away."""
    build = ("build", *kernel.options)
    done = run_klto(*build)
    assert done.status == 0, done.err
    assert "[split-text]" in done.err
    assert executable_sections(kernel.build_dir / PURGATORY) == 25
    assert _proof(_kexec(kernel, tmp_path / "by-symbol.log"))[0] == "passed"

    loader = kernel.tree / LOADER
    _put(loader, _with_old_loader(loader.read_text()))
    done = run_klto(*build)
    assert done.status == 3
    assert "25 executable sections where 1 may be" in done.err
    log = tmp_path / "by-address.log"
    broken = _kexec(kernel, log)
    assert broken.status == 4
    status, evidence = _proof(broken)
    assert status == "failed"
    assert re.search(r"WARNING: .*kernel/kexec_file\.c:\d+ kexec_load_purgatory", evidence)
    explained = json.loads(run_klto("explain", log, "--format", "json").out)["explanations"]
    assert explained[0]["id"].startswith("kexec-purgatory")

    for remedy in (("--no-lto", "arch/x86/purgatory"), ("--rejoin", PURGATORY)):
        done = run_klto(*build, *remedy)
        assert done.status == 0, done.err
        assert "[split-text]" not in done.err
        assert executable_sections(kernel.build_dir / PURGATORY) == 1
        mended = _kexec(kernel, tmp_path / f"{remedy[0]}.log")
        assert (mended.status, _proof(mended)[0]) == (0, "passed")
