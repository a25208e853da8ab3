"""A method's parameters are checked in one place, and its fingerprint changes with whatever can change a result."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from harness.contract import registry
from harness.contract.method import Method
from harness.contract.stack import parse
from harness.core.errors import MethodError, UnknownNameError
from tests.conftest import ROOT
from tests.toys import Needy, Toy, write_method


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("share", "0.25", 0.25),
        ("share", "1e-3", 0.001),
        ("count", "7", 7),
        ("unit", "mlp", "mlp"),
        ("flag", "true", True),
        ("flag", "0", False),
        ("folder", "a/b", Path("a/b")),
    ],
)
def test_a_string_becomes_the_parameters_type(name: str, text: str, value: Any) -> None:
    method = Toy.from_args({name: text})
    assert getattr(method, name) == value
    assert type(getattr(method, name)) is type(value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("share", 1.01),
        ("share", -0.01),
        ("share", "nan"),
        ("share", float("inf")),
        ("share", "half"),
        ("share", None),
        ("count", 0),
        ("count", 1.5),
        ("count", "1.5"),
        ("count", ""),
        ("unit", "layer"),
        ("unit", "Block"),
        ("flag", "maybe"),
        ("layers", "3"),
        ("note", None),
    ],
)
def test_a_wrong_value_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(MethodError, match=rf"toy: {name}=.* is not valid: "):
        Toy(**{name: value})


def test_the_range_is_stated() -> None:
    with pytest.raises(MethodError, match=r"count=0 is not valid: Input should be greater than or equal to 1"):
        Toy(count=0)


def test_a_method_checks_combinations_itself() -> None:
    with pytest.raises(MethodError, match="flag needs unit=block"):
        Toy.from_args({"flag": "1", "unit": "mlp"})


def test_an_unknown_argument_is_refused_with_those_there_are() -> None:
    with pytest.raises(
        UnknownNameError, match=r"argument of toy 'cuont'. Did you mean 'count'.* It takes: share, count, "
    ):
        Toy.from_args({"cuont": 1})


def test_a_missing_argument_is_asked_for() -> None:
    with pytest.raises(MethodError, match="needy needs state: write needy:state=VALUE"):
        Needy.from_args({})


def test_parameters_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        Toy().count = 3  # type: ignore[misc]


def test_params_are_json_values() -> None:
    assert Toy(layers=(1, 2), tags=frozenset("ba"), folder=Path("x")).params() == {
        "share": 0.5,
        "count": 4,
        "unit": "block",
        "flag": False,
        "layers": [1, 2],
        "tags": ["a", "b"],
        "folder": "x",
        "note": "",
    }


@pytest.mark.parametrize(
    ("args", "label"),
    [
        ({}, "toy"),
        ({"count": 4}, "toy"),
        ({"count": 5, "share": 0.25}, "toy:share=0.25,count=5"),
        ({"layers": (3, 4)}, "toy:layers=3/4"),
        ({"tags": frozenset({"c", "a", "b"})}, "toy:tags=a/b/c"),
        ({"flag": True}, "toy:flag=True"),
    ],
)
def test_the_label_names_what_differs_from_the_defaults(args: dict[str, Any], label: str) -> None:
    assert Toy(**args).label == label


@pytest.mark.parametrize("label", ["dense", "layer-drop:count=2", "layer-drop:unit=mlp,count=2,layers=1/3"])
def test_a_label_can_be_given_back(label: str) -> None:
    assert parse(label).label == label


@pytest.mark.parametrize(
    "args", [{"count": 5}, {"share": 0.51}, {"flag": True}, {"layers": (1,)}, {"tags": frozenset("a")}, {"note": "n"}]
)
def test_each_parameter_changes_the_fingerprint(args: dict[str, Any]) -> None:
    assert Toy(**args).fingerprint != Toy().fingerprint


def test_equal_methods_have_one_fingerprint() -> None:
    assert Toy.from_args({"count": "5", "share": "1"}).fingerprint == Toy(share=1, count=5).fingerprint


def test_a_subclass_is_another_method() -> None:
    assert Needy(state="").fingerprint != Toy().fingerprint


def test_an_edited_file_is_another_method(tmp_path: Path) -> None:
    def fingerprint(folder: str, body: str) -> str:
        path = write_method(tmp_path / folder / "m.py", body=body)
        return registry.from_file(path, "Loose")().fingerprint

    assert fingerprint("a", "one") == fingerprint("b", "one")
    assert fingerprint("a", "one") != fingerprint("c", "other")


def test_an_edited_base_class_is_another_method(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    child = tmp_path / "child.py"
    child.write_text(
        "import a_base, dataclasses\n@dataclasses.dataclass(frozen=True)\nclass Child(a_base.Loose): ...\n"
    )

    def fingerprint(body: str) -> str:
        write_method(tmp_path / body / "a_base.py", body=body)
        monkeypatch.syspath_prepend(tmp_path / body)
        monkeypatch.delitem(sys.modules, "a_base", raising=False)
        return registry.from_file(child, "Child")().fingerprint

    assert fingerprint("one") != fingerprint("other")


PRINT = """
from tests.toys import Toy
print(Toy(tags=frozenset(["aa", "b", "ccc", "d"]), share=0.1, layers=(2, 1)).fingerprint)
"""


def test_the_fingerprint_is_the_same_in_every_process() -> None:
    seen = {
        subprocess.run(
            [sys.executable, "-c", PRINT],
            env={**os.environ, "PYTHONHASHSEED": seed},
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for seed in ("1", "2", "3")
    }
    assert seen == {Toy(tags=frozenset(["d", "ccc", "b", "aa"]), share=0.1, layers=(2, 1)).fingerprint}


def test_only_a_method_with_a_preparation_of_its_own_needs_one() -> None:
    assert Toy().needs_preparation
    assert not parse("dense").needs_preparation


def test_a_method_must_say_how_it_attaches() -> None:
    assert Method.__abstractmethods__ == {"attach"}
