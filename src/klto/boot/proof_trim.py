"""The proof ``trim``: with CONFIG_TRIM_UNUSED_KSYMS, what modules need is there, and what was trimmed is not.

A module that needs a trimmed symbol must be refused by its name. klto makes it of a few bytes, with what the
kernel looks at first (vermagic, the size of struct module) taken from a module of the build; a second one, the
same but for the symbol, must be accepted, so that the refusal is for the symbol's sake.
"""

from __future__ import annotations

import errno
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from klto import process
from klto.boot.guest import Compiler, target_of
from klto.boot.images import Arch
from klto.boot.initramfs import regular
from klto.boot.kernel_modules import ModuleFile, built_modules, read_symvers, section
from klto.boot.proof_modules import error_name
from klto.boot.proofs import Finding, Heard, NotApplicable, Step
from klto.boot.subject import Subject
from klto.errors import UsageError
from klto.kernel.ksyms import read_auto_conf
from klto.kernel.ksyms_audit import Audit, audit
from klto.objects.elf import Elf
from klto.objects.source import read_whole

#: Names of the two modules.
REFUSED, ACCEPTED = "klto_trim_refused", "klto_trim_accepted"

#: Section and symbol of struct module (scripts/mod/modpost.c, add_header).
_THIS_MODULE = ".gnu.linkonce.this_module"

#: Seconds that a compiler may take over a few lines.
_TOOL_SECONDS = 60.0

#: Missing symbols that are shown.
_SHOWN = 10


@dataclass(frozen=True)
class Form:
    """What a kernel wants of its modules. ``size`` of struct module in bytes, and ``name_at`` in it."""

    vermagic: str
    size: int
    name_at: int
    layout_crc: int | None


def prepare(subject: Subject) -> tuple[Step, ...]:
    """Audit the build's exports and make the two modules.

    :raises NotApplicable: when nothing was trimmed, or there is no module to take the form from.
    """
    build_dir = subject.needed_build_dir()
    built = built_modules(build_dir)
    found = audit(build_dir, read_auto_conf(build_dir), None, [])
    if subject.has("MODULE_SIG_FORCE"):
        raise NotApplicable("needs a kernel without CONFIG_MODULE_SIG_FORCE: klto cannot sign its module")
    if not built:
        raise NotApplicable("needs a kernel module: this build has none")
    if not found.trimmed:
        raise NotApplicable("needs a trimmed symbol: this build exports all that it has")
    # Data would do as well, but a function is what a module most often misses.
    trimmed, kept = found.trimmed[0], _kept(found)
    form = form_of(built)
    crcs = read_symvers(build_dir / "Module.symvers")
    modules = {
        REFUSED: probe(subject, form, REFUSED, trimmed, None),
        ACCEPTED: probe(subject, form, ACCEPTED, kept, crcs.get(kept)),
    }
    plan = tuple(f"probe {name} /klto/{name}.ko" for name in modules)
    files = tuple(regular(f"klto/{name}.ko", content) for name, content in modules.items())

    def check(heard: Heard) -> Finding:
        return compare(found, trimmed, kept, heard)

    return (Step("trim", check, plan=plan, files=files),)


def _kept(found: Audit) -> str:
    """An exported symbol that a module of the build needs; one that needs no license."""
    for name in ("_printk", "printk"):
        if name in found.exported:
            return name
    return next(name for name in found.exported if name in found.needed)


def form_of(built: Sequence[ModuleFile]) -> Form:
    """Take the form from the first module of a build.

    :raises UsageError: when its struct module does not hold its name.
    """
    model = built[0]
    content = section(Elf(read_whole(model.path), str(model.path)), _THIS_MODULE) or b""
    name_at = content.find(model.name.encode() + b"\0")
    if name_at < 0:
        raise UsageError(f"{model.path}: its name is not in {_THIS_MODULE}", "build the modules again")
    return Form(model.info["vermagic"], len(content), name_at, model.crcs.get("module_layout"))


def probe(subject: Subject, form: Form, name: str, symbol: str, crc: int | None) -> bytes:
    """A kernel module without code that needs ``symbol``."""
    text = source(subject.image.arch, form, name, symbol, crc)
    with tempfile.TemporaryDirectory(prefix="klto-trim-") as folder:
        return _compile(subject.compiler, subject.image.arch, text, Path(folder))


def source(arch: Arch, form: Form, name: str, symbol: str, crc: int | None) -> str:
    """The C source of such a module."""
    entries = "\\0".join((f"vermagic={form.vermagic}", f"name={name}", "depends=", "license=GPL"))
    lines = [
        "#define IN(name) __attribute__((used, section(name)))",
        f'IN(".modinfo") static const char info[] = "{entries}";',
        f"struct {{ char before[{form.name_at}], name[56], after[{form.size - form.name_at - 56}]; }}",
        f'__this_module IN("{_THIS_MODULE}") = {{ .name = "{name}" }};',
        f"extern char {symbol}[];",
        f'IN(".data") static const void *needed = {symbol};',
    ]
    if form.layout_crc is not None:
        known = {"module_layout": form.layout_crc} | ({symbol: crc} if crc is not None else {})
        rows = ", ".join(f'{{ {value}UL, "{key}" }}' for key, value in known.items())
        lines.append(
            f'IN("__versions") static const struct {{ unsigned long crc; char name[56]; }} v[] = {{ {rows} }};'
        )
    if arch is Arch.ARM64:
        # arch/arm64/kernel/module-plts.c, module_frob_arch_sections, refuses a module without them.
        lines += [f'IN("{plt}") static char p{n}[1];' for n, plt in enumerate((".plt", ".init.plt"))]
    return "\n".join(lines) + "\n"


def _compile(compiler: Compiler, arch: Arch, text: str, folder: Path) -> bytes:
    path = folder / "probe.c"
    path.write_text(text)
    argv = (compiler.clang, f"--target={target_of(arch)}", "-ffreestanding", "-fno-pic", "-mcmodel=large")
    try:
        process.run((*argv, "-c", path, "-o", folder / "probe.ko"), timeout=_TOOL_SECONDS)
    except process.CommandFailed as error:
        raise UsageError(
            "cannot compile a module that needs a trimmed symbol", details=error.details
        ) from error
    return (folder / "probe.ko").read_bytes()


def compare(found: Audit, trimmed: str, kept: str, heard: Heard) -> Finding:
    """What the kernel answered to the two modules, and what the audit of the build says."""
    missing = [
        f"{m.symbol}, needed by {', '.join(m.modules)}, is not exported: {m.reason}" for m in found.missing
    ]
    if missing:
        return Finding(missing[0], tuple(missing[1:_SHOWN]))
    refused, accepted = int(heard.facts.get(REFUSED, "0")), int(heard.facts.get(ACCEPTED, "-1"))
    named = f"{REFUSED}: Unknown symbol {trimmed} (err {-errno.ENOENT})"
    if accepted != 0:
        return Finding(f"a module that needs only {kept} was refused: {error_name(accepted)}")
    if refused == 0:
        return Finding(f"a module that needs {trimmed}, which is trimmed, was loaded")
    if refused != -errno.ENOENT or named not in heard.console:
        return Finding(
            f"a module that needs {trimmed} was refused with {error_name(refused)}, but not by that name"
        )
    summary = f"{len(found.needed)} symbols needed by modules, all exported; {len(found.trimmed)} trimmed"
    return Finding(None, (summary, named, f"a module that needs {kept} was accepted"))
