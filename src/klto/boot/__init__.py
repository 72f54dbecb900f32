"""QEMU, the initramfs, the init program and the proofs."""
