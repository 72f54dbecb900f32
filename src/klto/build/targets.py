"""What make is asked for, and what that leaves behind."""

from __future__ import annotations

from collections.abc import Sequence

from klto.build.plan import Plan

#: Targets that leave a finished kernel behind, which can be verified and booted. No target is ``all``.
_WHOLE_KERNEL = frozenset(("all", "vmlinux", "bzImage", "Image", "Image.gz"))

#: The image that boots, in the build dir (arch/x86/boot/Makefile, arch/arm64/boot/Makefile).
IMAGES = {"x86_64": "arch/x86/boot/bzImage", "arm64": "arch/arm64/boot/Image"}


def targets_of(plan: Plan) -> tuple[str, ...]:
    """What make is asked for: with ``--boot`` the image that boots, too."""
    targets = plan.request.targets
    image = IMAGES[plan.tree.arch].rpartition("/")[2]
    return (
        (*targets, image) if plan.request.boot and targets and not {"all", image} & set(targets) else targets
    )


def is_whole(targets: Sequence[str]) -> bool:
    """Whether these targets leave a whole kernel behind."""
    return not targets or bool(_WHOLE_KERNEL & set(targets))


def makes_modules(targets: Sequence[str]) -> bool:
    """Whether these targets make all kernel modules."""
    return not targets or bool({"all", "modules"} & set(targets))
