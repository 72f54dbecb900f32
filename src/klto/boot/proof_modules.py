"""The proof ``modules``: kernel modules load, dependencies first, and unload again.

What the kernel checks is checked here as well, so that a failure names the symbol: that everything a module
takes from outside is in Module.symvers, in the version that the module was built for.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from klto.boot.initramfs import regular
from klto.boot.kernel_modules import (
    ModuleFile,
    built_modules,
    in_load_order,
    read_module,
    read_symvers,
    version_problems,
)
from klto.boot.proofs import Finding, Heard, NotApplicable, Step
from klto.boot.subject import Subject
from klto.errors import UsageError
from klto.objects.errors import MalformedObject

#: kernel/module/main.c, simplify_symbols, and kernel/module/version.c, check_version (6.12; 6.1 has the same lines).
_COMPLAINT = re.compile(r"(\w+): (Unknown symbol \S+ \(err -?\d+\)|disagrees about version of symbol \S+)")

#: A module's own init function may say so when its device is not there; symbols were resolved by then.
_NO_DEVICE = -errno.ENODEV

#: Problems, and modules, that are shown.
_SHOWN = 20


def prepare(subject: Subject) -> tuple[Step, ...]:
    """Read the modules and put them into the initramfs.

    :raises NotApplicable: when there are none.
    :raises UsageError: for a module that was asked for and is not there.
    """
    build_dir = subject.needed_build_dir()
    built = built_modules(build_dir)
    wanted = _asked(subject.modules, built) if subject.modules else built
    if not wanted:
        raise NotApplicable("needs a kernel module: this build has none")
    order = in_load_order(wanted, built)
    symvers = read_symvers(build_dir / "Module.symvers")
    plan = tuple(f"module {module.name} /klto/modules/{number}.ko" for number, module in enumerate(order))
    files = tuple(
        regular(f"klto/modules/{number}.ko", module.path.read_bytes()) for number, module in enumerate(order)
    )
    unloads = subject.has("MODULE_UNLOAD")

    def check(heard: Heard) -> Finding:
        return compare(order, symvers, heard, unloads=unloads)

    return (Step("modules", check, plan=plan, files=files),)


def _asked(names: Sequence[str], built: Sequence[ModuleFile]) -> list[ModuleFile]:
    by_name = {module.name: module for module in built}
    found = []
    for name in names:
        key = name.removesuffix(".ko").replace("-", "_")
        if key in by_name:
            found.append(by_name[key])
        elif Path(name).is_file():
            try:
                found.append(read_module(Path(name)))
            except MalformedObject as error:  # the user's, so no proof of the kernel fails
                raise UsageError(error.message, error.hint) from error
        else:
            raise UsageError(f"no kernel module {name!r}", f"modules: {', '.join(sorted(by_name)) or 'none'}")
    return found


def compare(
    order: Sequence[ModuleFile], symvers: Mapping[str, int], heard: Heard, *, unloads: bool
) -> Finding:
    """What the kernel said to the modules, and what Module.symvers says about them."""
    complaints: dict[str, list[str]] = {}
    for name, text in _COMPLAINT.findall(heard.console):
        complaints.setdefault(name, []).append(text)
    problems: list[str] = []
    notes: list[str] = []
    for module in order:
        loaded = heard.facts.get(f"load:{module.name}")
        if loaded is None:
            problems.append(f"init has said nothing about {module.name}")
        elif int(loaded) == _NO_DEVICE:
            notes.append(f"{module.name} found no device: it was linked in and called, and refused")
        elif int(loaded) != 0:
            why = "; ".join(dict.fromkeys(complaints.get(module.name, ())))
            problems.append(f"{module.name} did not load: {why or error_name(int(loaded))}")
        else:
            problems += _unload(module, heard.facts.get(f"unload:{module.name}"), notes, unloads=unloads)
        problems += version_problems(module, symvers)
    count = sum(bool(module.crcs) for module in order)
    summary = f"{len(order)} modules" + (
        f", CRCs of {count} compared" if count else ", without CRCs (no MODVERSIONS)"
    )
    shown = [f"order: {', '.join(module.name for module in order[:_SHOWN])}", *notes[:_SHOWN]]
    if problems:
        return Finding(problems[0], (*problems[1:_SHOWN], summary))
    done = "loaded and unloaded" if unloads else "loaded (no CONFIG_MODULE_UNLOAD)"
    return Finding(None, (f"{summary}, {done}", *shown))


def _unload(module: ModuleFile, result: str | None, notes: list[str], *, unloads: bool) -> list[str]:
    if result is None:
        return [f"init has not unloaded {module.name}"]
    if int(result) == 0 or not unloads:
        return []
    if int(result) == -errno.EBUSY and not module.has_exit:
        notes.append(f"{module.name} stays: it has no exit function")
        return []
    return [f"{module.name} did not unload: {error_name(int(result))}"]


def error_name(result: int) -> str:
    """``ENOEXEC`` of -8."""
    return errno.errorcode.get(-result, f"error {result}")
