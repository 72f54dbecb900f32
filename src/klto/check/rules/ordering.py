"""The order of initcalls."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from klto.check.build_dir import BuildDir
from klto.check.finding import Finding
from klto.check.rule import Rule
from klto.errors import UsageError
from klto.kernel.initcall_tables import differences, read_tables
from klto.kernel.initcalls import NoInitcalls, read_initcalls
from klto.objects.errors import MalformedObject


class InitcallOrder(Rule):
    """vmlinux's tables against the objects in link order."""

    slug = "initcall-order"
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
        vmlinux = build.path / "vmlinux"
        if build.lto == "none" or not vmlinux.is_file():
            return
        archives = [word for word in build.vmlinux_o_words if word.endswith(".a")] or ["vmlinux.a"]
        paths = [str(build.path / name) for name in archives if (build.path / name).is_file()]
        if not paths:
            return
        try:
            expected = read_initcalls(paths)
        except NoInitcalls:
            expected = []
        try:
            entries = read_tables(vmlinux)
        except MalformedObject:
            raise
        except UsageError:
            # A vmlinux without such tables or without symbols: nothing to compare with.
            return
        for line in differences(expected, entries):
            yield self.finding("vmlinux", line, section=".init.data", source="include/linux/init.h")
