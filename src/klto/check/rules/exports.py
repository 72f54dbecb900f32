"""Exported symbols that modules need."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from klto.check.build_dir import BuildDir
from klto.check.finding import Finding, Level
from klto.check.rule import Rule
from klto.kernel.ksyms import read_auto_conf, whitelist_path
from klto.kernel.ksyms_audit import Audit, audit


class _OfAudit(Rule):
    """Both rules look at one audit of the build dir."""

    def _audit(self, build: BuildDir) -> Audit | None:
        path = build.path
        if not build.with_modules or not (path / "Module.symvers").is_file():
            return None
        if not (path / "include/config/auto.conf").is_file():
            return None
        if build.audit is None:
            conf = read_auto_conf(path)
            build.audit = audit(path, conf, whitelist_path(conf, build.tree or path), ())
        return build.audit


class MissingExport(_OfAudit):
    """A symbol that a module needs and nothing exports."""

    slug = "missing-export"
    title = "a symbol that a kernel module needs and that nothing in the build exports"
    what = "modpost says 'undefined!', or the module is refused when it is loaded: Unknown symbol."
    why = (
        "references of inline assembly are invisible in bitcode and appear with the generated code; lld may keep "
        "references to what it has discarded"
    )
    remedies: ClassVar = (
        "export the symbol, or select the option whose code does",
        "build all of the modules again with this vmlinux",
    )
    references: ClassVar = (
        "https://github.com/ClangBuiltLinux/linux/issues/1369",
        "https://github.com/ClangBuiltLinux/linux/issues/2006",
        "https://github.com/ClangBuiltLinux/linux/issues/1882",
    )

    def of_build(self, build: BuildDir) -> Iterator[Finding]:
        result = self._audit(build)
        for missing in result.missing if result is not None else ():
            if not missing.reason.startswith("trimmed"):
                yield self.finding(
                    missing.modules[0],
                    f"{missing.symbol} is needed by {', '.join(missing.modules[:3])}: {missing.reason}",
                    symbol=missing.symbol,
                    seen="not exported",
                    allowed="exported",
                )


class TrimmedSymbol(_OfAudit):
    """An export that trimming has removed, though a module needs it."""

    slug = "trimmed-symbol"
    title = "an export that CONFIG_TRIM_UNUSED_KSYMS has removed though a module needs it"
    what = MissingExport.what
    why = (
        "the list of needed symbols was made from bitcode, where what only inline assembly refers to is not among "
        "the symbols"
    )
    remedies: ClassVar = (
        "put the symbol into CONFIG_UNUSED_KSYMS_WHITELIST's file: klto ksyms needed DIR prints it",
        "build again: 6.1 reads modules' generated code for the list",
    )
    references: ClassVar = (
        "https://github.com/ClangBuiltLinux/linux/issues/1369",
        "scripts/gen_autoksyms.sh (6.1), scripts/Makefile.modpost (6.12)",
    )

    def of_build(self, build: BuildDir) -> Iterator[Finding]:
        result = self._audit(build)
        for missing in result.missing if result is not None else ():
            if missing.reason.startswith("trimmed"):
                yield self.finding(
                    missing.modules[0],
                    f"{missing.symbol} is needed by {', '.join(missing.modules[:3])}: {missing.reason}",
                    Level.ERROR,
                    symbol=missing.symbol,
                    seen="trimmed",
                    allowed="exported",
                )
