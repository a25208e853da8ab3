"""An unknown name is answered with those that are near."""

import ast

import pytest

from harness.core import errors
from harness.core.errors import HarnessError, UnknownNameError
from tests.conftest import ROOT


@pytest.mark.parametrize(
    ("name", "known", "message"),
    [
        ("layerdrop", ["layer-drop", "dense"], "unknown method 'layerdrop'. Did you mean 'layer-drop'?"),
        ("arc", ["arc_a", "arc_b"], "unknown method 'arc'. Did you mean 'arc_b' or 'arc_a'?"),
        ("xyzzy", ["layer-drop", "dense"], "unknown method 'xyzzy'."),
        ("dense", [], "unknown method 'dense'."),
        ("", ["dense"], "unknown method ''."),
        ("dnse", ["dense", "dense"], "unknown method 'dnse'. Did you mean 'dense'?"),
    ],
)
def test_near_names_are_suggested(name: str, known: list[str], message: str) -> None:
    assert str(UnknownNameError("method", name, known)) == message


def test_three_suggestions_are_enough() -> None:
    assert len(UnknownNameError("method", "arc", [f"arc{number}" for number in range(9)]).suggestions) == 3


def test_the_reader_is_told_where_to_look() -> None:
    error = UnknownNameError("task", "x", [], see="`harness ls tasks` lists them.")
    assert str(error) == "unknown task 'x'. `harness ls tasks` lists them."
    assert isinstance(error, HarnessError)


def test_the_tree_of_errors_is_drawn_whole_and_lives_in_one_module() -> None:
    drawn = [line.split("+ ")[1].split()[0] for line in (errors.__doc__ or "").splitlines() if "+ " in line]
    assert sorted(drawn) == sorted(error.__name__ for error in HarnessError.__subclasses__())
    elsewhere = [
        f"{path.relative_to(ROOT)}: {node.name}"
        for room in ("harness", "methods", "tasks", "reports", "leaderboard")
        for path in (ROOT / room).rglob("*.py")
        if path.name != "errors.py"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef) and any(getattr(base, "id", "") == "HarnessError" for base in node.bases)
    ]
    assert not elsewhere
