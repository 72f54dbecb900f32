"""Bytes in, tables out: ELF, LLVM bitcode and archives. Knows no kernels, no LTO, no processes."""
