"""An unknown name is answered with those that are near."""

import pytest

from harness.core.errors import HarnessError, UnknownNameError


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
