"""The checks of a build: hooks for its links, and what they and the finished build dir gave."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from klto.check.build_dir import BuildDir
from klto.check.finding import Finding, Level, fails, in_order
from klto.check.rule import all_rules
from klto.check.run import check_build
from klto.errors import FindingsError, UsageError
from klto.files import write_whole
from klto.link.hooks import ENV_HOOKS
from klto.objects.elf import SHF_EXECINSTR, Elf
from klto.objects.kind import kind_of
from klto.objects.source import read_whole
from klto.report.findings import as_text
from klto.report.sarif import as_sarif

_ENTRY = "klto.build.link_hook"


class LinkChecks:
    """The hooks of one run of make.

    :param folder: ``.klto`` of the build dir.
    :param rejoined: outputs to merge after their links, relative to the build dir.
    """

    def __init__(
        self,
        build_dir: Path,
        folder: Path,
        lto: str,
        fail_on: str,
        linker: Path,
        rejoined: Sequence[str] = (),
    ) -> None:
        self.build_dir = build_dir
        self.findings_file = folder / "link-findings.json"
        self._lto, self._fail_on, self._linker = lto, fail_on, linker
        self._rejoined = tuple(rejoined)

    def prepare(self) -> None:
        """Forget the last run, and let make link again what is to be merged and is not."""
        self.findings_file.unlink(missing_ok=True)
        for name in self._rejoined:
            path = self.build_dir / name
            if path.is_file() and executable_sections(path) > 1:
                path.unlink()

    def environment(self) -> dict[str, str]:
        """What the linker shim has to see."""
        python = [sys.executable, "-m", _ENTRY]
        hooks: dict[str, dict[str, list[str]]] = {}
        if self._lto != "none":
            check = [*python, "check", str(self.build_dir), self._lto, self._fail_on, str(self.findings_file)]
            hooks["vmlinux.o"] = {"before": check}
        for name in self._rejoined:
            hooks.setdefault(name, {})["after"] = [*python, "rejoin", str(self._linker)]
        return {ENV_HOOKS: json.dumps(hooks)}

    def before_link(self) -> list[Finding] | None:
        """What was found before vmlinux.o was linked in this run; None when it was not linked."""
        try:
            found = json.loads(self.findings_file.read_bytes())
        except (OSError, ValueError):
            return None
        return [finding_of(item) for item in found["findings"]]

    def check_rejoined(self) -> None:
        """Every ``--rejoin`` has had an effect.

        :raises UsageError: for a name that no link has made.
        """
        for name in self._rejoined:
            path = self.build_dir / name
            if not path.is_file() or executable_sections(path) > 1:
                what = "is still split" if path.is_file() else "was not made"
                raise UsageError(
                    f"--rejoin {name}: it {what} in {self.build_dir}",
                    "name the output of a relocatable link (ld -r), relative to the build dir",
                )


def executable_sections(path: Path) -> int:
    """How many executable sections an ELF file has; 0 of other files."""
    if not path.is_file() or kind_of(path) != "elf":
        return 0
    elf = Elf(read_whole(path), str(path))
    return int((((elf.sections["sh_flags"] & SHF_EXECINSTR) > 0) & (elf.sections["sh_size"] > 0)).sum())


def finding_of(item: dict[str, object]) -> Finding:
    """A finding from its JSON."""
    fields = {name: item.get(name) for name in Finding.__dataclass_fields__}
    fields["level"] = Level(str(item["level"]))
    for name in ("remedies", "references"):
        value = item.get(name)
        fields[name] = tuple(value) if isinstance(value, list) else ()
    return Finding(**fields)  # type: ignore[arg-type]


def check_finished(
    build_dir: Path, before_link: Sequence[Finding] | None, *, with_modules: bool
) -> list[Finding]:
    """All findings of a finished build: those from before its link, and those of what it left."""
    build = BuildDir(build_dir, with_modules)
    found = check_build(build, inputs=before_link is None)
    return in_order(dict.fromkeys([*(before_link or ()), *found]))


def write_sarif(path: Path, findings: Sequence[Finding]) -> None:
    """The findings for tools that read SARIF."""
    write_whole(path, as_sarif(findings, all_rules()))


def judge(findings: Sequence[Finding], fail_on: str, where: str, log: Path) -> None:
    """Raise what the findings mean.

    :raises FindingsError: when one is at or above ``fail_on``.
    """
    if fails(findings, fail_on):
        first = next(finding for finding in findings)
        raise FindingsError(
            f"{where}: {first.artifact}: {first.message} [{first.rule}]",
            f"klto rules {first.rule}; log: {log}",
            tuple(as_text(findings, notes=False).splitlines()),
        )
