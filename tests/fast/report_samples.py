"""Records as a build writes them, made up: small ones, and one of a kernel of 3,000 modules."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import msgspec

from klto.events import LinkedModule
from klto.record import (
    SCHEMA,
    Artifact,
    Asked,
    Boot,
    ConfigIdentity,
    ImageSizes,
    Initcall,
    Link,
    Machine,
    MemorySample,
    ObjectSize,
    Proof,
    Record,
    SectionSize,
    Stage,
    ToolchainIdentity,
    TreeIdentity,
    Verification,
    encode_record,
)

BEGAN = 1_700_000_000.0

_FOLDERS = (
    "kernel/sched",
    "kernel/time",
    "mm",
    "fs/ext4",
    "fs/proc",
    "net/ipv4",
    "net/core",
    "drivers/acpi/acpica",
    "drivers/tty/serial",
    "drivers/base",
    "arch/x86/kernel",
    "arch/x86/mm",
    "lib",
    "block",
    "crypto",
)

FINDING: dict[str, Any] = {
    "rule": "purgatory-sections",
    "level": "error",
    "artifact": "arch/x86/purgatory/purgatory.ro",
    "symbol": "purgatory_start",
    "section": ".text.purgatory",
    "offset": 64,
    "message": "25 executable sections, expected 1 </script><b>&",
    "remedies": ["filter CC_FLAGS_LTO out of the purgatory's flags"],
    "references": ["https://git.kernel.org/linus/8652d44f466a"],
}


def _modules(count: int, chance: random.Random) -> list[LinkedModule]:
    """Backends on two threads, one after the other on each."""
    clock = [BEGAN + 301.0, BEGAN + 301.0]
    modules = []
    for number in range(count):
        seconds = round(chance.expovariate(1 / 0.05) * 1024) / 1024  # Sums of these are exact.
        lane = clock.index(min(clock))
        folder = _FOLDERS[number % len(_FOLDERS)]
        cached = number % 10 == 9
        modules.append(
            LinkedModule(
                name=f"{folder}/object_{number}.o",
                seconds=None if cached else seconds,
                bytes_in=int(20_000 + 400_000 * seconds),
                bytes_out=int(5_000 + 100_000 * seconds),
                cached=cached,
                start=None if cached else clock[lane],
            )
        )
        if not cached:
            clock[lane] += seconds
    return modules


def sample_record(modules: int = 30, *, lto: str = "thin", arch: str = "x86_64", **fields: Any) -> Record:
    """A finished build. ``fields`` replace what is made up."""
    chance = random.Random(modules)
    backends = _modules(modules, chance)
    length = (
        max([m.start + m.seconds for m in backends if m.start and m.seconds], default=BEGAN + 302) - BEGAN
    )
    link_seconds = length - 300
    objects = [
        ObjectSize(
            path=m.name, text=m.bytes_out or 0, data=(m.bytes_out or 0) // 5, bss=(m.bytes_out or 0) // 9
        )
        for m in backends
    ]
    text = sum(o.text for o in objects)
    stages = [
        ("configure", 0.0, 5.0),
        ("compile", 5.0, 295.0),
        ("link", 300.0, link_seconds),
        ("finish", length, 6.0),
        ("verify", length + 6, 0.5),
        ("boot", length + 6.5, 2.0),
    ]
    record = Record(
        schema=SCHEMA,
        klto_version="0.1.0",
        status="done",
        started=BEGAN,
        pid=1,
        asked=Asked(
            argv=["build", "--lto", lto], directory="/home/me/linux", requests={"CONFIG_SMP": "y"}, jobs=2
        ),
        machine=Machine(cpus=2, memory_bytes=8 << 30, memory_available=6 << 30),
        wall_seconds=length + 8.5,
        exit_status=0,
        tree=TreeIdentity(path="/home/me/linux", version="6.12.117", arch=arch),
        config=ConfigIdentity(path="/build/.config", sha256="ab" * 32, lto=lto),
        toolchain=ToolchainIdentity(
            spelling="LLVM=-19",
            clang="/usr/bin/clang-19",
            clang_version="clang version 19.1.7",
            linker="/usr/bin/ld.lld-19",
            linker_version="LLD 19.1.7",
        ),
        stages=[
            Stage(
                name=name,
                start=BEGAN + start,
                status="done",
                wall_seconds=wall,
                cpu_seconds=1.8 * wall,
                peak_bytes=(180 if name == "compile" else 500) << 20,
                peak_process="ld.lld",
            )
            for name, start, wall in stages
        ],
        objects_compiled=modules,
        links=[
            Link(
                output="lib/crc.o",
                directory="/build",
                start=BEGAN + 100,
                jobs=1,
                bitcode_inputs=1,
                native_inputs=0,
                bitcode_bytes=9000,
                memory_available=1,
                returncode=0,
                wall_seconds=0.2,
                cpu_seconds=0.2,
                peak_bytes=1 << 26,
            ),
            Link(
                output="vmlinux.o",
                directory="/build",
                start=BEGAN + 300,
                jobs=2,
                bitcode_inputs=modules,
                native_inputs=25,
                bitcode_bytes=sum(m.bytes_in for m in backends),
                memory_available=5 << 30,
                returncode=0,
                wall_seconds=link_seconds,
                cpu_seconds=1.9 * link_seconds,
                peak_bytes=210 << 20,
                generated=sum(not m.cached for m in backends),
                modules=backends,
            ),
        ],
        memory=[
            MemorySample(
                time=BEGAN + length * i / 300,
                bytes=int((100 + 80 * chance.random()) * (1 << 20)),
                process="clang",
            )
            for i in range(300)
        ],
        verification=Verification(lto=lto, bitcode=modules, native=25, kernel_modules=2, vmlinux_o_links=1),
        initcalls=[
            Initcall(level=str(i % 8), function=f"init_{i}", object=f"/build/kernel/object_{i}.o")
            for i in range(40)
        ],
        findings=[FINDING],
        boots=[
            Boot(
                image="arch/x86/boot/bzImage",
                accelerator="tcg",
                seconds=2.0,
                console="/nowhere/console.log",
                proofs=[
                    Proof(name="init", status="passed", seconds=1.2),
                    Proof(name="kexec", status="passed", seconds=0.5),
                ],
            )
        ],
        artifacts=[
            Artifact(path="vmlinux", bytes=text * 3, sha256="cd" * 32),
            Artifact(path="arch/x86/boot/bzImage", bytes=text // 2, sha256="ef" * 32),
            Artifact(path="lib/libcrc32c.ko", bytes=9216, sha256="01" * 32),
        ],
        sizes=ImageSizes(
            sections=[
                SectionSize(name=".text", bytes=text, kind="text"),
                SectionSize(name=".bss", bytes=4096, kind="bss"),
            ],
            objects=sorted(objects, key=lambda o: -(o.text + o.data + o.bss)),
        ),
    )
    return msgspec.structs.replace(record, **fields)


def write_record(folder: Path, record: Record) -> Path:
    """The record in a build dir of its own; the build dir."""
    (folder / ".klto").mkdir(parents=True)
    (folder / ".klto" / "record.json").write_bytes(encode_record(record))
    return folder
