"""Names the modules whose backends fail, all of one link at once.

What is known of a failed ThinLTO link: which backends had begun and not finished, what the linker said, and LLVM's
own stack dump. Suspects are run alone (``--thinlto-single-module=``, the in-process backend on the same thin link);
then all others are, until a run without failure has shown that no guilty one is left. Where nothing is known the set
of modules is halved. What the innocent ones generate stays in the link cache.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile

from klto.link import journal
from klto.link.cached import CachedLink, note
from klto.link.linker import TIMEOUT, Ended, Linker, stopped_by
from klto.link.output import CUT, ERROR, STDERR
from klto.link.reproducer import keep_reproducer
from klto.link.tasks import Tasks, Watch, tasks_in
from klto.objects.file_symbol import file_symbol

TYPE_CHECKING = False
if TYPE_CHECKING:
    from klto.link.inputs import Inputs, Module
    from klto.link.run import Link
    from klto.link.store import View

#: The environment variable that names the folder for reproducers; none are kept without it.
ENV_REPRODUCERS = "KLTO_REPRODUCERS"

#: Errors of the linker itself (lld/ELF/Driver.cpp, InputFiles.cpp, Relocations.cpp, SyntheticSections.cpp, Writer.cpp).
_LINKERS_OWN = re.compile(
    r"error: (undefined (hidden |protected |internal )?symbol|duplicate symbol|cannot open|unable to|unknown (argument|"
    r"file type|emulation|directive)|[^ ]+: (unknown file type|not an ELF|could not|truncated|malformed)|"
    r"relocation refers|section .* (overlap|address)|output file too large|failed to (open|write))"
)

#: Guilty modules after which the search ends: that many have one cause.
_MOST = 32

#: Reproducers kept of one link.
_MOST_REPRODUCERS = 8

#: Where LLVM names what it was at: the stack dump's "on function '@f'" (llvm/lib/IR/LegacyPassManager.cpp) and
#: diagnostics' "in function f" (llvm/lib/IR/DiagnosticInfo.cpp).
_FUNCTION = re.compile(r"on function '@([^']+)'|in function '?([\w.$]+)")
_MODULE = re.compile(r"on module '([^']+)'")


class Guilty:
    """A module whose backend fails. ``reason``: error, crash, hang or memory; ``message``: what the linker said."""

    __slots__ = ("function", "message", "module", "reason", "reproducer", "said", "source")

    def __init__(self, module: Module, ended: Ended) -> None:
        self.module = module
        self.said = ended.said.decode("utf-8", "replace")
        self.reason = _reason(ended)
        self.message = _message(self.said, ended, self.reason)
        found = _FUNCTION.search(self.said)
        self.function = next((name for name in found.groups() if name), None) if found else None
        self.source = _source_of(module)
        self.reproducer: str | None = None


def distrust(view: View, ended: Ended, tasks: Tasks | None, modules: list[Module]) -> bool:
    """Mark the objects of a failed run that must not be kept; whether a backend can be to blame for the failure."""
    if tasks is None:
        view.wrong.update(view.path(key) for key in view.generated())
        return True
    objects = [path for _, _, path in tasks.finished()]
    # A crash removes the remark files (llvm/lib/Support/ToolOutputFile.cpp): nothing is known of who ran then.
    running = ended.returncode < 0 or ended.cause == TIMEOUT
    if tasks.followed:
        running = running or tasks.stand() is not None
    else:
        running = running or bool(objects) or b"LLVM ERROR" in ended.said
    if ended.first_error is None:
        return running
    if (not running or not tasks.followed) and _is_linkers_own(ended.said):
        return False
    view.wrong.update(_of_named(ended, objects, modules))
    return running or bool(objects)


def _is_linkers_own(said: bytes) -> bool:
    """Whether all errors are of kinds that the linker itself reports, before or after its backends."""
    lines = _error_lines(said)
    return bool(lines) and CUT not in said and all(_LINKERS_OWN.search(line) for line in lines)


def _of_named(ended: Ended, objects: list[str], modules: list[Module]) -> list[str]:
    """Those of the objects that belong to modules named in errors; all of them when that cannot be told."""
    lines = _error_lines(ended.said)
    if not lines or CUT in ended.said:
        return objects
    named = [module for module in modules if any(module.identifier in line for line in lines)]
    if not all(any(module.identifier in line for module in named) for line in lines):
        return objects
    wrong: list[str] = []
    for source in {os.path.basename(_source_of(module)) for module in named}:
        mine = [path for path in objects if file_symbol(path) in (source, None)]
        if not mine:
            return objects
        wrong += mine
    return wrong


def _error_lines(said: bytes) -> list[str]:
    return [line for line in said.decode("utf-8", "replace").splitlines() if ERROR.decode() in line]


def blame(link: Link, ended: Ended, suspects: list[Module]) -> None:
    """Find the guilty modules of a failed link, say who they are, and keep reproducers.

    The link's own status stays what it is, whatever becomes of the search.
    """
    try:
        _blame(link, ended, suspects)
    except (OSError, subprocess.TimeoutExpired) as problem:
        note(f"{link.request.output}: the search for guilty modules ended: {problem}")


def _blame(link: Link, ended: Ended, suspects: list[Module]) -> None:
    if link.full:
        _blame_function(link, ended)
        return
    search = _Search(link)
    try:
        guilty = search.run(ended, suspects)
    finally:
        search.close()
    if not guilty:
        note(
            f"{link.request.output}: no module's backend fails by itself; the failure is in the link as a whole"
        )
        return
    folder = os.environ.get(ENV_REPRODUCERS)
    for found in guilty[:_MOST_REPRODUCERS] if folder else []:
        assert folder is not None
        found.reproducer = keep_reproducer(link, found, os.path.join(folder, "modules"))
    _say(link, guilty, complete=search.complete)


def blame_unseen(link: Link, ended: Ended) -> None:
    """Blame after a link without the cache, whose backends were not followed: when a crash or an error names one."""
    suspects = suspects_of(ended, None, link.inputs.modules)
    if ended.returncode < 0 or b"LLVM ERROR" in ended.said or suspects:
        blame(link, ended, suspects)


def _say(link: Link, guilty: list[Guilty], *, complete: bool) -> None:
    others = link.inputs.bitcode - len(guilty)
    note(
        f"{link.request.output}: {len(guilty)} of {link.inputs.bitcode} modules cannot be generated"
        + (f"; the other {others} can" if complete else "; the search was ended there")
    )
    for found in guilty:
        where = f", function {found.function}" if found.function else ""
        note(f"  {found.module.name} ({found.source}){where}: {found.message}")
        if found.reproducer:
            note(f"    reproducer: {found.reproducer}")
    journal.append(
        "link-blamed",
        output=link.request.output,
        modules=[
            {
                "name": found.module.name,
                "source": found.source,
                "function": found.function,
                "reason": found.reason,
                "message": found.message,
                "reproducer": found.reproducer,
            }
            for found in guilty
        ],
    )


def suspects_of(ended: Ended, tasks: Tasks | None, modules: list[Module]) -> list[Module]:
    """Modules to run alone first, most suspicious ones only."""
    # Substitutes for archives and modules have the same identifiers behind another folder.
    lines = [*_error_lines(ended.said), *_MODULE.findall(ended.said.decode("utf-8", "replace"))]
    named = [module for module in modules if any(module.identifier in line for line in lines)]
    if named or tasks is None:
        return named
    waiting = (tasks.module(task) for task in tasks.sort_out()[1])
    return [module for module in waiting if module is not None]


class _Search:
    """Runs of parts of a link. ``complete``: the last run showed that no guilty module is left."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._scratch = tempfile.mkdtemp(prefix="klto-blame-")
        self._root = link.root or os.path.join(self._scratch, "cache")
        self.complete = False

    def close(self) -> None:
        shutil.rmtree(self._scratch, ignore_errors=True)

    def run(self, first: Ended, suspects: list[Module]) -> list[Guilty]:
        """All guilty modules, the ones that fail first, first."""
        guilty: dict[str, Guilty] = {}
        modules = self._link.inputs.modules
        self._judge(first, suspects, guilty)
        while len(guilty) < _MOST:
            others = [module for module in modules if module.name not in guilty]
            ended, suspects = self._try(others)
            if ended.returncode == 0:
                self.complete = True
                break
            before = len(guilty)
            self._judge(ended, [module for module in suspects if module.name not in guilty], guilty)
            if len(guilty) == before:
                self._halve(others, guilty)
            if len(guilty) == before:
                break  # Only together do they fail.
        return list(guilty.values())

    def _judge(self, ended: Ended, suspects: list[Module], guilty: dict[str, Guilty]) -> None:
        """The only one that ran when nothing moved any more is guilty; others are tried alone."""
        if ended.cause == TIMEOUT and len(suspects) == 1:
            guilty[suspects[0].name] = Guilty(suspects[0], ended)
        else:
            self._convict(suspects, guilty)

    def _convict(self, suspects: list[Module], guilty: dict[str, Guilty]) -> None:
        for module in suspects:
            ended, _ = self._try([module])
            if ended.returncode != 0:
                guilty[module.name] = Guilty(module, ended)

    def _halve(self, modules: list[Module], guilty: dict[str, Guilty]) -> None:
        if len(guilty) >= _MOST or not modules:
            return
        ended, _ = self._try(modules)
        if ended.returncode == 0:
            return
        if len(modules) == 1:
            guilty[modules[0].name] = Guilty(modules[0], ended)
            return
        middle = len(modules) // 2
        self._halve(modules[:middle], guilty)
        self._halve(modules[middle:], guilty)

    def _try(self, modules: list[Module]) -> tuple[Ended, list[Module]]:
        """Generate these modules: (how it ended, who is suspect when it failed)."""
        link = self._link
        with CachedLink(self._root, link.linker, link.arguments, link.request, link.inputs) as cached:
            view = cached.view
            if view is None:
                raise OSError(f"{self._root} cannot be used")
            tasks = tasks_in(view, link.inputs, link.request, "remarks", _selected(link.inputs, modules))
            watch = Watch(tasks, link.module_timeout) if tasks and link.module_timeout > 0 else None
            response = os.path.join(self._scratch, "modules.rsp")
            with open(response, "w", encoding="utf-8", errors="surrogateescape") as stream:
                for module in modules:
                    stream.write(f'"--thinlto-single-module={cached.identifier(module)}"\n')
            argv = [
                *(link.linker, *cached.arguments, *(tasks.options if tasks else []), *link.parallel()),
                *("-o", os.path.join(self._scratch, "out.o"), f"@{response}"),
            ]
            ended = Linker(
                argv,
                os.path.join(view.folder, STDERR),
                link.budget.limit,
                write=lambda data: None,
                quiet=True,
                renamed=cached.renamed,
                ends={TIMEOUT: watch.stalled} if watch else None,
            ).wait()
            view.judged = True
            if ended.returncode != 0:
                distrust(view, ended, tasks, link.inputs.modules)
            if stopped_by() is not None:
                raise InterruptedError(f"signal {stopped_by()}")
            suspects = suspects_of(ended, tasks, link.inputs.modules) if ended.returncode else []
        return ended, suspects


