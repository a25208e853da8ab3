"""The house: which room may import which. Arrows point down, without circles, and rooms do not share secrets."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
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
    "sweep": {"run", "evaluate", "measure", "model", "results", "contract", "core"},
    "analyze": {"measure", "model", "contract", "core"},
    "cli": {
        "analyze",
        "sweep",
        "run",
        "testing",
        "evaluate",
        "measure",
        "model",
        "results",
        "contract",
        "core",
        "reports",
        "leaderboard",
    },
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
            within = [f"{node.module}.{alias.name}" for alias in node.names]
            names = {name if name in modules() else node.module for name in within}
            yield from (name for name in names if name.startswith("harness."))


@cache
def modules() -> dict[str, Path]:
    """The project's modules by name."""
    found = {}
    for room in ROOMS:
        for path in files(room):
            base = path.relative_to(ROOT if (ROOT / room).is_dir() else ROOT / "harness").with_suffix("")
            found[".".join(["harness", *base.parts]).removesuffix(".__init__")] = path
    return found


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


def test_no_module_is_loose() -> None:
    assert {path.name for path in (ROOT / "harness").glob("*.py")} == {"__init__.py", "__main__.py"}
    rooms = {path.name for path in (ROOT / "harness").iterdir() if (path / "__init__.py").is_file()}
    assert rooms == ROOMS.keys() - {"methods", "tasks", "reports", "leaderboard"}


def test_imports_go_round_in_no_circle() -> None:
    """Not even for annotations alone: what two modules need of each other belongs below both."""
    pending = {name: set(imports(path)) & modules().keys() - {name} for name, path in modules().items()}
    while free := {name for name, imported in pending.items() if not imported & pending.keys()}:
        pending = {name: imported for name, imported in pending.items() if name not in free}
    assert not pending, f"in a circle, or above one: {sorted(pending)}"
