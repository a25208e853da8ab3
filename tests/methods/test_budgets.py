"""Sparsities that differ from layer to layer, by where weights stand out, and zeros that are drawn by lot."""

from pathlib import Path
from typing import Any

import pytest
import torch

from harness.contract.preparation import Preparation
from harness.contract.stack import parse
from harness.contract.states import States
from harness.contract.study import Study
from harness.core.errors import MethodError
from harness.methods.pruning.magnitude import Magnitude
from harness.methods.pruning.random import Random
from harness.methods.pruning.sparse_gpt import SparseGPT
from harness.methods.pruning.wanda import Wanda
from harness.model.weights.linear import kernel_counts, sites
from harness.model.weights.owl import owl
from harness.testing.snapshot import changes, model_snapshot
from harness.testing.tiny import tiny_decoder

TEXT = Study(("The keeper of the light wrote down every ship that passed. " * 8,), "a sentence")
SMALL: dict[str, Any] = {"samples": 2, "length": 48}


def windows(decoder: Any) -> list[torch.Tensor]:
    return list(TEXT.windows(decoder, count=2, length=48))


def zeros(decoder: Any, layer: int) -> float:
    """The share of zeros in a layer's linear layers."""
    weights = [site.weight for site in sites(decoder, layers=[layer])]
    return sum(int((weight == 0).sum()) for weight in weights) / sum(weight.numel() for weight in weights)


@torch.no_grad()
def test_layers_where_more_stands_out_keep_more_and_the_whole_loses_what_is_asked() -> None:
    decoder = tiny_decoder("llama")
    sites(decoder, layers=[2])[-1].weight[:, :2] *= 50
    before, chosen = model_snapshot(decoder), sites(decoder)
    sparsity = owl(decoder, windows(decoder), chosen, sparsity=0.6, outliers=5.0, spread=0.1)
    assert not changes(before, model_snapshot(decoder))
    assert min(sparsity) == sparsity[2]
    assert max(sparsity) - min(sparsity) == pytest.approx(0.2)
    counts = [sum(site.weight.numel() for site in chosen if site.layer == layer) for layer in range(4)]
    lost = sum(share * count for share, count in zip(sparsity, counts, strict=True))
    assert lost == pytest.approx(0.6 * sum(counts))


@torch.no_grad()
def test_it_is_the_papers_formula() -> None:
    decoder = tiny_decoder("gpt2", layers=3)
    chosen = sites(decoder)
    squares = {site.name: torch.zeros(site.weight.shape[1], dtype=torch.float64) for site in chosen}

    def adding(name: str) -> Any:
        def add(_: Any, args: tuple[torch.Tensor]) -> None:
            squares[name].add_(args[0].double().flatten(0, -2).square().sum(0))

        return add

    handles = [site.module.register_forward_pre_hook(adding(site.name)) for site in chosen]
    given = windows(decoder)
    for window in given:
        decoder.module(input_ids=window)
    for handle in handles:
        handle.remove()
    shares = []
    for layer in range(3):
        scores = torch.cat(
            [
                (site.weight.abs().double() * squares[site.name].sqrt()).flatten()
                for site in chosen
                if site.layer == layer
            ]
        )
        shares.append(float((scores > 3 * scores.mean()).double().mean()))
    stretched = [(share - min(shares)) / (max(shares) - min(shares)) * 2 * 0.05 for share in shares]
    expected = [0.5 - (value - sum(stretched) / 3) for value in stretched]  # layers of one size
    sparsity = owl(decoder, given, chosen, sparsity=0.5, outliers=3.0, spread=0.05)
    assert sparsity == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize("method", [Wanda, Magnitude, SparseGPT])
def test_each_method_spreads_its_zeros(method: Any, tmp_path: Path) -> None:
    decoder = tiny_decoder("llama")
    text = "budget=owl,outliers=2,spread=0.1,samples=2,length=48"
    with parse(f"{method.name}:{text}").applied(decoder, Preparation(States(tmp_path), TEXT)) as (state,):
        shares = [zeros(decoder, layer) for layer in range(4)]
    expected = owl(decoder, windows(decoder), sites(decoder), sparsity=0.5, outliers=2.0, spread=0.1)
    assert state.facts["sparsity"] == pytest.approx(expected)
    assert shares == pytest.approx(expected, abs=0.03)
    assert max(shares) - min(shares) > 0.1


def test_an_even_budget_reads_no_text_where_magnitude_alone_counts() -> None:
    assert not Magnitude().needs_preparation
    assert Magnitude(budget="owl").needs_preparation
    assert (Wanda().sweeps, Wanda(budget="owl").sweeps, SparseGPT(in_turn=True, budget="owl").sweeps) == (2, 4, 7)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("wanda:budget=owl,sparsity=0.5/0.6", "budget=owl gives each layer its sparsity: give one in all"),
        ("magnitude:budget=owl,pattern=2:4", "pattern=2:4 has half in each"),
        ("sparse-gpt:budget=owl,sparsity=0.9", "at sparsity=0.9: give a spread below 0.05"),
        ("wanda:budget=owl,spread=0.25", "spread=0.25 may leave a layer nothing to lose, or to keep"),
        ("wanda:budget=even", "budget='even' is not valid"),
    ],
)
def test_budgets_that_leave_no_room_are_refused(text: str, says: str) -> None:
    with pytest.raises(MethodError, match=says):
        parse(text)


@pytest.mark.parametrize("pattern", ["unstructured", "2:4", "4x1"])
def test_the_lot_takes_the_share_that_is_asked_and_depends_on_the_place_alone(pattern: Any) -> None:
    masks = []
    for seed, layers in ((0, ()), (0, (1, 3)), (1, ())):
        decoder = tiny_decoder("llama")
        method = Random(pattern=pattern, seed=seed, layers=layers)
        with method.attach(decoder, method.prepare(decoder, TEXT)):
            masks.append({site.name: site.weight != 0 for site in sites(decoder, layers=[1])})
            assert kernel_counts(decoder).keys() == {f"dense product over {pattern} zeros"}
    for name, mask in masks[0].items():
        assert mask.float().mean() == pytest.approx(0.5, abs=0.01)
        assert torch.equal(mask, masks[1][name])
        assert not torch.equal(mask, masks[2][name])
    weights = [mask for mask in masks[0].values() if mask.shape == (32, 32)]
    assert not torch.equal(*weights)


@torch.no_grad()
def test_the_lot_is_worse_than_every_choice() -> None:
    """The outputs of a model's linear layers, over the text that it is chosen on."""
    decoder = tiny_decoder("llama")
    given = windows(decoder)
    dense = [decoder.module(input_ids=window).logits for window in given]
    errors = []
    for method in (SparseGPT(**SMALL), Wanda(**SMALL), Random()):
        with method.attach(decoder, method.prepare(decoder, TEXT)):
            logits = [decoder.module(input_ids=window).logits for window in given]
        errors.append(sum(float((new - old).norm()) for new, old in zip(logits, dense, strict=True)))
    assert errors[0] < errors[2]
    assert errors[1] < errors[2]
