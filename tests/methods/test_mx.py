"""Mx: blocks with scales of eight bits, on weights, activations, embeddings and what is no product."""

from typing import Any

import pytest
import torch
from torch.nn.functional import linear

from harness.contract.facts import Savings
from harness.contract.prepared import Prepared
from harness.contract.stack import parse
from harness.core.errors import MethodError, UnsupportedModelError
from harness.methods.quantization.mx import Mx
from harness.model.weights.formats import NumberFormat, quantize, rounded_rows
from harness.model.weights.linear import kernel_counts, sites
from harness.model.weights.microscaling import RoundedLinear, rounded
from harness.model.weights.savings import savings
from harness.testing.tiny import tiny_decoder
from tests.benchmarks.architectures import decoder as architecture

FORMATS = {
    "mx": (NumberFormat(4, 32, element="e2m1", scale="floor"), 4.25),
    "mx:element=e2m3": (NumberFormat(6, 32, element="e2m3", scale="floor"), 6.25),
    "mx:element=e3m2,scale=rceil": (NumberFormat(6, 32, element="e3m2", scale="rceil"), 6.25),
    "mx:element=e4m3": (NumberFormat(8, 32, element="e4m3", scale="floor"), 8.25),
    "mx:element=e5m2": (NumberFormat(8, 32, element="e5m2", scale="floor"), 8.25),
    "mx:element=int8": (NumberFormat(8, 32, scale="floor"), 8.25),
    "mx:element=int4,block=64": (NumberFormat(4, 64, scale="floor"), 4.125),
    "mx:block=16,scale=e4m3": (NumberFormat(4, 16, element="e2m1", scale="e4m3"), 4.5),
}
BCT = "block=16,activations=true,embedding=true,nonlinear=true"


@torch.no_grad()
def logits(decoder: Any, ids: torch.Tensor, **options: Any) -> torch.Tensor:
    result: torch.Tensor = decoder.module(input_ids=ids, **options).logits
    return result


def distance(decoder: Any, text: str, ids: torch.Tensor) -> float:
    dense = logits(decoder, ids)
    with parse(text).attached(decoder, lambda _: Prepared()):
        far = float((logits(decoder, ids) - dense).norm() / dense.norm())
    assert torch.equal(logits(decoder, ids), dense)
    return far


@pytest.mark.parametrize("text", FORMATS)
def test_the_formats_of_the_specification_are_asked_for_by_name(text: str) -> None:
    (method,) = parse(text).parts
    number, bits = FORMATS[text]
    assert isinstance(method, Mx)
    assert method.number == number
    assert number.nbytes(4096, 4096) * 8 / 4096**2 == pytest.approx(bits, abs=1e-5)


@pytest.mark.parametrize("scale", ["floor", "rceil", "e4m3"])
def test_weights_and_activations_are_those_of_the_format(scale: str) -> None:
    generator = torch.Generator().manual_seed(0)
    weight, x = torch.randn(24, 64, generator=generator), torch.randn(2, 5, 64, generator=generator)
    number = NumberFormat(4, 16, element="e2m1", scale=scale)  # type: ignore[arg-type]
    layer = RoundedLinear(quantize(weight, number), None, torch.float32)
    by_token = torch.stack([rounded_rows(token[None], number)[0] for token in x.flatten(0, 1)]).view(x.shape)
    assert torch.allclose(layer(x), linear(by_token, quantize(weight, number).dequantized()), atol=1e-5)
    assert layer.savings is Savings.SIMULATED
    assert layer.kernel == f"dense product over {number.label} weights and activations"
    assert (layer.weight_bytes, layer.macs_per_token) == (weight.nbytes, weight.numel())


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_weights_alone_are_rounded_in_the_model(family: str, ids: torch.Tensor) -> None:
    decoder, by_hand = tiny_decoder(family, layers=2), tiny_decoder(family, layers=2)
    method = Mx(block=16)
    for site in sites(by_hand):
        site.module.weight.data.copy_(site.stored(quantize(site.weight, method.number).dequantized()))
    with method.attach(decoder, Prepared()):
        assert torch.allclose(logits(decoder, ids), logits(by_hand, ids), atol=1e-5)
        assert savings(parse("mx"), decoder) is Savings.SIMULATED
        assert kernel_counts(decoder) == {"dense product over fp4 e2m1 floor g16 weights": len(sites(by_hand))}