def _selected(inputs: Inputs, chosen: list[Module]) -> list[Module]:
    """What the linker selects: every module whose identifier contains a chosen one's (llvm/lib/LTO/LTO.cpp,
    addThinLTO), in the order of the link."""
    names = {module.identifier for module in chosen}
    # The identifier of an archive's member is in no other one.
    short = [name for name in names if not name.endswith(")")]
    return [
        module
        for module in inputs.modules[: inputs.certain]
        if module.identifier in names or any(name in module.identifier for name in short)
    ]


def _reason(ended: Ended) -> str:
    if ended.cause == TIMEOUT:
        return "hang"
    if ended.out_of_memory:
        return "memory"
    # LLVM's fatal errors abort; some builds exit with 1 after "LLVM ERROR".
    return "crash" if ended.returncode < 0 or b"LLVM ERROR" in ended.said else "error"


def _message(said: str, ended: Ended, reason: str) -> str:
    """One line of what the linker said that tells most."""
    lines = [line.strip() for line in said.splitlines()]
    for pattern in ("LLVM ERROR:", "Assertion", "UNREACHABLE", "error:"):
        for line in lines:
            if pattern in line:
                return (
                    line[-300:].removeprefix("ld.lld: ") if len(line) > 300 else line.removeprefix("ld.lld: ")
                )
    if reason == "hang":
        return "its backend got nowhere until --module-timeout"
    if ended.returncode < 0:
        return f"its backend ended the linker with signal {-ended.returncode}"
    return f"its backend ended the linker with status {ended.returncode}"


def _source_of(module: Module) -> str:
    """The source file that the bitcode names."""
    from klto.objects.bitcode import Bitcode
    from klto.objects.errors import MalformedObject

    try:
        sources = [part.properties.source_filename for part in Bitcode(module.data(), module.name).modules]
    except (MalformedObject, OSError):
        sources = []
    return next((source for source in sources if source), "source unknown")


def _blame_function(link: Link, ended: Ended) -> None:
    """Full LTO has one module; a function that LLVM named leads to the input that defines it."""
    from klto.objects.bitcode import Bitcode
    from klto.objects.errors import MalformedObject

    found = _FUNCTION.search(ended.said.decode("utf-8", "replace"))
    function = next((name for name in found.groups() if name), None) if found else None
    if function is None:
        return
    plain = function.partition(".llvm.")[0]
    for module in link.inputs.modules:
        try:
            names = {
                symbol.name for symbol in Bitcode(module.data(), module.name).symbols() if symbol.defined
            }
        except (MalformedObject, OSError):
            continue
        if plain in names:
            guilty = Guilty(module, ended)
            _say(link, [guilty], complete=False)
            return
