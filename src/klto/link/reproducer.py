"""Keeps what is needed to see one module's backend fail again, away from the tree: a folder with a ``run.sh``."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess

from klto.link.includes import Uncacheable, included_names, may_include
from klto.objects.errors import MalformedObject

TYPE_CHECKING = False
if TYPE_CHECKING:
    from klto.link.blame import Guilty
    from klto.link.inputs import Module
    from klto.link.run import Link

#: Seconds that the trial of a reproducer may take when no module timeout is set.
_TRIAL = 600.0

_SCRIPT = """#!/bin/sh
# The backend of {name} ({source}), as klto saw it fail:
#   {message}
# LD names another linker.
cd "$(dirname "$0")" || exit 2
exec "${{LD:-{linker}}}" {options} -o out.o --thinlto-single-module={module} @inputs.rsp
"""


def keep_reproducer(link: Link, guilty: Guilty, root: str) -> str | None:
    """Make a reproducer and try it: the module with those it imports from, or with all when that is not enough.

    :returns: its ``run.sh``; None when not even all inputs show the failure again, which a note says.
    """
    from klto.link.cached import note

    module = guilty.module
    place = re.sub(r"[^A-Za-z0-9_.-]+", "-", f"{os.path.basename(link.request.output)}-{module.name}").strip(
        "-"
    )
    folder = os.path.join(root, place)
    imports = _imports(link, module, folder)
    for chosen in ([module, *imports], link.inputs.modules):
        try:
            script = _write(link, guilty, chosen, folder)
        except (OSError, MalformedObject) as problem:
            note(f"no reproducer for {module.name}: {problem}")
            return None
        if _shows(script, guilty, link.module_timeout or _TRIAL):
            return script
    note(f"{module.name} does not fail apart from this link: no reproducer")
    shutil.rmtree(folder, ignore_errors=True)
    return None


def _imports(link: Link, module: Module, folder: str) -> list[Module]:
    """The modules that ``module`` imports from, by a thin link; its index is kept in the folder."""
    shutil.rmtree(folder, ignore_errors=True)
    shards = os.path.join(folder, "thin-link")
    os.makedirs(shards)
    done = subprocess.run(
        [
            *(link.linker, *link.arguments, "--thinlto-index-only", "--thinlto-emit-imports-files"),
            *(f"--thinlto-prefix-replace=;{shards}/", "-o", os.path.join(shards, "out.o")),
        ],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
        timeout=_TRIAL,
    )
    found: list[Module] = []
    index = f"{shards}/{module.identifier}"
    if done.returncode == 0 and os.path.exists(f"{index}.imports"):
        with open(f"{index}.imports", encoding="utf-8", errors="surrogateescape") as stream:
            names = {line.rstrip("\n") for line in stream}
        found = [other for other in link.inputs.modules if other.identifier in names]
        shutil.move(f"{index}.thinlto.bc", os.path.join(folder, "index.thinlto.bc"))
        shutil.move(f"{index}.imports", os.path.join(folder, "index.imports"))
    shutil.rmtree(shards)
    return found


def _write(link: Link, guilty: Guilty, chosen: list[Module], folder: str) -> str:
    module = guilty.module
    inputs = os.path.join(folder, "inputs")
    shutil.rmtree(inputs, ignore_errors=True)
    os.makedirs(inputs)
    names = []
    for number, each in enumerate(chosen):
        name = (
            f"inputs/{number}-{os.path.basename(each.path or each.name).replace(')', '').replace('(', '-')}"
        )
        data = bytes(each.data())
        with open(os.path.join(folder, name), "wb") as stream:
            stream.write(data)
        names.append((each, name))
        _copy_included(data, each.name, folder)
    with open(os.path.join(folder, "inputs.rsp"), "w", encoding="utf-8") as stream:
        stream.write("".join(f"{name}\n" for _, name in names))
    mine = next(name for each, name in names if each is module)
    script = os.path.join(folder, "run.sh")
    text = _SCRIPT.format(
        name=module.name,
        source=guilty.source,
        message=guilty.message,
        linker=link.linker,
        options=shlex.join(_options(link, folder)),
        module=shlex.quote(mine),
    )
    with open(script, "w", encoding="utf-8", errors="surrogateescape") as stream:
        stream.write(text)
    os.chmod(script, 0o755)
    return script


def _options(link: Link, folder: str) -> list[str]:
    """The link's options without inputs and results; files that they name are copied."""
    options: list[str] = []
    inputs = set(link.request.inputs)
    words = iter(link.request.words)
    for word in words:
        if word in ("-o", "--output"):
            next(words, None)
        elif word not in inputs and not word.startswith("--output="):
            options.append(_copied(word, folder))
    return options


def _copied(word: str, folder: str) -> str:
    if word.startswith("-") or not os.path.isfile(word):
        return word
    name = os.path.basename(word)
    shutil.copyfile(word, os.path.join(folder, name))
    return name


def _copy_included(data: bytes, where: str, folder: str) -> None:
    """Files that the module's assembly includes, under the same relative names."""
    if not may_include(data):
        return
    try:
        names = included_names(data, where)
    except Uncacheable:
        return  # Which file it is cannot be told; the trial shows whether it matters.
    for name in names:
        if not os.path.isabs(name) and ".." not in name.split("/") and os.path.isfile(name):
            place = os.path.join(folder, name)
            os.makedirs(os.path.dirname(place), exist_ok=True)
            shutil.copyfile(name, place)


def _shows(script: str, guilty: Guilty, timeout: float) -> bool:
    """Whether the script shows the same failure."""
    try:
        done = subprocess.run(
            [script], stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout + 1, check=False
        )
    except subprocess.TimeoutExpired:
        return guilty.reason == "hang"
    said = (done.stdout + done.stderr).decode("utf-8", "replace")
    if guilty.reason == "error":
        # Behind the module's name, which is another one here.
        return done.returncode != 0 and guilty.message.rpartition(": ")[2] in said
    return done.returncode < 0 or (done.returncode != 0 and "LLVM ERROR" in said)
