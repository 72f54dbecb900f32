"""Links a built kernel's vmlinux.o anew from its bitcode, with some modules left out of LTO or other options.

Nothing is compiled: a module that is left out goes through a plain backend, ``clang -x ir`` with the options that
Kbuild saved for it, and its native object takes its place in the link. That is not quite what compiling the source
without LTO gives (the bitcode has been through the pre-link half of the optimizer), so an answer found this way is
to be confirmed by a build.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from klto.errors import BuildError, UsageError
from klto.files import make_directory
from klto.kernel.toolchain import Toolchain
from klto.link.request import parse_request
from klto.objects.archive import leaves, read_archive
from klto.objects.errors import MalformedObject
from klto.objects.kind import kind_of
from klto.search.runner import Runner

#: clang's options that say how to read C, write dependencies or do LTO; what is left generates code. A space
#: stands for a value in the next word.
_NOT_FOR_BACKENDS = re.compile(
    r"-(?:Wp,|W(?!a,)|w$|I|D|U|flto|fno-lto|fsplit-lto-unit|fthinlto|std=|nostdinc|fmacro-prefix-map|ffile-prefix-map"
    r"|fsanitize|fno-sanitize|fvisibility|ftrivial-auto-var-init|fstrict-flex-arrays|c$)"
)
_WITH_VALUE = frozenset(
    ("-include", "-isystem", "-iquote", "-idirafter", "-imacros", "-o", "-x", "-MF", "-MT", "-MQ")
)


@dataclass(frozen=True)
class VmlinuxLink:
    """The link of a built kernel's vmlinux.o, as Kbuild saved it.

    :ivar words: the command, without the linker and without ``-o``; :data:`INPUTS` where the archive stood.
    :ivar members: the archive's objects in order, relative to the build dir.
    :ivar bitcode: those of them that are bitcode modules.
    """

    build_dir: Path
    words: tuple[str, ...]
    members: tuple[str, ...]
    bitcode: tuple[str, ...]

    @property
    def identity(self) -> str:
        """Names what is linked: the command and the modules' bytes."""
        digest = hashlib.sha256("\0".join((*self.words, *self.members)).encode())
        for module in self.bitcode:
            digest.update((self.build_dir / module).read_bytes())
        return digest.hexdigest()


#: Stands for the archive's members.
INPUTS = "@@inputs"


def read_link(build_dir: Path) -> VmlinuxLink:
    """The link of ``build_dir``'s vmlinux.o.

    :raises UsageError: there is no finished LTO build, or its bitcode is gone.
    """
    saved = build_dir / ".vmlinux.o.cmd"
    built = "build the kernel with LTO first (klto build), or name its build dir with -b"
    try:
        text = saved.read_text("utf-8", "replace")
        archive = read_archive(build_dir / "vmlinux.a")
        members = [member.path or "" for member in leaves(archive)]
        kinds = {path: kind_of(path) for path in members}
    except (OSError, MalformedObject) as error:
        raise UsageError(f"no kernel with its bitcode in {build_dir}: {error}", built) from error
    found = re.match(r"(?:savedcmd|cmd)_vmlinux\.o := (.*)", text)
    command = shlex.split(found[1].partition(";")[0]) if found else []
    if len(command) < 2 or "vmlinux.a" not in command:
        raise UsageError(f"{saved} has no link of vmlinux.a", built)
    request = parse_request(command[1:])
    words: list[str] = []
    rest = iter(command[1:])
    for word in rest:
        if word == "-o":
            next(rest, None)
        else:
            words.append(INPUTS if word == "vmlinux.a" else word)
    if request.output != "vmlinux.o":
        raise UsageError(f"{saved} does not make vmlinux.o", built)
    relative = {path: os.path.relpath(path, build_dir) for path in members}
    bitcode = tuple(relative[path] for path in dict.fromkeys(members) if kinds[path] == "bitcode")
    if not bitcode:
        raise UsageError(f"the kernel in {build_dir} was built without LTO: it has no bitcode", built)
    return VmlinuxLink(build_dir, tuple(words), tuple(relative[path] for path in members), bitcode)


