"""CONTRIBUTING.md's table of rooms: it names all of them, and each imports only from those above it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

_ROOT = Path(__file__).parents[2]
_SOURCE = _ROOT / "src/klto"


def _rooms() -> list[str]:
    return re.findall(r"^\| `(\w+)/` \|", (_ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)


def _imported(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports are absolute here"
            yield from (f"{node.module}.{name.name}" for name in node.names)
        elif isinstance(node, ast.Import):
            yield from (name.name for name in node.names)


def test_all_rooms_are_in_the_table() -> None:
    assert sorted(_rooms()) == sorted(path.parent.name for path in _SOURCE.glob("*/__init__.py"))


def test_rooms_import_from_those_above_them() -> None:
    rooms = _rooms()
    found, wrong = 0, []
    for place, room in enumerate(rooms):
        for file in (_SOURCE / room).rglob("*.py"):
            for name in _imported(file):
                package, _, rest = name.partition(".")
                other = rest.partition(".")[0]
                if package == "klto" and other in rooms and other != room:
                    found += 1
                    if rooms.index(other) > place and file.name != "__main__.py":
                        wrong.append(f"{file.relative_to(_ROOT)}: {name}")
    assert found > 100
    assert wrong == []
