"""Scalars on branches: merged they give what scaling the branches' outputs gives, and at 1 every bit stays."""

from contextlib import ExitStack
from typing import Any

import pytest
import torch

from harness.contract.decoder import Decoder
from harness.core.errors import UnsupportedModelError
from harness.model.surgery import without_blocks, without_branches
from harness.model.weights.replaced import replaced
from harness.model.weights.scales import branches, scaled
from harness.testing.tiny import FAMILIES, tiny_decoder

IDS = torch.arange(3, 15).view(2, 6)


def logits(decoder: Decoder) -> torch.Tensor:
    with torch.no_grad():
        values: torch.Tensor = decoder.module(IDS).logits
    return values


def hooked(decoder: Decoder, scales: dict[Any, torch.Tensor]) -> torch.Tensor:
    """Logits with the output of every branch multiplied as it joins the stream."""

    def multiply(scale: torch.Tensor) -> Any:
        def hook(module: Any, args: Any, output: Any) -> Any:
            return (output[0] * scale, *output[1:]) if isinstance(output, tuple) else output * scale

        return hook

    with ExitStack() as undo:
        for (kind, layer), scale in scales.items():
            end = getattr(decoder.anatomy.blocks[layer], kind).output
            undo.callback(end.register_forward_hook(multiply(scale)).remove)
        return logits(decoder)


@pytest.mark.parametrize("family", FAMILIES)
def test_merged_is_unmerged_and_one_is_dense(family: str) -> None:
    decoder = tiny_decoder(family)
    dense = logits(decoder)
    chosen = branches(decoder)
    assert len(chosen) == 8
    with replaced(decoder, scaled(decoder, dict.fromkeys(chosen, torch.ones(())))):
        assert torch.equal(logits(decoder), dense)
    scales = {branch: torch.tensor(0.5 + 0.1 * index) for index, branch in enumerate(chosen)}
    expected = hooked(decoder, scales)
    with replaced(decoder, scaled(decoder, scales)):
        merged = logits(decoder)
    assert torch.allclose(merged, expected, atol=1e-4 * float(expected.abs().max()))
    assert not torch.allclose(merged, dense, atol=1e-2 * float(dense.abs().max()))
    assert torch.equal(logits(decoder), dense)


@pytest.mark.parametrize("family", ["llama", "opt", "gemma2"])
def test_only_what_is_there_can_be_scaled(family: str) -> None:
    decoder = tiny_decoder(family)
    with without_blocks(decoder, [0]), without_branches(decoder, attention=[1], mlp=[3]):
        assert branches(decoder) == [("mlp", 1), ("attention", 2), ("mlp", 2), ("attention", 3)]
        dropped = logits(decoder)
        with replaced(decoder, scaled(decoder, {("mlp", 2): torch.tensor(0.5)})):
            assert not torch.equal(logits(decoder), dropped)


def test_a_gradient_reaches_the_scalar() -> None:
    scale = torch.ones((), requires_grad=True)
    (values,) = scaled(tiny_decoder("llama"), {("mlp", 2): scale}).values()
    (gradient,) = torch.autograd.grad(values.sum(), scale)
    assert gradient != 0


def test_a_branch_without_an_end_of_its_own_is_refused() -> None:
    decoder = tiny_decoder("llama")
    vars(decoder.anatomy.blocks[1])["roles"] = {}
    with pytest.raises(UnsupportedModelError, match=r"LlamaForCausalLM .*the mlp of layer 1 ends in no linear layer"):
        scaled(decoder, {("mlp", 1): torch.ones(())})
