"""FFN prune takes out the neurons that its formula says, rounded as it says, and nothing else."""

import pytest
import torch
from transformers.pytorch_utils import Conv1D

from harness.contract.prepared import Prepared
from harness.contract.stack import parse
from harness.core.errors import MethodError, UnsupportedModelError
from harness.methods.pruning.ffn_prune import FfnPrune
from harness.model.units import neurons_of
from harness.testing.tiny import FAMILIES, tiny_decoder


def widths(decoder):
    """Neurons of each layer."""
    downs = [block.roles["down"].module for block in decoder.anatomy.blocks]
    return [down.nx if isinstance(down, Conv1D) else down.in_features for down in downs]


def attached(decoder, **parameters):
    return FfnPrune(**parameters).attach(decoder, Prepared())


@pytest.mark.parametrize("family", FAMILIES)
def test_the_neurons_with_the_least_products_go(family):
    """Here by hand, from the layer's own named weights and in double precision."""
    decoder = tiny_decoder(family)
    dense = widths(decoder)[0]
    before = {role: weight.double() for role, weight in neurons_of(decoder, 1).items()}
    assert before.keys() == ({"gate", "up", "down"} if len(before) == 3 else {"up", "down"})
    assert all(weight.shape == (dense, 32) for weight in before.values())
    scores = torch.ones(dense, dtype=torch.double)
    for weight in before.values():
        scores *= weight.square().sum(1).sqrt()
    kept = sorted(scores.topk(dense // 2).indices.tolist())
    with attached(decoder, ratio=0.5, multiple=1, layers=[1]):
        assert widths(decoder) == [dense, dense // 2, dense, dense]
        for role, weight in neurons_of(decoder, 1).items():
            assert torch.equal(weight.double(), before[role][kept])


@pytest.mark.parametrize(
    ("parameters", "kept"),
    [
        ({"ratio": 0.25}, 40),  # 36, up to a multiple of 8
        ({"ratio": 0.5}, 24),
        ({"ratio": 0.25, "multiple": 1}, 36),
        ({"ratio": 0.99}, 8),
        ({"ratio": 0.01, "multiple": 32}, 48),  # 64 would be more than there are
        ({"ratio": 0, "multiple": 7}, 48),
        ({"ratio": 0.1, "multiple": 1}, 44),  # 43.2: no more than the ratio goes
    ],
)
def test_the_rest_is_a_multiple(parameters, kept):
    decoder = tiny_decoder("llama")
    with attached(decoder, **parameters):
        assert widths(decoder) == [kept] * 4
    assert widths(decoder) == [48] * 4


def test_a_decimal_ratio_takes_what_it_says():
    """A share such as 0.3 of 50 leaves 35, and not 36 for a bit of rounding."""
    decoder = tiny_decoder("llama", intermediate_size=50)
    with attached(decoder, ratio=0.3, multiple=1):
        assert widths(decoder) == [35] * 4


def test_layers_that_are_not_there_are_refused():
    with pytest.raises(MethodError, match="there is no layer 4"):
        FfnPrune(layers=(4,)).check_model(tiny_decoder("llama"))


def test_an_mlp_without_neurons_is_refused_before_anything_runs():
    decoder = tiny_decoder("llama")
    decoder.anatomy.blocks[2].mlp.modules[0].norm = torch.nn.LayerNorm(48)
    with pytest.raises(UnsupportedModelError, match=r"LlamaForCausalLM .*layer 2"):
        FfnPrune().check_model(decoder)


class _Fresh:
    """Prepares without text, which none of these methods reads."""

    def state(self, method, model, below):
        return method.prepare(model, None)


def apply(text, decoder):
    return parse(text).applied(decoder, _Fresh())


def test_it_stacks_with_what_removes_and_computes():
    decoder = tiny_decoder("llama")
    for text in (
        "layer-drop:layers=1+ffn-prune:ratio=0.5",
        "ffn-prune:ratio=0.5+layer-drop:layers=1",
        "ffn-prune:ratio=0.5,layers=0+ffn-prune:ratio=0.5,layers=1/2/3",
        "ffn-prune:ratio=0.25+ffn-prune:ratio=0.4",  # of the 40 that are left
    ):
        with apply(text, decoder):
            assert widths(decoder)[0] == widths(decoder)[2] == 24
    assert widths(decoder) == [48] * 4


def test_what_computes_already_is_refused_with_the_order_that_works():
    decoder = tiny_decoder("llama")
    says = "^ffn-prune: a linear layer of layer 0 is computed by .* name the method that takes units out before"
    with pytest.raises(MethodError, match=says), apply("int8-dynamic+ffn-prune:ratio=0.5", decoder):
        pass
    with apply("ffn-prune:ratio=0.5+int8-dynamic", decoder):
        decoder.module(torch.arange(3, 9)[None])
    assert widths(decoder) == [48] * 4
