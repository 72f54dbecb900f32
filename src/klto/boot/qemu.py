"""QEMU: which program, which machine, which command line."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from klto.boot.images import Arch
from klto.errors import UsageError


class Accelerator(StrEnum):
    """What runs the guest's instructions: the host's CPU, or QEMU's translator."""

    KVM = "kvm"
    TCG = "tcg"


PROGRAMS = {Arch.X86_64: "qemu-system-x86_64", Arch.ARM64: "qemu-system-aarch64"}

#: Debian's packages with these programs.
PACKAGES = {Arch.X86_64: "qemu-system-x86", Arch.ARM64: "qemu-system-arm"}

#: Guest memory: a distribution's kernel with its debugging options unpacks and boots in it.
MEMORY_MIB = 512

#: Two CPUs, so that an SMP kernel's path for bringing up others runs too; one costs nothing less.
CPUS = 2


def find_qemu(arch: Arch, program: str | None = None) -> Path:
    """The QEMU for an architecture, from PATH unless ``program`` names it.

    :raises UsageError: when it is not there or not executable.
    """
    name = program or PROGRAMS[arch]
    found = shutil.which(name)
    if found is None:
        where = f"cannot run {name}" if os.sep in name else f"{name} is not in PATH"
        raise UsageError(
            f"no QEMU for {arch}: {where}", hint=f"install it: sudo apt-get install {PACKAGES[arch]}"
        )
    return Path(found).absolute()


@dataclass(frozen=True)
class Machine:
    """The virtual machine of one boot. File descriptors are those that QEMU inherits.

    ``cpu`` None takes the one that suits the accelerator.
    """

    qemu: Path
    arch: Arch
    accelerator: Accelerator
    kernel: Path
    initrd_fd: int
    console_fd: int
    uart_fd: int
    virtio_fd: int
    qmp_fd: int
    cpu: str | None = None
    append: str = ""
    memory_mib: int = MEMORY_MIB
    cpus: int = field(default=CPUS)

    def argv(self) -> tuple[str, ...]:
        """QEMU's command line."""
        return (
            str(self.qemu),
            *("-accel", str(self.accelerator)),
            *machine_options(self.arch, self.accelerator),
            *("-cpu", self.cpu or cpu_model(self.arch, self.accelerator)),
            *("-m", f"{self.memory_mib}M"),
            *("-smp", str(self.cpus)),
            *QUIET_OPTIONS,
            # A restart or a triple fault of the guest ends QEMU.
            "-no-reboot",
            # The CPUs wait until klto has the monitor.
            *("-S", "-chardev", f"socket,id=qmp,fd={self.qmp_fd}", "-mon", "chardev=qmp,mode=control"),
            *("-chardev", _printed("console", self.console_fd), "-serial", "chardev:console"),
            *self._verdict_channels(),
            *("-kernel", os.fspath(self.kernel)),
            *("-initrd", f"/proc/self/fd/{self.initrd_fd}"),
            *("-append", command_line(self.arch, self.append)),
        )

    def _verdict_channels(self) -> tuple[str, ...]:
        # max_ports=1 turns VIRTIO_CONSOLE_F_MULTIPORT off (hw/char/virtio-serial-bus.c), so that the guest's
        # driver makes hvc0 while it probes (drivers/char/virtio_console.c, add_port) and not some time later.
        bus = "virtio-serial-pci" if self.arch is Arch.X86_64 else "virtio-serial-device"
        virtio = (
            *("-chardev", _printed("virtio", self.virtio_fd)),
            *("-device", f"{bus},max_ports=1", "-device", "virtconsole,chardev=virtio"),
        )
        if self.arch is Arch.ARM64:  # its virt machine has one UART (hw/arm/virt.c, 7.2)
            return virtio
        return ("-chardev", _printed("uart", self.uart_fd), "-serial", "chardev:uart", *virtio)


def _printed(name: str, descriptor: int) -> str:
    """``-chardev`` for the end of a pipe."""
    return f"file,id={name},path=/proc/self/fd/{descriptor}"


#: No devices but those asked for, no configuration of the user's, no window, no network, no disk.
QUIET_OPTIONS = ("-nodefaults", "-no-user-config", "-display", "none")


def machine_options(arch: Arch, accelerator: Accelerator) -> tuple[str, ...]:
    """``-M`` for an architecture.

    arm64 starts at EL2 where QEMU can do that, so that the kernel's hypervisor code runs: KVM on
    most hosts cannot nest.
    """
    if arch is Arch.X86_64:
        return ("-M", "pc")
    if accelerator is Accelerator.KVM:
        return ("-M", "virt,gic-version=host")
    return ("-M", "virt,virtualization=on,gic-version=3")


def cpu_model(arch: Arch, accelerator: Accelerator) -> str:
    """``-cpu`` for an architecture: all that the accelerator has."""
    if accelerator is Accelerator.KVM:
        return "host"
    # The architected pointer authentication algorithm takes about half of TCG's time
    # (QEMU's docs/system/arm/cpu-features.rst, "TCG VCPU Features").
    return "max,pauth-impdef=on" if arch is Arch.ARM64 else "max"


def command_line(arch: Arch, append: str) -> str:
    """The kernel's command line (Documentation/admin-guide/kernel-parameters.txt).

    A panic restarts at once, an oops is a panic. ``earlycon`` shows what is printed before the console's
    driver is there; addresses are those of QEMU's machines (hw/char/serial-isa.c, hw/arm/virt.c).
    """
    console = {
        Arch.X86_64: "console=ttyS0,115200 earlycon=uart8250,io,0x3f8,115200",
        Arch.ARM64: "console=ttyAMA0 earlycon=pl011,0x9000000",
    }[arch]
    return f"{console} panic=-1 oops=panic printk.devkmsg=on {append}".strip()
