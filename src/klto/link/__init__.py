"""The LTO link: what the linker was asked, running it, measuring it.

Standard library only, and little of it: for every LTO link of a build a new process imports this.
"""
