"""klto builds Linux kernels with Clang LTO and proves that they are right."""

__version__ = "0.1.0"
