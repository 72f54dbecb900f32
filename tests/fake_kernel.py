"""A fake kernel tree: small, but with real make, clang, lld and Kbuild's way of saving commands.

For tests of klto's driver and of its failure paths. Real kernels are in tests/real. What Kbuild does in many
files is here one Makefile: ``if_changed``, ``O=``, ``LLVM=``, the short log, vmlinux.a as a thin archive, the
vmlinux.o link with a step after it (in the place of objtool), and a kernel module of one object that is linked
over its own bitcode.

Faults are environment variables of the build, so that saved commands stay the same:

* ``FAKE_HOLD=STEP:FILE``: at STEP (``objtool`` or ``module-ld``) write FILE and wait until it is gone.
* ``FAKE_FAIL=STEP:STATUS``: STEP ends with STATUS after two lines on stderr.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

MAKEFILE = r"""
VERSION = 6
PATCHLEVEL = 12
SUBLEVEL = 0
EXTRAVERSION = -fake

ifneq ($(O),)
.PHONY: sub $(MAKECMDGOALS)
all $(filter-out all,$(MAKECMDGOALS)): sub ; @:
sub: ; @mkdir -p $(O) && $(MAKE) --no-print-directory -C $(O) -f $(CURDIR)/Makefile O= srctree=$(CURDIR) $(MAKECMDGOALS)
else

srctree ?= .
ifneq ($(filter /%/,$(LLVM)),)
prefix := $(LLVM)
else ifneq ($(filter -%,$(LLVM)),)
suffix := $(LLVM)
endif
CC := $(prefix)clang$(suffix)
LD := $(prefix)ld.lld$(suffix)
AR := $(prefix)llvm-ar$(suffix)
step = sh $(srctree)/scripts/step.sh

-include include/config/auto.conf
flto-$(CONFIG_LTO_CLANG_THIN) := -flto=thin
flto-$(CONFIG_LTO_CLANG_FULL) := -flto
CFLAGS := --target=x86_64-linux-gnu -O2 -ffreestanding -fno-pic -mcmodel=kernel $(flto-y)

space := $(subst ,, )
tab := $(subst ,,	)
squote := '
dot-target = $(dir $@).$(notdir $@)
same = $(subst $(space),$(tab),$(strip $(1)))
arg-check = $(filter-out $(call same,$(cmd_$(1))),$(call same,$(savedcmd_$@)))$(filter-out $(call same,$(savedcmd_$@)),$(call same,$(cmd_$(1))))
# What fixdep adds: the dependencies, with an empty rule for each at the end.
deps = '' 'deps_$@ := $<' '' '$@: $$(deps_$@)' '' '$$(deps_$@):'
if_changed = $(if $(filter-out FORCE,$?)$(arg-check),@set -e; echo '  $(quiet_cmd_$(1))'; $(cmd_$(1)); printf '%s\n' 'savedcmd_$@ := $(subst $(squote),'\'',$(cmd_$(1)))' $($(2)) > $(dot-target).cmd,@:)
objects := $(foreach n,@NAMES@,init/$(n).o)

.PHONY: all modules FORCE allnoconfig alldefconfig olddefconfig defconfig clean
all: vmlinux arch/x86/boot/bzImage modules
modules: lib/single.ko modules.order

allnoconfig alldefconfig olddefconfig defconfig:
	@cat /dev/null $(wildcard $(KCONFIG_ALLCONFIG)) > $(or $(KCONFIG_CONFIG),.config)

include/config/auto.conf: .config
	@mkdir -p $(@D) && grep '^CONFIG_' $< > $@

quiet_cmd_cc = CC      $@
cmd_cc = $(CC) -Wp,-MMD,$(dot-target).d $(CFLAGS) -c -o $@ $<
quiet_cmd_as = AS      $@
cmd_as = $(CC) --target=x86_64-linux-gnu -fno-lto -c -o $@ $<
quiet_cmd_ccm = CC [M]  $@
cmd_ccm = $(CC) $(CFLAGS) -c -o $@ $<; $(step) module-ld; $(LD) -m elf_x86_64 -r -o $(@D)/.tmp_$(@F) $@; mv $(@D)/.tmp_$(@F) $@
quiet_cmd_ar = AR      $@
cmd_ar = rm -f $@; $(AR) cDPrST $@ $(filter-out FORCE,$^)
quiet_cmd_ldr = LD      $@
cmd_ldr = $(LD) -m elf_x86_64 -r -o $@ --whole-archive vmlinux.a --no-whole-archive; $(step) objtool $@
quiet_cmd_ld = LD      $@
cmd_ld = $(LD) -m elf_x86_64 -e entry -o $@ vmlinux.o
quiet_cmd_ko = LD [M]  $@
cmd_ko = $(LD) -m elf_x86_64 -r -o $@ $(filter-out FORCE,$^)
quiet_cmd_image = BUILD   $@
cmd_image = cp vmlinux $@

