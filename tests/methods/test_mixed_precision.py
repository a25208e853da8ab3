"""Mixed precision: what each linear layer is worth, what is chosen within a budget, and what is recorded of it."""

from pathlib import Path
from typing import Any

import pytest
import torch

from harness.contract.facts import Savings
from harness.contract.preparation import Preparation
from harness.contract.prepared import Prepared
from harness.contract.stack import parse
from harness.contract.states import States
from harness.contract.study import Study
from harness.core.errors import HarnessError, MethodError
from harness.methods.quantization.mixed_precision import BITS, MixedPrecision
from harness.model.training import text_loss
from harness.model.weights import sensitivity
from harness.model.weights.formats import quantize
from harness.model.weights.linear import kernel_counts, sites
from harness.model.weights.savings import savings
from harness.model.weights.sensitivity import by_fisher, by_hessian, mean_loss, top_eigenvalue
from harness.testing.snapshot import changes, model_snapshot
from harness.testing.tiny import tiny_decoder

TEXT = Study(("The keeper of the light wrote down every ship that passed. " * 8,), "a sentence")
SMALL: dict[str, Any] = {"group": 16, "samples": 2, "length": 40}


def windows(decoder: Any) -> list[torch.Tensor]:
    return list(TEXT.windows(decoder, count=2, length=40))


@pytest.mark.parametrize("sensitivity", ["loss", "fisher", "hessian"])
@pytest.mark.parametrize("bits", [2, 3.5, 8])
def test_what_is_chosen_keeps_to_the_budget_and_is_not_worse_than_uniform(sensitivity: str, bits: float) -> None:
    decoder = tiny_decoder("llama", layers=2)
    before = model_snapshot(decoder)
    method = MixedPrecision(bits=bits, sensitivity=sensitivity, **SMALL)  # type: ignore[arg-type]
    facts = method.prepare(decoder, TEXT).facts
    assert not changes(before, model_snapshot(decoder))
    chosen = sites(decoder)
    assert facts["bits"].keys() == {site.name for site in chosen}
    assert facts["bytes"] == sum(method.number(facts["bits"][site.name]).nbytes(*site.weight.shape) for site in chosen)
    assert facts["bytes"] <= facts["budget"]
    if bits in (2, 8):
        assert set(facts["bits"].values()) == {bits}
        assert facts["bytes"] == facts["budget"]
    with method.attach(decoder, Prepared(facts=facts)):
        loss = mean_loss(decoder, windows(decoder))
    assert loss == pytest.approx(min(facts["loss"]["mixed"], facts["loss"]["uniform"]), abs=1e-6)


@pytest.mark.parametrize("sensitivity", ["loss", "fisher", "hessian"])
def test_the_linear_layer_that_matters_most_gets_the_most_bits(sensitivity: Any) -> None:
    """The weights of the others are a hundred times smaller, on text that the model itself writes."""
    decoder = tiny_decoder("llama")
    for site in sites(decoder, ["*.down_proj"], layers=(0, 1, 2)):
        site.module.weight.data.mul_(0.01)  # type: ignore[union-attr, operator]
    given = [decoder.module.generate(window[:, :4], max_new_tokens=30, do_sample=False) for window in windows(decoder)]
    method = MixedPrecision(bits=3, sensitivity=sensitivity, linears=("*.down_proj",), **SMALL)
    chosen = method.sites(decoder)
    estimates, _ = method._losses(decoder, given, chosen)
    assert max(estimates, key=lambda name: estimates[name][2]) == chosen[-1].name
    bits = method._chosen(chosen, estimates, method.budget(chosen))
    assert bits[chosen[-1].name] == max(bits.values()) > min(bits.values())


def test_fisher_is_its_formula() -> None:
    decoder = tiny_decoder("gpt2", layers=1)
    chosen, given = sites(decoder), windows(decoder)
    method = MixedPrecision(**SMALL)
    estimated = by_fisher(decoder, given, chosen, BITS, method.values)
    for site in chosen[:2]:
        squares = torch.zeros_like(site.weight)
        for window in given:
            decoder.module.zero_grad()
            text_loss(decoder.module(input_ids=window).logits, window).backward()  # type: ignore[no-untyped-call]
            squares += site.stored(site.module.weight.grad).square() / 2  # type: ignore[union-attr, arg-type]
        for bits in BITS:
            change = quantize(site.weight, method.number(bits)).dequantized() - site.weight
            expected = float((squares * change.square()).sum())
            assert estimated.losses[site.name][bits] == pytest.approx(expected, rel=1e-4)


