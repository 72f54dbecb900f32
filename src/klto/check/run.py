"""Runs rules over files, over the inputs of a link, and over a build dir."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path

from klto.check.aside import Aside
from klto.check.build_dir import BuildDir
from klto.check.finding import Finding, Level, in_order
from klto.check.link_inputs import LinkInputs
from klto.check.roles import role_of
from klto.check.rule import Rule, all_rules
from klto.check.saved import read_saved
from klto.check.subject import Subject
from klto.errors import UsageError
from klto.objects.archive import Archive, leaves
from klto.objects.errors import MalformedObject
from klto.objects.kind import kind_of, kind_of_bytes
from klto.objects.object_file import parse_object
from klto.objects.source import read_whole

#: What stands for a file that no rule can look at.
MALFORMED = "malformed"
#: Findings by rule; under "" those of all rules before the link.
_Found = dict[str, list[Finding]]
_OBJECT_SUFFIXES = (".o", ".ko", ".a", ".ro", ".elf", ".so", ".so.dbg")


def check_link(link: LinkInputs, rules: Sequence[Rule] | None = None) -> list[Finding]:
    """What can be said before the link, from its inputs."""
    chosen = all_rules() if rules is None else rules
    found = [malformed_finding(error) for error in link.unreadable]
    for rule in chosen:
        for _, subject in link.native:
            found += _guarded(lambda r=rule, s=subject: r.of_object(s))  # type: ignore[misc]
        found += _guarded(lambda r=rule: r.of_link(link))  # type: ignore[misc]
    return in_order(_once(found))


def check_build(
    build: BuildDir, rules: Sequence[Rule] | None = None, *, inputs: bool = True, aside: bool = False
) -> list[Finding]:
    """What can be said of a build dir.

    :param inputs: look at the inputs of the vmlinux.o link too, which :func:`check_link` may have done.
    :param aside: read the inputs of the link in a process of its own; only where there are no threads.
    """
    chosen = all_rules() if rules is None else rules

    def of_link() -> _Found:
        found: _Found = {"": check_link(build.link, chosen)} if inputs else {}
        for rule in chosen:
            if rule.asks_link:
                found[rule.slug] = _guarded(lambda r=rule: r.of_build(build))  # type: ignore[misc]
        return found

    def of_artifacts() -> _Found:
        found: _Found = {rule.slug: [] for rule in chosen}
        for subject in build.subjects():
            for rule in chosen:
                found[rule.slug] += _guarded(lambda r=rule, s=subject: r.of_object(s))  # type: ignore[misc]
            subject.close()
        for rule in chosen:
            if not rule.asks_link:
                found[rule.slug] += _guarded(lambda r=rule: r.of_build(build))  # type: ignore[misc]
        return found

    if aside:
        with Aside(of_link) as other:
            ours = of_artifacts()
            theirs = other.result()
    else:
        ours, theirs = of_artifacts(), of_link()
    found = theirs.pop("", [])
    for rule in chosen:
        found += [*ours.get(rule.slug, ()), *theirs.get(rule.slug, ())]
    found += [malformed_finding(error) for error in build.malformed.values()]
    return in_order(_once(found))


def check_paths(paths: Iterable[str], rules: Sequence[Rule] | None = None) -> list[Finding]:
    """What can be said of files and folders: each object by itself, and all of their bitcode as one link.

    :raises UsageError: for a path that does not exist, or when none of them is an object.
    """
    chosen = all_rules() if rules is None else rules
    found: list[Finding] = []
    subjects: list[Subject] = []
    linked: dict[str, str] = {}
    around = cache(_build_around)
    for path in paths:
        if not os.path.exists(path):
            raise UsageError(f"{path}: no such file or folder")
        for file in _objects_below(path, found):
            if os.path.realpath(file) in linked:
                continue  # Named twice, or below a folder that is named, too.
            linked[os.path.realpath(file)] = file
            build = around(os.path.dirname(os.path.abspath(file)))
            subjects += _subjects_of(file, build.tree if build else None, found)
    if not subjects and not found:
        raise UsageError(f"{', '.join(paths)}: no ELF or bitcode object", "give objects, archives or folders")
    bitcode = any(subject.object.bitcode is not None for subject in subjects)
    link = LinkInputs("the link of these", linked.values() if bitcode else ())
    for rule in chosen:
        for subject in subjects:
            found += _guarded(lambda r=rule, s=subject: r.of_object(s))  # type: ignore[misc]
        if bitcode:
            found += _guarded(lambda r=rule: r.of_link(link))  # type: ignore[misc]
    return in_order(_once(found))


def _subjects_of(file: str, tree: Path | None, found: list[Finding]) -> list[Subject]:
    """The objects in a file: itself, or an archive's members. What cannot be read is found."""
    subjects: list[Subject] = []
    try:
        data = read_whole(file)
        if kind_of_bytes(data) in ("elf", "bitcode"):
            role = role_of(os.path.abspath(file))
            return [Subject(file, parse_object(data, file), read_saved(file), role, tree)]
        for member in leaves(Archive(file, data)):
            try:
                content = member.data()
                if not len(content):
                    raise MalformedObject(member.where, None, "is empty")
                read = parse_object(content, member.where)
            except MalformedObject as error:
                found.append(malformed_finding(error))
                continue
            if read.kind in ("elf", "bitcode"):
                command = read_saved(member.path) if member.path else None
                subjects.append(Subject(member.path or member.where, read, command))
    except MalformedObject as error:
        found.append(malformed_finding(error))
    return subjects


def _build_around(folder: str) -> BuildDir | None:
    """The build dir that a folder is in, as far as its own files say so."""
    for place in (Path(folder), *Path(folder).parents):
        if (place / ".config").is_file() and (place / "include/config/auto.conf").is_file():
            return BuildDir(place)
    return None


def _objects_below(path: str, found: list[Finding]) -> list[str]:
    """The file itself, or a folder's objects, by name. Objects that are empty are found."""
    if not os.path.isdir(path):
        if os.path.isfile(path) and os.path.getsize(path) == 0:
            raise UsageError(
                f"{path}: is empty", "build it again: something has stopped before it was written"
            )
        if kind_of(path) == "other":
            raise UsageError(
                f"{path}: neither ELF nor bitcode nor an archive",
                "give objects, archives, kernel modules, or vmlinux in place of a boot image",
            )
        return [path]
    files = []
    for folder, folders, names in os.walk(path):
        folders.sort()
        for name in sorted(names):
            file = os.path.join(folder, name)
            if not name.endswith(_OBJECT_SUFFIXES) or not os.path.isfile(file):
                continue
            try:
                if kind_of(file) in ("elf", "bitcode"):
                    files.append(file)
                elif os.path.getsize(file) == 0:
                    raise MalformedObject(file, None, "is empty")
            except MalformedObject as error:
                found.append(malformed_finding(error))
    return files


def _guarded(rule: Callable[[], Iterable[Finding]]) -> list[Finding]:
    """A rule's findings; a broken file is a finding, and the end of what the rule can say of it."""
    found: list[Finding] = []
    try:
        for finding in rule():
            found.append(finding)
    except MalformedObject as error:
        found.append(malformed_finding(error))
    return found


def malformed_finding(error: MalformedObject) -> Finding:
    """The finding for a file that cannot be read."""
    return Finding(
        rule=MALFORMED,
        level=Level.ERROR,
        artifact=error.where,
        message=f"cannot be read: {error.problem}",
        offset=error.offset,
        remedies=("remove it and build again: it was cut short, or is not what its name says",),
    )


def _once(findings: Iterable[Finding]) -> list[Finding]:
    return list(dict.fromkeys(findings))
