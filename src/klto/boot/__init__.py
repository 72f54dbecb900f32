"""QEMU, the initramfs, klto's own init program, the proofs, the console reader.

:func:`klto.boot.run.boot_kernel` boots an image once and judges the proofs that ran in it.
"""
