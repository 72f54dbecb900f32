"""The kernel tree, its toolchain, its configuration and its build system."""
