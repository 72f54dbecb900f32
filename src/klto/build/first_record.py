"""The record as it is when a build begins: what was asked, of which tree, with which tools, on which machine."""

from __future__ import annotations

import os
import time

from klto import __version__, machine
from klto.build.folder import Folder
from klto.build.plan import Plan
from klto.record import SCHEMA, Asked, Machine, Record, ToolchainIdentity, TreeIdentity


def first_record(plan: Plan, folder: Folder) -> Record:
    """A record that says ``running``."""
    total, available = machine.memory_bytes()
    request, toolchain = plan.request, plan.kbuild.toolchain
    return Record(
        schema=SCHEMA,
        klto_version=__version__,
        status="running",
        started=time.time(),
        pid=os.getpid(),
        asked=Asked(
            argv=list(request.argv),
            directory=str(request.directory.absolute()),
            targets=list(request.targets),
            lto=plan.lto,
            base=request.base,
            requests={f"CONFIG_{wanted.name}": wanted.value for wanted in plan.requests},
            make_variables=list(request.make_variables),
            jobs=plan.jobs,
            boot=request.boot,
        ),
        machine=Machine(cpus=machine.usable_cpus(), memory_bytes=total, memory_available=available),
        tree=TreeIdentity(path=str(plan.tree.path), version=plan.tree.version, arch=plan.tree.arch),
        toolchain=ToolchainIdentity(
            spelling=toolchain.spelling,
            clang=str(toolchain.clang),
            clang_version=toolchain.clang_text,
            linker=str(toolchain.ld_lld),
            linker_version=toolchain.lld_text,
        ),
        log=str(folder.log),
    )
