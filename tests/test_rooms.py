"""The house: which room may import which. Arrows point down, without circles, and rooms do not share secrets."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

ROOMS = {
    "core": set(),
    "contract": {"core"},
    "results": {"core"},
    "model": {"contract", "core", "tasks"},
    "measure": {"model", "results", "contract", "core"},
    "evaluate": {"measure", "model", "results", "contract", "core", "tasks"},
    "testing": {"evaluate", "measure", "model", "results", "contract", "core"},
    "run": {"evaluate", "measure", "model", "results", "contract", "core"},
    "cli": {"run", "testing", "evaluate", "measure", "model", "results", "contract", "core", "reports", "leaderboard"},
    "methods": {"model", "contract", "core"},
    "tasks": {"core"},
    "reports": {"results", "measure", "contract", "core"},
    "leaderboard": {"reports", "results", "measure", "contract", "core"},
}
"""For each room below ``harness``, the rooms that it may import, besides itself."""


def imports(path: Path) -> Iterator[str]:
    """Modules of the project that a file imports anywhere, also for annotations alone."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("harness."))
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"harness.{alias.name}" for alias in node.names] if node.module == "harness" else [node.module]
            yield from (name for name in names if name.split(".")[0] == "harness" and "." in name)


def files(room: str) -> list[Path]:
    folder = ROOT / room if (ROOT / room).is_dir() else ROOT / "harness" / room
    return sorted(folder.rglob("*.py"))


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_from_below(room: str) -> None:
    up = [
        f"{path.relative_to(ROOT)} imports {module}"
        for path in files(room)
        for module in imports(path)
        if module.split(".")[1] not in {*ROOMS[room], room}
    ]
    assert not up