@dataclass
class Linker:
    """Makes vmlinux.o in the ways that are asked for.

    :ivar folder: native objects and the ThinLTO cache are kept here.
    """

    link: VmlinuxLink
    toolchain: Toolchain
    folder: Path
    runner: Runner
    jobs: int
    #: Backends and links run so far.
    backends: int = 0
    links: int = 0

    def make(self, output: Path, left_out: Sequence[str] = (), words: Sequence[str] | None = None) -> bool:
        """Link to ``output``, with ``left_out`` as native objects; False when the linker refuses.

        :param words: another command than the saved one.
        :raises BuildError: a backend failed.
        """
        native = self.natives(left_out)
        inputs = [native.get(member, member) for member in self.link.members]
        response = output.with_suffix(".inputs")
        response.write_text("".join(f"{shlex.quote(str(name))}\n" for name in inputs))
        argv: list[str | os.PathLike[str]] = [self.toolchain.ld_lld]
        for word in self.link.words if words is None else words:
            argv.append(f"@{response}" if word == INPUTS else word)
        cache = make_directory(self.folder / "thinlto-cache")
        argv += ["-o", output, f"--thinlto-cache-dir={cache}", f"--thinlto-jobs={self.jobs}"]
        argv += [f"--threads={self.jobs}", "--thinlto-cache-policy=prune_interval=24h"]
        self.links += 1
        ran = self.runner.run(argv, output.with_suffix(".log"), cwd=self.link.build_dir)
        return ran.status == 0

    def natives(self, modules: Sequence[str]) -> dict[str, Path]:
        """The native objects of modules, made where they are not there yet."""
        places = {module: self._place(module) for module in modules}
        missing = [module for module, place in places.items() if not place.exists()]
        make_directory(self.folder / "native")
        with ThreadPoolExecutor(max(1, self.jobs)) as pool:
            try:
                list(pool.map(lambda module: self._backend(module, places[module]), missing))
            except BaseException:
                self.runner.stop()
                pool.shutdown(wait=True, cancel_futures=True)
                raise
        return places

    def _place(self, module: str) -> Path:
        digest = hashlib.sha256((self.link.build_dir / module).read_bytes())
        digest.update(
            "\0".join([module, self.toolchain.clang_text, *backend_options(self.link, module)]).encode()
        )
        return self.folder / "native" / f"{digest.hexdigest()[:32]}.o"

    def _backend(self, module: str, place: Path) -> None:
        aside = place.with_suffix(f".{os.getpid()}.tmp")
        options = backend_options(self.link, module)
        argv: list[str | os.PathLike[str]] = [self.toolchain.clang, *options, "-x", "ir", "-c", "-o"]
        argv += [aside, module]
        log = place.with_suffix(".log")
        ran = self.runner.run(argv, log, cwd=self.link.build_dir)
        if ran.status != 0:
            raise BuildError(
                f"a backend failed on {module} outside of LTO",
                f"log: {log}",
                details=tuple(ran.output.splitlines()[-5:]),
            )
        self.backends += 1
        log.unlink()
        aside.replace(place)


def backend_options(link: VmlinuxLink, module: str) -> list[str]:
    """clang's options for generating a module's code, from the command that Kbuild saved for it.

    :raises UsageError: none is saved.
    """
    folder, name = os.path.split(module)
    saved = link.build_dir / folder / f".{name}.cmd"
    try:
        text = saved.read_text("utf-8", "replace")
    except OSError as error:
        raise UsageError(f"cannot read how {module} was compiled: {saved}: {error.strerror}") from error
    found = re.match(r"(?:savedcmd|cmd)_\S+ := (.*)", text)
    words = iter(shlex.split(found[1].partition(";")[0])[1:] if found else [])
    kept = []
    for word in words:
        if word in _WITH_VALUE:
            next(words, None)
        elif word == "-mllvm":
            kept += [word, next(words, "")]
        elif word.startswith("-") and not _NOT_FOR_BACKENDS.match(word):
            kept.append(word)
    # The rest of the command's options concern C; clang says so of each that does not apply.
    return [*kept, "-Wno-unused-command-line-argument", "-w"]


def source_of(link: VmlinuxLink, module: str, tree: Path) -> str:
    """The source file that a module was compiled from, relative to the tree (``source_*`` of its saved command,
    scripts/basic/fixdep.c); the module itself where that is not told."""
    folder, name = os.path.split(module)
    saved = link.build_dir / folder / f".{name}.cmd"
    found = (
        re.search(r"(?m)^source_\S+ := (\S+)$", saved.read_text("utf-8", "replace"))
        if saved.exists()
        else None
    )
    return os.path.relpath(link.build_dir / found[1], tree) if found else module