init/%.o: $(srctree)/init/%.c include/config/auto.conf FORCE
	@mkdir -p $(@D)
	$(call if_changed,cc,deps)
init/entry.o: $(srctree)/init/entry.S include/config/auto.conf FORCE
	@mkdir -p $(@D)
	$(call if_changed,as)
lib/single.o: $(srctree)/lib/single.c include/config/auto.conf FORCE
	@mkdir -p $(@D)
	$(call if_changed,ccm)
vmlinux.a: init/entry.o $(objects) FORCE
	$(call if_changed,ar)
vmlinux.o: vmlinux.a FORCE
	$(call if_changed,ldr)
vmlinux: vmlinux.o FORCE
	$(call if_changed,ld)
lib/single.ko: lib/single.o FORCE
	$(call if_changed,ko)
arch/x86/boot/bzImage: vmlinux FORCE
	@mkdir -p $(@D)
	$(call if_changed,image)
modules.order:
	@echo lib/single.o > $@
clean:
	@find . -name '*.o' -delete -o -name '.*.cmd' -delete
FORCE:

.DELETE_ON_ERROR:
-include $(wildcard .*.cmd init/.*.cmd lib/.*.cmd arch/x86/boot/.*.cmd)
endif
"""

STEP = r"""
# Stands for a step of a recipe; faults are asked for by environment variables.
step=$1
case ${FAKE_HOLD-} in
"$step":*)
	file=${FAKE_HOLD#*:}
	: > "$file"
	while [ -e "$file" ]; do sleep 0.05; done
	;;
esac
case ${FAKE_FAIL-} in
"$step":*)
	echo "fake $step: this is why" >&2
	echo "fake $step: and this is where" >&2
	exit "${FAKE_FAIL#*:}"
	;;
esac
if [ "$step" = objtool ]; then printf objtool >> "$2"; fi
"""


def make_fake_kernel(path: Path, objects: int = 6) -> Path:
    """Write the tree; ``objects`` C files and one assembly file make its vmlinux."""
    names = ["main", *(f"part{number}" for number in range(1, objects))]
    files = {
        "Makefile": MAKEFILE.replace("@NAMES@", " ".join(names)),
        "Kconfig": 'source "arch/Kconfig"\n',
        "arch/Kconfig": "config LTO_CLANG_THIN\n\tbool\n",
        "arch/x86/Kconfig": "config X86\n\tselect ARCH_SUPPORTS_LTO_CLANG\n",
        "arch/arm64/Kconfig": "config ARM64\n\tselect ARCH_SUPPORTS_LTO_CLANG\n",
        "scripts/kconfig/Makefile": "",
        "scripts/Makefile.build": "",
        "scripts/step.sh": STEP,
        "init/entry.S": ".text\n.globl entry\nentry:\n\tcall main\n\tret\n",
        "lib/single.c": "int single(int x) { return x + 1; }\n",
    }
    for number, name in enumerate(names):
        callee = names[number + 1] if number + 1 < objects else None
        call = f"int {callee}(int); int {name}(int x) {{ return {callee}(x) + {number}; }}\n"
        files[f"init/{name}.c"] = call if callee else f"int {name}(int x) {{ return x + {number}; }}\n"
    for name, text in files.items():
        file = path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return path


def thin_config(llvm_bin: Path) -> str:
    """A configuration of the fake kernel, as kconfig would have written it with this LLVM."""
    clang = subprocess.run([llvm_bin / "clang", "--version"], capture_output=True, text=True, check=True)
    lld = subprocess.run([llvm_bin / "ld.lld", "--version"], capture_output=True, text=True, check=True)
    numbers = re.search(r"LLD (\d+)\.(\d+)\.(\d+)", lld.stdout)
    assert numbers is not None
    version = sum(int(part) * scale for part, scale in zip(numbers.groups(), (10000, 100, 1), strict=True))
    return (
        f'CONFIG_CC_VERSION_TEXT="{clang.stdout.splitlines()[0]}"\n'
        f"CONFIG_LLD_VERSION={version}\nCONFIG_64BIT=y\nCONFIG_MODULES=y\nCONFIG_LTO_CLANG_THIN=y\n"
    )