@pytest.mark.parametrize("tied", [False, True])
def test_each_part_is_rounded_where_it_is_asked_for(tied: bool, ids: torch.Tensor) -> None:
    decoder = tiny_decoder("llama", layers=2, tie_word_embeddings=tied)
    head, table = decoder.anatomy.head.weight.clone(), decoder.anatomy.embedding.weight.clone()
    number = NumberFormat(8, 16, scale="floor")
    with parse(f"mx:element=int8,{BCT}").attached(decoder, lambda _: Prepared()):
        assert torch.equal(decoder.anatomy.embedding.weight, quantize(table, number).dequantized())
        assert torch.equal(decoder.anatomy.head.weight, head)
        kept: list[torch.Tensor] = []
        parts = (decoder.anatomy.final_norm, decoder.anatomy.blocks[0].mlp.modules[0].act_fn)
        for part in parts:
            part.register_forward_hook(lambda _, args, output: kept.append(output))
        logits(decoder, ids)
        assert len(kept) == 2
        assert all(torch.equal(rounded(output, number), output) for output in kept)
    far = [distance(decoder, f"mx:element={text}", ids) for text in (f"int8,{BCT}", f"int4,{BCT}", "int4,block=16")]
    assert far[0] < 0.1 < far[1]
    assert far[0] < far[2] < far[1]


def test_softmax_is_rounded_alike_for_padded_rows_and_token_by_token(ids: torch.Tensor) -> None:
    decoder = tiny_decoder("qwen3", layers=2)
    decoder.module.double()  # in which no sum is so near the middle of two codes that its order decides
    with parse(f"mx:element=int8,{BCT}").attached(decoder, lambda _: Prepared()):
        whole = logits(decoder, ids)
        padded = torch.cat([torch.zeros_like(ids[:, :3]), ids], 1)
        mask = torch.cat([torch.zeros_like(ids[:, :3]), torch.ones_like(ids)], 1)
        places = (mask.cumsum(1) - 1).clamp(min=0)
        beside = logits(decoder, padded, attention_mask=mask, position_ids=places)[:, 3:]
        assert torch.allclose(beside, whole, atol=1e-5 * float(whole.abs().max()))
        with torch.no_grad():
            cache = decoder.module(input_ids=ids[:, :-1], use_cache=True).past_key_values
            last = decoder.module(input_ids=ids[:, -1:], past_key_values=cache).logits[:, 0]
        assert torch.allclose(last, whole[:, -1], atol=1e-5 * float(whole.abs().max()))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("mx", "block=32 does not divide the 48 inputs of a linear layer: give block=16 or block=8"),
        ("mx:block=48,linears=*.down_proj,embedding=true", "block=48 does not divide the 32 inputs"),
        (f"mx:linears=*.q_proj,element=int8,{BCT.replace('16', '32')}", "block=32 does not divide the 48 inputs"),
        ("mx:element=e1m2", "element='e1m2' is not valid"),
        ("mx:block=0", "block='0' is not valid"),
    ],
)
def test_a_block_that_does_not_divide_is_refused_before_anything_runs(text: str, says: str) -> None:
    decoder = tiny_decoder("llama")
    decoder.module.to("meta")
    with pytest.raises(MethodError, match=says):
        parse(text).check_model(lambda: decoder)


def test_an_attention_that_cannot_be_replaced_is_refused_before_anything_runs() -> None:
    with pytest.raises(UnsupportedModelError, match="caps attention scores"):
        parse("mx:block=16,nonlinear=true").check_model(lambda: tiny_decoder("gemma2"))
    parse("mx:block=16").check_model(lambda: tiny_decoder("gemma2"))
    with pytest.raises(UnsupportedModelError):
        parse("mx:block=8,nonlinear=true").check_model(lambda: architecture("gpt_oss"))


@pytest.mark.parametrize("family", ["mixtral", "llama"])
def test_an_activation_function_that_no_hook_reaches_is_refused(family: str) -> None:
    decoder = architecture(family)
    if family == "llama":
        del decoder.anatomy.blocks[1].mlp.modules[0].act_fn  # as where a function does it
    with pytest.raises(UnsupportedModelError, match=r"the activation function of layer [01] is no module"):
        parse("mx:block=8,linears=*self_attn*,nonlinear=true").check_model(lambda: decoder)
    parse("mx:block=8,linears=*self_attn*").check_model(lambda: decoder)


@pytest.mark.parametrize("order", ["window-attention:window=4+{}", "{}+window-attention:window=4"])
def test_two_methods_do_not_compute_one_attention(order: str, ids: torch.Tensor) -> None:
    decoder = tiny_decoder("llama", layers=2)
    text = order.format("mx:block=16,nonlinear=true")
    with (
        pytest.raises(UnsupportedModelError, match="attention functions have not been compared"),
        parse(text).attached(decoder, lambda _: Prepared()),
    ):
        pass
