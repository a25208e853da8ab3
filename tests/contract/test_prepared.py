"""A prepared state is made once, belongs to what it was made for, and is never pickled."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.contract.method import Method
from harness.contract.preparation import Preparation
from harness.contract.prepared import Prepared
from harness.contract.states import States
from harness.contract.study import Study
from harness.core.errors import DiskError, MethodError
from harness.methods.dense import Dense
from tests.toys import Paper, Toy, toy_model

KEY = {"method": "m", "model": "n"}
TEXT = Study(("text",), "a text")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "prepared" / "state"


def states(folder: Path) -> list[Path]:
    """Everything in the cache but the locks."""
    return [path for path in folder.iterdir() if path.name != ".locks"]


def test_a_state_comes_back_as_it_was(folder: Path) -> None:
    tensors = {"mask": torch.tensor([[True, False]]), "scale": torch.tensor([1.5, float("nan")], dtype=torch.bfloat16)}
    facts = {"dropped": [["mlp", 3]], "scores": [0.1, float("inf")], "name": "é"}
    Prepared(tensors, facts).save(folder, KEY)
    loaded = Prepared.load(folder, KEY)
    assert loaded.facts == facts
    assert loaded.tensors.keys() == tensors.keys()
    for name, tensor in tensors.items():
        torch.testing.assert_close(loaded.tensors[name], tensor, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("tensor", [torch.ones(2, 3).T, torch.ones(4, requires_grad=True), torch.ones(2, 2)[:, 1]])
def test_a_view_is_saved_as_its_values(tensor: torch.Tensor, folder: Path) -> None:
    Prepared({"a": tensor}).save(folder, KEY)
    assert torch.equal(Prepared.load(folder, KEY).tensors["a"], tensor)


def test_a_state_is_two_plain_files(folder: Path) -> None:
    Prepared({"a": torch.rand(8)}, {"b": 1}).save(folder, KEY)
    assert {path.name for path in folder.iterdir()} == {"state.safetensors", "state.json"}
    assert json.loads((folder / "state.json").read_text()) == {"key": KEY, "facts": {"b": 1}}
    assert list(folder.parent.iterdir()) == [folder]


@pytest.mark.parametrize("name", KEY)
def test_a_state_made_for_something_else_is_refused(name: str, folder: Path) -> None:
    Prepared().save(folder, KEY)
    with pytest.raises(MethodError, match=f"was made for another {name}"):
        Prepared.load(folder, KEY | {name: "other"})


CORRUPT: dict[str, Callable[[Path], Any]] = {
    "no facts file": lambda folder: (folder / "state.json").unlink(),
    "no tensors file": lambda folder: (folder / "state.safetensors").unlink(),
    "cut facts": lambda folder: (folder / "state.json").write_text('{"key": {"me'),
    "not text": lambda folder: (folder / "state.json").write_bytes(b"\xff\xfe\x00"),
    "a list": lambda folder: (folder / "state.json").write_text("[]"),
    "null": lambda folder: (folder / "state.json").write_text("null"),
    "no key": lambda folder: (folder / "state.json").write_text('{"facts": {}}'),
    "facts not a mapping": lambda folder: rewrite(folder, facts=3),
    "facts missing": lambda folder: rewrite(folder, facts=None),
    "key null": lambda folder: rewrite(folder, key=None),
    "key of another": lambda folder: rewrite(folder, key={}),
    "cut tensors": lambda folder: (folder / "state.safetensors").write_bytes(b"\x08"),
    "empty tensors": lambda folder: (folder / "state.safetensors").write_bytes(b""),
    "a pickle": lambda folder: torch.save({"a": torch.ones(1)}, folder / "state.safetensors"),
}


def rewrite(folder: Path, **changes: Any) -> None:
    stored = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps(stored | changes))


@pytest.mark.parametrize("what", CORRUPT)
def test_a_corrupt_state_is_refused_in_a_sentence(what: str, folder: Path) -> None:
    Prepared().save(folder, KEY)
    CORRUPT[what](folder)
    with pytest.raises(MethodError, match=r"prepared state in .* (cannot be read|was made for another)"):
        Prepared.load(folder, KEY)


@pytest.mark.parametrize("what", CORRUPT)
def test_a_corrupt_state_is_prepared_again_and_said(what: str, tmp_path: Path) -> None:
    said: list[str] = []
    preparation, model = Preparation(States(tmp_path), TEXT, said.append), toy_model()
    good = preparation.state(Toy(), model)
    (stored,) = states(tmp_path)
    CORRUPT[what](stored)
    assert preparation.state(Toy(), model) == good
    assert "preparing again" in said[1]
    assert preparation.state(Toy(), model) == good
    assert len(model.log) == 2


def test_a_state_is_prepared_once(tmp_path: Path) -> None:
    said: list[str] = []
    model = toy_model()
    states = [Preparation(States(tmp_path), TEXT, said.append).state(Toy(), model) for _ in range(3)]
    assert states[0] == states[1] == states[2]
    assert len(model.log) == 1
    assert said == ["preparing toy on a text"]


class Loose(Toy):
    """Leaves behind what JSON does not have."""

    def prepare(self, model: Any, study: Any) -> Prepared:
        return Prepared(facts={"layers": (1, 2), "by_layer": {3: 0.5}})


def test_the_first_run_is_given_what_later_ones_are(tmp_path: Path) -> None:
    first, second = (Preparation(States(tmp_path), TEXT).state(Loose(), toy_model()) for _ in range(2))
    assert first.facts == second.facts == {"layers": [1, 2], "by_layer": {"3": 0.5}}


@pytest.mark.parametrize(
    ("method", "text", "model", "below"),
    [
        (Toy(count=5), TEXT, "model", ()),
        (Paper(), TEXT, "model", ()),
        (Toy(), Study(("other",), "a text"), "model", ()),
        (Toy(), TEXT, "another", ()),
        (Toy(), TEXT, "model", ("below",)),
    ],
)
def test_what_determines_a_state_makes_another(
    method: Method, text: Study, model: str, below: tuple[str, ...], tmp_path: Path
) -> None:
    Preparation(States(tmp_path), TEXT).state(Toy(), toy_model())
    Preparation(States(tmp_path), text).state(method, toy_model(model), below)
    assert len(states(tmp_path)) == 2


def test_the_name_of_the_text_makes_no_difference(tmp_path: Path) -> None:
    for source in ("here", "there"):
        Preparation(States(tmp_path), Study(("text",), source)).state(Toy(), toy_model())
    assert len(states(tmp_path)) == 1


def test_a_method_without_preparation_leaves_nothing_behind(tmp_path: Path) -> None:
    assert Preparation(States(tmp_path), TEXT).state(Dense(), toy_model()) == Prepared()
    assert states(tmp_path) == []


def test_a_failed_preparation_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Toy, "prepare", lambda *_: Prepared(facts={"what": object()}))
    with pytest.raises(TypeError):
        Preparation(States(tmp_path), TEXT).state(Toy(), toy_model())
    assert states(tmp_path) == []


@pytest.mark.parametrize("kind", ["OSError", "SafetensorError"])
def test_a_full_disk_is_said(kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import safetensors.torch

    error = OSError(28, "No space left") if kind == "OSError" else safetensors.SafetensorError("I/O error: code: 28")

    def save_file(*_: Any) -> None:
        raise error

    monkeypatch.setattr(safetensors.torch, "save_file", save_file)
    with pytest.raises(DiskError):
        Prepared().save(folder, KEY)
    assert list(folder.parent.iterdir()) == []
