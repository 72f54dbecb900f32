"""The build's last stage: boot what was built."""

from __future__ import annotations

from typing import TYPE_CHECKING

from klto.build.folder import Folder
from klto.build.plan import Plan
from klto.errors import LostMachineError, ProofError
from klto.files import user_cache_dir
from klto.kernel.kconfig import read_config
from klto.record import Boot

if TYPE_CHECKING:
    from klto.boot.run import BootResult

#: Lines of the console that a failed boot shows; the log has all.
_CONSOLE_LINES = 15


def boot_build(plan: Plan, folder: Folder) -> tuple[list[Boot], BootResult]:
    """Boot the kernel of a build: what goes into the record, and what :func:`judge_boot` judges."""
    # Late: QEMU and its proofs are of no use to most builds.
    from klto.boot.guest import Compiler
    from klto.boot.images import Arch, find_built_image, read_image
    from klto.boot.run import BootRequest, boot_kernel
    from klto.report.boot import recorded

    arch = Arch(plan.tree.arch)
    toolchain = plan.kbuild.toolchain
    result = boot_kernel(
        BootRequest(
            image=read_image(find_built_image(plan.build_dir, arch), arch),
            compiler=Compiler(toolchain.clang, toolchain.ld_lld),
            log=folder.console,
            cache=user_cache_dir(),
            config=read_config(plan.build_dir / ".config"),
            build_dir=plan.build_dir,
            timeout=plan.request.boot_timeout,
        )
    )
    return recorded(result, plan.build_dir), result


def judge_boot(result: BootResult) -> None:
    """Raise what a boot means that did not pass."""
    hint = f"console log: {result.console_log}"
    bad = [proof for proof in result.proofs if proof.status in ("failed", "unknown")]
    if not bad:
        return
    evidence = [line for proof in bad for line in proof.evidence]
    details = (*(f"| {line}" for line in result.console_tail[-_CONSOLE_LINES:]), *evidence)
    from klto.boot.session import Ending

    reason = result.ending
    if reason == f"the guest {Ending.DONE}" and bad[0].evidence:
        reason = bad[0].evidence[0]  # The guest did all that was asked of it; what it said was wrong.
    message = f"proof {bad[0].name} {bad[0].status}: {reason}"
    if result.status == "unknown":
        raise LostMachineError(message, hint, details)
    raise ProofError(message, hint, details)
