"""Shuffle: the same model in another order, and what the order in which weights were rounded is worth."""

from collections.abc import Callable
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
from harness.core.errors import MethodError, UnsupportedModelError
from harness.methods.lossless.shuffle import Shuffle
from harness.model.weights.formats import NumberFormat, quantize
from harness.model.weights.half_quadratic import fitted_zeros, with_zeros
from harness.model.weights.linear import sites
from harness.model.weights.savings import savings
from harness.testing.snapshot import changes, model_snapshot
from harness.testing.tiny import tiny_decoder
from tests.benchmarks.architectures import decoder as architecture


@torch.no_grad()
def logits(decoder: Any, ids: torch.Tensor) -> torch.Tensor:
    result: torch.Tensor = decoder.module(input_ids=ids).logits
    return result


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma", "phi3", "gpt2", "opt", "gpt_neox"])
def test_the_answers_are_denses_and_no_number_is_another(family: str, tied: bool, ids: torch.Tensor) -> None:
    decoder = tiny_decoder(family, layers=2, tie_word_embeddings=tied)
    dense, before = logits(decoder, ids), model_snapshot(decoder)
    values = {name: value.detach().flatten().sort().values for name, value in decoder.module.named_parameters()}
    places = {site.name: site.weight.clone() for site in sites(decoder)}
    with Shuffle().attach(decoder, Prepared()):
        torch.testing.assert_close(logits(decoder, ids), dense, rtol=0, atol=2e-6 * float(dense.abs().max()))
        shuffled = dict(decoder.module.named_parameters())
        assert shuffled.keys() == values.keys()
        assert all(torch.equal(value, shuffled[name].flatten().sort().values) for name, value in values.items())
        assert not any(torch.equal(site.weight, places[site.name]) for site in sites(decoder))
        assert savings(parse("shuffle"), decoder) is Savings.NONE
    assert torch.equal(logits(decoder, ids), dense)
    assert not changes(before, model_snapshot(decoder))


def test_layers_may_be_out(ids: torch.Tensor, tmp_path: Path) -> None:
    preparation = Preparation(States(tmp_path), Study((), ""))
    for below in ("layer-drop:layers=1", "layer-drop:unit=attention,layers=0", "layer-drop:unit=mlp,layers=1"):
        decoder = tiny_decoder("llama", layers=2)
        with parse(below).applied(decoder, preparation):
            dropped = logits(decoder, ids)
        with parse(f"{below}+shuffle").applied(decoder, preparation):
            torch.testing.assert_close(logits(decoder, ids), dropped, rtol=0, atol=1e-5)


def q4_1(weight: torch.Tensor) -> torch.Tensor:
    """A weight [out, in] rounded as GGUF's Q4_1 is: in groups of 32 inputs, w = m + code d, with d and m in float16."""
    grouped = weight.view(len(weight), -1, 32)
    least = grouped.amin(2, keepdim=True).half().float()
    step = ((grouped.amax(2, keepdim=True) - least) / 15).half().float()
    return (((grouped - least) / step).round().clamp(0, 15) * step + least).view(weight.shape)


def q4_0(weight: torch.Tensor) -> torch.Tensor:
    """A weight [out, in] rounded as GGUF's Q4_0 is: in groups of 32, w = (code - 8) d, the largest having code 0."""
    grouped = weight.view(len(weight), -1, 32)
    step = (grouped.gather(2, grouped.abs().argmax(2, keepdim=True)) / -8).half().float()
    return (((grouped / step + 8.5).floor().clamp(0, 15) - 8) * step).view(weight.shape)


def rounded_once() -> Any:
    """A model whose linear layers were rounded to Q4_1, with heads wider than a group."""
    decoder = tiny_decoder(
        "llama", layers=2, hidden_size=128, intermediate_size=256, num_attention_heads=2, num_key_value_heads=1
    )
    with torch.no_grad():
        for site in sites(decoder):
            site.module.get_parameter("weight").copy_(q4_1(site.weight))
    return decoder


def lost(decoder: Any, rounded: Callable[[torch.Tensor], torch.Tensor] = q4_1) -> list[float]:
    """What rounding loses of each linear layer's weight now, relative."""
    return [float((rounded(site.weight) - site.weight).norm() / site.weight.norm()) for site in sites(decoder)]


def test_rounding_again_on_the_same_grid_loses_next_to_nothing_and_in_another_order_what_it_loses_elsewhere() -> None:
    decoder = rounded_once()
    assert max(lost(decoder)) < 2e-3
    with Shuffle().attach(decoder, Prepared()):
        again = lost(decoder)
    other = tiny_decoder("llama", layers=1, hidden_size=128, intermediate_size=256, head_dim=64)
    elsewhere = sum(lost(other)) / len(lost(other))
    assert all(0.7 * elsewhere < each < 1.4 * elsewhere for each in again)


def test_zero_points_that_are_codes_do_not_find_the_grid() -> None:
    decoder, number = rounded_once(), NumberFormat(4, 32, False, scale="float16")

    def rounded(weight: torch.Tensor) -> torch.Tensor:
        return quantize(weight, number).dequantized()

    aligned = lost(decoder, rounded)
    with Shuffle().attach(decoder, Prepared()):
        assert lost(decoder, rounded) == pytest.approx(aligned, rel=0.15)


def test_zero_points_that_are_codes_are_near_a_grid_whose_own_were_codes() -> None:
    weight = q4_0(torch.randn(128, 256, generator=torch.Generator().manual_seed(0)))
    elsewhere = weight[:, torch.randperm(256, generator=torch.Generator().manual_seed(1))]
    number = NumberFormat(4, 32, False, scale="float16")
    aligned, other = (float((quantize(each, number).dequantized() - each).norm()) for each in (weight, elsewhere))
    assert 0.65 * other < aligned < 0.85 * other


def test_fitted_zero_points_find_the_grid() -> None:
    decoder, number = rounded_once(), NumberFormat(4, 32, False, scale="float16", zero="float16")

    def rounded(weight: torch.Tensor) -> torch.Tensor:
        return with_zeros(weight, number, fitted_zeros(weight, number, 20)[0]).dequantized()

    assert max(lost(decoder, rounded)) < 0.01
    with Shuffle().attach(decoder, Prepared()):
        assert min(lost(decoder, rounded)) > 0.04


@pytest.mark.parametrize(
    ("name", "says"),
    [("xglm", "no other basis"), ("mixtral", "without experts"), ("diffllama", "no other order|no other basis")],
)
def test_what_has_no_other_order_is_refused_by_name(name: str, says: str) -> None:
    with pytest.raises(UnsupportedModelError, match=says):
        Shuffle().check_model(architecture(name))


def test_half_precision_is_refused() -> None:
    decoder = tiny_decoder("llama")
    decoder.module.bfloat16()
    says = r"shuffle is exact in float32, and the model runs in torch\.bfloat16"
    with pytest.raises(MethodError, match=says):
        Shuffle().check_model(decoder)
    with pytest.raises(MethodError, match=says), Shuffle().attach(decoder, Prepared()):
        pass


@pytest.mark.parametrize("first", ["magnitude", "int4-weight-only", "rotate"])
def test_it_goes_before_what_uses_the_weights(first: str) -> None:
    parse(f"shuffle+{first}").check_order()
    if first != "rotate":
        with pytest.raises(MethodError, match=rf"write shuffle\+{first}"):
            parse(f"{first}+shuffle").check_order()