def test_an_eigenvalue_is_that_of_the_whole_hessian() -> None:
    torch.manual_seed(3)
    x, weight = torch.randn(20, 3).double(), torch.randn(2, 3, requires_grad=True, dtype=torch.float64)

    def loss(weight: torch.Tensor) -> torch.Tensor:
        return torch.log_softmax(x @ weight.T, 1)[:, 0].neg().mean() + (weight[0, 1] * 1.5).square()

    (gradient,) = torch.autograd.grad(loss(weight), weight, create_graph=True)
    whole = torch.autograd.functional.hessian(loss, weight).reshape(6, 6)  # type: ignore[no-untyped-call]
    assert top_eigenvalue(gradient, weight) == pytest.approx(float(torch.linalg.eigvalsh(whole).abs().max()), rel=1e-2)
    concave = -loss(weight)
    (gradient,) = torch.autograd.grad(concave, weight, create_graph=True)
    assert top_eigenvalue(gradient, weight) < 0


def test_eigenvalues_of_windows_give_their_mean_and_spread_and_a_negative_one_is_reported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    decoder, values = tiny_decoder("llama", layers=1), MixedPrecision(**SMALL).values
    chosen = sites(decoder)[:2]
    eigenvalues = iter([3.0, 2.0, 5.0, -4.0])  # window by window, of each linear layer
    monkeypatch.setattr(sensitivity, "top_eigenvalue", lambda gradient, weight: next(eigenvalues))
    estimated = by_hessian(decoder, windows(decoder), chosen, BITS, values)
    assert estimated.negative == [chosen[1].name]
    for site, omega in zip(chosen, (4 + 2**0.5, 1 + 18**0.5), strict=True):
        losses = estimated.losses[site.name]
        assert losses[2] > losses[3] > losses[4] > losses[8] > 0
        assert losses[4] == pytest.approx(omega * float((values(site, 4) - site.weight).square().sum()), rel=1e-5)


def test_a_record_of_its_state_has_every_bit(tmp_path: Path, ids: torch.Tensor) -> None:
    decoder = tiny_decoder("gpt2", layers=2)
    stack = parse("mixed-precision:bits=4,sensitivity=fisher,group=16,samples=2,length=40")
    with stack.applied(decoder, Preparation(States(tmp_path), TEXT)) as (state,):
        counts = kernel_counts(decoder)
        assert savings(stack, decoder) is Savings.SIMULATED
        used = sorted(set(state.facts["bits"].values()))
        assert sorted(counts) == [f"dense product over int{bits} g16 weights" for bits in used]
        assert sum(counts.values()) == len(state.facts["bits"]) == 8
        assert stack.parts[0].sweeps_on(decoder) == 4  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("mixed-precision", "group=128 does not divide the 32 inputs of a linear layer: give group=16 or group=8"),
        ("mixed-precision:bits=1,group=16", "bits='1' is not valid: Input should be greater than or equal to 2"),
        ("mixed-precision:bits=nan,group=16", "bits='nan' is not valid"),
        ("mixed-precision:size=100,group=16", "size=100 is too little: at 2 bits they take 1[0-9]+ bytes"),
        ("mixed-precision:group=16+int8-dynamic", "would both compute"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_runs(text: str, says: str) -> None:
    with pytest.raises(HarnessError, match=says):
        parse(text).check_model(lambda: tiny_decoder("llama"))


def test_a_size_is_a_budget_too() -> None:
    decoder = tiny_decoder("llama", layers=1)
    chosen = sites(decoder)
    method = MixedPrecision(sensitivity="fisher", **SMALL)
    three = method.bytes_at(chosen, dict.fromkeys((site.name for site in chosen), 3))
    facts = MixedPrecision(sensitivity="fisher", size=three, **SMALL).prepare(decoder, TEXT).facts
    assert facts["bytes"] <= facts["budget"] == three
    assert (
        facts["loss"]["uniform"]
        == MixedPrecision(bits=3, sensitivity="fisher", **SMALL).prepare(decoder, TEXT).facts["loss"]["uniform"]
    )


@torch.no_grad()
def test_damage_is_refused_in_a_sentence() -> None:
    decoder = tiny_decoder("llama", layers=1)
    sites(decoder)[3].weight[2, 5] = float("nan")
    with pytest.raises(MethodError, match="not finite"):
        MixedPrecision(**SMALL).prepare(decoder, TEXT)
