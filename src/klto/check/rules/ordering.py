"""The order of initcalls."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from klto.check.build_dir import BuildDir
from klto.check.finding import Finding
from klto.check.rule import Rule
from klto.errors import UsageError
from klto.kernel.initcall_tables import differences, tables_of
from klto.kernel.initcalls import initcalls_of
from klto.objects.errors import MalformedObject


class InitcallOrder(Rule):
    """vmlinux's tables against the objects in link order."""

    slug = "initcall-order"
    asks_link = True
    title = "initcalls in vmlinux that are not in link order, missing, or there twice"
    what = "Drivers are initialised before what they need: the kernel stops, or a device is missing, on some machines."
    why = (
        "the linker sees one object and may order what is in it as it likes; Kbuild gives it a script for initcalls, "
        "made from the symbols of bitcode, which other tools than llvm-nm do not see"
    )
    remedies: ClassVar = (
        "build vmlinux.o again with LLVM's tools throughout: LLVM=1",
        "compare .tmp_initcalls.lds with 'klto initcalls vmlinux.a'",
    )
    references: ClassVar = (
        "scripts/generate_initcall_order.pl, include/linux/init.h (6.12)",
        "https://github.com/Szowisz/CachyOS-kernels/issues/11",
    )

    def of_build(self, build: BuildDir) -> Iterator[Finding]:
        vmlinux = build.subject("vmlinux")
        link = build.link
        if build.lto == "none" or vmlinux is None or vmlinux.elf is None:
            return
        objects = [(item.place, item.name, item.content) for item in link.bitcode if item.may_have_initcalls]
        for place, subject in link.native:
            if subject.elf is not None:
                data = subject.elf.data
                objects.append((place, subject.name, lambda data=data: data))  # type: ignore[misc]
        if not objects:
            return
        in_order = sorted(objects, key=lambda item: item[0])
        expected = initcalls_of((name, content()) for _, name, content in in_order)
        try:
            entries = tables_of(vmlinux.elf)
        except MalformedObject:
            raise
        except UsageError:
            # A vmlinux without such tables or without symbols: nothing to compare with.
            return
        for line in differences(expected, entries):
            yield self.finding("vmlinux", line, section=".init.data", source="include/linux/init.h")
