"""Parameters that methods share are listed after their own, documented once, and checked in one place."""

import inspect
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.contract import registry
from harness.contract.describe import _entries as entries
from harness.contract.describe import _sections as sections
from harness.contract.describe import describe
from harness.contract.method import Method, parameters
from harness.contract.mixins import OnText, Shareable
from harness.contract.prepared import Prepared
from harness.contract.study import Study
from harness.core.errors import MethodError
from harness.model.weights.mixins import OnLinearsAndHead
from harness.model.weights.zeros import Zeros
from harness.testing.tiny import tiny_decoder


@dataclass(frozen=True, kw_only=True)
class Base(Zeros, Shareable):
    """A method with parameters of its own between those of two mixins.

    Parameters:
        strength: how much.
        state: where the state lies.
    """

    name = "base"
    family = "kv-cache"

    strength: int = 1

    def prepare(self, model: Any, study: Any) -> Prepared:
        return Prepared()

    def attach(self, model: Any, prepared: Prepared) -> nullcontext[None]:
        return nullcontext()


@dataclass(frozen=True, kw_only=True)
class Heir(OnText, OnLinearsAndHead, Base):
    """A method that extends another and takes more mixins.

    Parameters:
        depth: how deep.
        samples: fewer windows.
    """

    name = "heir"

    depth: int = 2
    samples: int = 8


def names(method: type[Method]) -> list[str]:
    return [field.name for field in parameters(method)]


def test_mixins_come_after_a_methods_own_parameters_and_those_that_it_extends() -> None:
    assert names(Base) == ["strength", "sparsity", "pattern", "state"]
    assert names(Heir) == [*names(Base), "depth", "samples", "length", "linears", "layers", "head"]
    method = Heir(length=64, depth=3, samples=4, strength=5)
    assert list(method.params()) == names(Heir)
    assert method.label == "heir:strength=5,depth=3,samples=4,length=64"


def test_what_a_class_does_not_document_its_bases_do() -> None:
    texts = {parameter.name: parameter.text for parameter in describe(Heir).parameters}
    assert (texts["depth"], texts["strength"]) == ("how deep.", "how much.")
    assert (texts["samples"], texts["state"]) == ("fewer windows.", "where the state lies.")  # the nearest wins
    assert texts["length"].startswith("tokens of a window")
    assert all(texts.values())
    assert describe(Heir).summary == "A method that extends another and takes more mixins."


@pytest.mark.parametrize(
    ("args", "error"),
    [
        ({"pattern": "2:4", "sparsity": 0.6}, "heir: pattern=2:4 has sparsity=0.5, not 0.6"),
        ({"state": "nowhere"}, "heir: state=nowhere is no folder"),
    ],
)
def test_every_mixins_check_is_made(args: dict[str, Any], error: str) -> None:
    with pytest.raises(MethodError, match=error):
        Heir.from_args(args)


def test_a_given_state_needs_no_preparation(tmp_path: Path) -> None:
    assert Heir().needs_preparation
    assert not Heir(state=tmp_path).needs_preparation


def test_windows_are_cut_to_the_models_positions() -> None:
    model, text = tiny_decoder("llama"), Study(("word " * 200,), "a text")
    assert [window.shape for window in Heir(samples=2, length=512).windows(model, text)] == [(1, 256), (1, 256)]
    assert Heir(length=16).window_length(SimpleNamespace(config=object())) == 16


def test_linear_layers_are_chosen_by_name_layer_and_head() -> None:
    model = tiny_decoder("llama")
    sites = Heir(linears="*.q_proj", layers="1/3").sites(model)
    assert [site.name for site in sites] == ["model.layers.1.self_attn.q_proj", "model.layers.3.self_attn.q_proj"]
    assert len(Heir(head=True).sites(model)) == len(Heir().sites(model)) + 1


BUILT_IN = {item.name: item.method for item in registry.listings() if item.built_in and item.method}


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_parameter_is_documented_once_where_it_is_declared(name: str) -> None:
    method = BUILT_IN[name]
    assert all(parameter.text for parameter in describe(method).parameters)
    for base in method.__mro__:
        _, parts = sections(inspect.cleandoc(vars(base).get("__doc__") or ""))
        assert set(entries(parts.get("Parameters", ""))) <= set(vars(base).get("__annotations__", {}))
