"""Replacements of linear layers compute in place, leave no trace, and are counted as what they are."""

import pytest
import torch
from torch.nn.functional import linear

from harness.contract.facts import Savings
from harness.contract.prepared import Prepared
from harness.contract.stack import parse
from harness.core.errors import MethodError
from harness.measure.shape import ModelShape
from harness.methods.pruning.layer_drop import LayerDrop
from harness.model.weights.int8 import Int8Linear
from harness.model.weights.linear import ReplacementLayer, installed, kernel_counts, masked, sites
from harness.model.weights.savings import savings
from harness.testing.tiny import FAMILIES, tiny_decoder
from tests import kernels_here


class Double(ReplacementLayer):
    """The dense product in double precision."""

    kernel, savings = "double", Savings.REAL

    def __init__(self, site):
        super().__init__()
        self.register_buffer("weight", site.weight.double())
        self.register_buffer("bias", None if site.bias is None else site.bias.double())
        self.macs_per_token = self.weight_count = site.weight.numel()

    def forward(self, x):
        return linear(x.double(), self.weight, self.bias).to(x.dtype)


def int8(site):
    return Int8Linear(site.weight, site.bias, kernels_here.PRODUCT)


@torch.no_grad()
def logits(decoder, ids):
    return decoder.module(input_ids=ids).logits


@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_product_gives_the_same_and_leaves_no_trace(family, ids):
    decoder = tiny_decoder(family)
    dense, shape, names = logits(decoder, ids), ModelShape.of(decoder), list(decoder.module.state_dict())
    weights = {name: id(weight) for name, weight in decoder.module.named_parameters()}
    every = sites(decoder, head=True)
    ran = []
    for site in every:
        site.module.register_forward_hook(lambda module, *_: ran.append(module))
    with installed((site, Double(site)) for site in every):
        assert torch.allclose(logits(decoder, ids), dense, atol=2e-4)
        assert len(ran) == len(every)
        assert set(ran) == {site.module for site in every}
        within = ModelShape.of(decoder)
        assert kernel_counts(decoder) == {"double": len(every)}
    assert [layer.attention.macs for layer in within.layers] == [layer.attention.macs for layer in shape.layers]
    assert [layer.mlp.bytes for layer in within.layers] == [2 * layer.mlp.bytes for layer in shape.layers]
    assert torch.equal(logits(decoder, ids), dense)
    assert list(decoder.module.state_dict()) == names
    assert {name: id(weight) for name, weight in decoder.module.named_parameters()} == weights
    assert ModelShape.of(decoder) == shape
    assert not kernel_counts(decoder)


@pytest.mark.parametrize("tied", [True, False])
def test_int8_is_counted_by_hand(tied):
    decoder = tiny_decoder("llama", tie_word_embeddings=tied)
    dense = ModelShape.of(decoder)
    with installed((site, int8(site)) for site in sites(decoder, head=True)):
        shape = ModelShape.of(decoder)
        assert savings(parse("int8-dynamic"), decoder) is kernels_here.SAVINGS
    # hidden 32, 4 heads and 2 key-value heads of 8, MLP 48, vocabulary 259; a float scale for each output
    number = kernels_here.WEIGHT_BYTES
    attention, attention_rows = 32 * 32 * 2 + 32 * 16 * 2, 32 + 16 + 16 + 32
    mlp, mlp_rows = 3 * 32 * 48, 48 + 48 + 32
    for layer in shape.layers:
        assert (layer.attention.macs, layer.attention.bytes) == (attention, number * attention + 4 * attention_rows)
        assert (layer.mlp.macs, layer.mlp.bytes) == (mlp, number * mlp + 4 * mlp_rows)
    assert (shape.head.macs, shape.head.bytes) == (259 * 32, number * 259 * 32 + 4 * 259)
    head = 259 * 32 * (1 if tied else 0)  # a tied weight stays, for the embedding
    assert shape.parameters == dense.parameters + head
    layers = 4 * (attention + mlp)
    freed = 4 * (layers + (0 if tied else 259 * 32))
    scales = 4 * (4 * (attention_rows + mlp_rows) + 259)
    packed = number * (layers + 259 * 32) + scales
    assert shape.bytes == dense.bytes - freed + packed


def test_a_tied_embedding_keeps_its_weight(ids):
    decoder = tiny_decoder("llama", tie_word_embeddings=True)
    before = decoder.anatomy.embedding.weight.clone()
    with installed((site, int8(site)) for site in sites(decoder, head=True)):
        logits(decoder, ids)
        assert torch.equal(decoder.anatomy.embedding.weight, before)
    assert decoder.anatomy.head.weight is decoder.anatomy.embedding.weight


def test_sites_are_chosen_by_name_layer_and_request():
    decoder = tiny_decoder("opt")
    found = sites(decoder, ["*.fc1", "*.q_proj"], layers=[1, 3])
    assert [site.name.split("layers.")[1] for site in found] == [
        "1.self_attn.q_proj",
        "1.fc1",
        "3.self_attn.q_proj",
        "3.fc1",
    ]
    assert [site.layer for site in found] == [1, 1, 3, 3]
    assert all(site.layer is not None for site in sites(decoder))
    assert sites(decoder, head=True)[-1].module is decoder.anatomy.head


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"patterns": ["*.gate"]}, r"named '\*.gate'; they are named model.layers.0.self_attn.q_proj"),
        ({"layers": [4]}, "no layer 4; the model's layers are 0 to 3"),
    ],
)
def test_what_is_not_there_is_refused(arguments, says):
    with pytest.raises(MethodError, match=says):
        sites(tiny_decoder("llama"), **arguments)


def test_a_linear_layer_is_computed_by_one_method():
    decoder = tiny_decoder("llama")
    with (
        installed([(site := sites(decoder)[0], Double(site))]),
        pytest.raises(MethodError, match=r"q_proj is computed by double already.* prunes before the one that computes"),
    ):
        sites(decoder)


@pytest.mark.parametrize("unit", ["block", "mlp", "attention"])
@pytest.mark.parametrize("family", ["llama", "opt"])
def test_layers_that_are_out_are_not_replaced(family, unit, ids):
    decoder, drop = tiny_decoder(family), LayerDrop(unit=unit, layers=(1, 2))
    with drop.attach(decoder, Prepared(facts={"dropped": [[unit, 1], [unit, 2]]})):
        dropped = logits(decoder, ids)
        with installed((site, Double(site)) for site in sites(decoder)):
            assert torch.allclose(logits(decoder, ids), dropped, atol=2e-4)
            assert sum(kernel_counts(decoder).values()) < sum(1 for _ in sites(tiny_decoder(family)))
        assert torch.equal(logits(decoder, ids), dropped)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_masked_weights_are_dense_work(family, ids):
    decoder = tiny_decoder(family)
    dense, shape = logits(decoder, ids), ModelShape.of(decoder)
    method = parse("magnitude")
    with masked((site, torch.ones_like(site.weight, dtype=torch.bool), "2:4") for site in sites(decoder)):
        assert torch.equal(logits(decoder, ids), dense)
        assert savings(method, decoder) is Savings.SIMULATED
        assert kernel_counts(decoder) == {"dense product over 2:4 zeros": len(sites(decoder))}
        assert ModelShape.of(decoder) == shape
    with masked((site, torch.zeros_like(site.weight, dtype=torch.bool), "2:4") for site in sites(decoder)):
        assert not any(site.weight.any() for site in sites(decoder))
        assert not torch.allclose(logits(decoder, ids), dense)
    assert torch.equal(logits(decoder, ids), dense)
    assert savings(method, decoder) is Savings.NONE
    assert not kernel_counts(decoder)
