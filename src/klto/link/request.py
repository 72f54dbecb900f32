"""What an ld.lld command line asks for, as far as klto needs to know."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

#: Options of ld.lld (lld/ELF/Options.td, LLVM 14 to 22) whose value is the next argument.
_WITH_VALUE = frozenset(
    [
        "-m",
        "-mllvm",
        "-T",
        "--script",
        "-e",
        "--entry",
        "-z",
        "-o",
        "--output",
        "-L",
        "--library-path",
        "-l",
        "--library",
        "-h",
        "-soname",
        "--soname",
        "-rpath",
        "--rpath",
        "-u",
        "--undefined",
        "-Map",
        "--Map",
        "-I",
        "--dynamic-linker",
        "-y",
        "--trace-symbol",
        "-f",
        "--auxiliary",
        "-F",
        "--filter",
        "--defsym",
        "--version-script",
        "--dynamic-list",
        "--retain-symbols-file",
        "--sysroot",
        "-O",
        "-plugin",
        "-plugin-opt",
        "--plugin-opt",
        "-b",
        "--format",
        "-A",
        "-Y",
        "-a",
        "--wrap",
        "--exclude-libs",
        "-init",
        "--init",
        "-fini",
        "--fini",
        "-Ttext",
        "-Tdata",
        "-Tbss",
        "--section-start",
    ]
)


class LinkRequest:
    """One linker command line. A value; do not assign.

    :param output: as given; ``a.out`` when none was (lld's default).
    :param inputs: files named on the command line and in its response files, in order; no libraries by ``-l``.
    :param eager: for each input, whether all of it is linked: an object outside of ``--start-lib``, an archive under
        ``--whole-archive``.
    :param relocatable: ``-r``.
    :param options: every argument that starts with ``-``, without values that stand apart.
    :param words: all arguments, response files expanded.
    """

    __slots__ = ("eager", "inputs", "options", "output", "relocatable", "words")

    def __init__(
        self,
        output: str,
        inputs: tuple[str, ...],
        eager: tuple[bool, ...],
        relocatable: bool,
        options: frozenset[str],
        words: tuple[str, ...],
    ) -> None:
        self.output = output
        self.inputs = inputs
        self.eager = eager
        self.relocatable = relocatable
        self.options = options
        self.words = words

    def sets(self, *names: str) -> bool:
        """Whether one of the options ``--name`` or ``--name=...`` is given, with one dash or two.

        ``plugin-opt=name`` stands for ``--plugin-opt=name`` and ``--plugin-opt=name=...``.
        """
        given = set()
        for option in self.options:
            name, _, value = option.lstrip("-").partition("=")
            given |= {name, f"{name}={value.partition('=')[0]}"}
        return any(name in given for name in names)


def parse_request(arguments: list[str]) -> LinkRequest:
    """Read the arguments after the linker's own name. Never fails: the linker itself judges them."""
    output, inputs, options = "a.out", [], set()
    eager: list[bool] = []
    relocatable = whole = in_library = False
    expanded = tuple(_expanded(arguments, depth=0))
    words = iter(expanded)
    for word in words:
        if word in ("-o", "--output"):
            output = next(words, output)
        elif word.startswith("--output="):
            output = word.partition("=")[2]
        elif word in ("-r", "--relocatable"):
            relocatable = True
            options.add(word)
        elif word in _WITH_VALUE:
            options.add(word)
            next(words, None)
        elif word.lstrip("-") in ("whole-archive", "no-whole-archive"):
            whole = word.lstrip("-") == "whole-archive"
            options.add(word)
        elif word.lstrip("-") in ("start-lib", "end-lib"):
            in_library = word.lstrip("-") == "start-lib"
            options.add(word)
        elif word.startswith("-") and word != "-":
            options.add(word)
        else:
            inputs.append(word)
            eager.append(not in_library and (whole or not word.endswith(".a")))
    return LinkRequest(output, tuple(inputs), tuple(eager), relocatable, frozenset(options), expanded)


def _expanded(arguments: list[str], depth: int) -> Iterator[str]:
    """The arguments with ``@file`` replaced by the words in the file (llvm::cl::ExpandResponseFiles)."""
    for argument in arguments:
        if argument.startswith("@") and depth < 16 and os.path.isfile(argument[1:]):
            import shlex  # Late: few links have response files, and this process must start fast.

            with open(argument[1:], encoding="utf-8", errors="surrogateescape") as stream:
                yield from _expanded(shlex.split(stream.read()), depth + 1)
        else:
            yield argument
