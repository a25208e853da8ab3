"""The house: which room may import which. Arrows point down, without circles, and rooms do not share secrets."""

import ast
import subprocess
import sys
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


def test_reports_and_leaderboard_import_no_torch() -> None:
    """With all that they use: results, the arithmetic of measure, descriptions of methods."""
    program = """
import importlib, pkgutil, sys
for name in ("harness.reports", "harness.leaderboard"):
    package = importlib.import_module(name)
    for module in pkgutil.walk_packages(package.__path__, f"{name}."):
        importlib.import_module(module.name)
assert "harness.leaderboard.rules" in sys.modules
print(*{name.partition(".")[0] for name in sys.modules} & {"torch", "transformers", "lm_eval", "datasets"})
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_from_below(room: str) -> None:
    up = [
        f"{path.relative_to(ROOT)} imports {module}"
        for path in files(room)
        for module in imports(path)
        if module.split(".")[1] not in {*ROOMS[room], room}
    ]
    assert not up
