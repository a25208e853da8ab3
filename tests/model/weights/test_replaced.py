"""Replaced parameters: in place for the block alone, whatever they are, and whatever other methods do to the model."""

import pytest
import torch

from harness.contract.facts import Savings
from harness.contract.stack import parse
from harness.core.errors import MethodError, UnknownNameError
from harness.measure.shape import ModelShape
from harness.model.surgery import without_blocks, without_branches
from harness.model.weights.int8 import Int8Linear
from harness.model.weights.linear import installed, kernel_counts, masked, sites
from harness.model.weights.replaced import dense_names, replaced, zeros
from harness.model.weights.savings import savings
from harness.testing.snapshot import changes, model_snapshot
from harness.testing.tiny import FAMILIES, tiny_decoder
from tests import kernels_here


@torch.no_grad()
def logits(decoder, ids):
    return decoder.module(input_ids=ids).logits


def parameters(decoder):
    return dict(decoder.module.named_parameters(remove_duplicate=False))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_can_have_other_values_and_has_its_own_again(family, ids):
    decoder = tiny_decoder(family)
    dense, before, names = logits(decoder, ids), model_snapshot(decoder), list(decoder.module.state_dict())
    objects = {name: (id(each), each.data_ptr()) for name, each in parameters(decoder).items()}
    doubled = {name: 2 * each.detach().double() for name, each in parameters(decoder).items()}
    with replaced(decoder, doubled):
        assert list(decoder.module.state_dict()) == names
        for name, parameter in parameters(decoder).items():
            assert parameter.dtype is torch.float32
            assert torch.equal(parameter.double(), doubled[name]), name
        assert not torch.equal(logits(decoder, ids), dense)
        assert ModelShape.of(decoder) == ModelShape.of(tiny_decoder(family))
    assert not changes(before, model_snapshot(decoder))
    assert {name: (id(each), each.data_ptr()) for name, each in parameters(decoder).items()} == objects
    assert torch.equal(logits(decoder, ids), dense)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_values_give_the_same_bits(family, ids):
    decoder = tiny_decoder(family)
    dense = logits(decoder, ids)
    values = {name: each.detach().clone().contiguous() for name, each in parameters(decoder).items()}
    with replaced(decoder, values):
        assert torch.equal(logits(decoder, ids), dense)
        assert savings(parse("dense"), decoder) is Savings.NONE
        assert not kernel_counts(decoder)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("which", ["head", "embedding"])
def test_of_tied_parameters_one_changes_alone(family, which, ids):
    decoder = tiny_decoder(family, tie_word_embeddings=True)
    anatomy, names = decoder.anatomy, dense_names(decoder)
    parts = {"head": anatomy.head, "embedding": anatomy.embedding}
    part = parts.pop(which)
    (other,) = parts.values()
    tied, alone = other.weight, ModelShape.of(decoder).parameters
    with replaced(decoder, {f"{names[part]}.weight": 3 * tied.detach()}):
        assert other.weight is tied
        assert torch.equal(part.weight, 3 * tied)
        assert ModelShape.of(decoder).parameters == alone + tied.numel()
        logits(decoder, ids)
    assert anatomy.head.weight is anatomy.embedding.weight is tied


@pytest.mark.parametrize("equal", [True, False])
def test_both_of_a_tied_pair_stay_tied_where_they_are_given_the_same(equal):
    decoder = tiny_decoder("llama", tie_word_embeddings=True)
    anatomy = decoder.anatomy
    tied = anatomy.head.weight
    other = 2 * tied.detach() if equal else 3 * tied.detach()
    with replaced(decoder, {"lm_head.weight": other, "model.embed_tokens.weight": 2 * tied.detach()}):
        assert (anatomy.head.weight is anatomy.embedding.weight) is equal
        assert anatomy.head.weight is not tied
    assert anatomy.head.weight is anatomy.embedding.weight is tied


def test_what_is_given_is_not_what_the_model_holds():
    decoder = tiny_decoder("llama")
    values = torch.ones(32)
    with replaced(decoder, {"model.norm.weight": values}):
        with torch.no_grad():
            decoder.module.model.norm.weight.zero_()
        assert values.all()


def test_a_parameter_can_be_given_of_another_type():
    decoder = tiny_decoder("llama")
    decoder.module.bfloat16()
    given = torch.nn.Parameter(torch.full((32,), 1.001, dtype=torch.float64))
    with replaced(decoder, {"model.norm.weight": given}):
        assert decoder.module.model.norm.weight is not given
        assert torch.equal(decoder.module.model.norm.weight, given.bfloat16())


def test_a_linear_layer_can_be_given_a_bias(ids):
    decoder = tiny_decoder("llama")
    dense, names = logits(decoder, ids), list(decoder.module.state_dict())
    bias = torch.linspace(-1, 1, 259)
    with replaced(decoder, {"lm_head.bias": bias}):
        torch.testing.assert_close(logits(decoder, ids), dense + bias)
    assert torch.equal(logits(decoder, ids), dense)
    assert list(decoder.module.state_dict()) == names


@pytest.mark.parametrize("fails", ["inside", "later name"])
def test_an_exception_restores_too(fails):
    decoder = tiny_decoder("gpt2")
    before = model_snapshot(decoder)
    values = {"transformer.ln_f.weight": torch.zeros(32)}
    if fails == "later name":
        values["transformer.ln_f.bias"] = torch.zeros(32, 2)
    with pytest.raises((KeyError, MethodError)), replaced(decoder, values):
        raise KeyError
    assert not changes(before, model_snapshot(decoder))


@pytest.mark.parametrize(
    ("name", "shape", "error", "says"),
    [
        (
            "model.layers.0.mlp.up_prj.weight",
            (48, 32),
            UnknownNameError,
            r"Did you mean 'model\.layers\.0\.mlp\.up_proj",
        ),
        ("model.layers.9.mlp.up_proj.weight", (48, 32), UnknownNameError, "unknown parameter 'model.layers.9"),
        ("weight", (48, 32), UnknownNameError, "unknown parameter 'weight'"),
        ("model.norm.bias", (32,), UnknownNameError, "Did you mean 'model.norm.weight'"),
        ("model.layers.0.mlp.up_proj.weight", (32, 48), MethodError, r"has the shape \[48, 32\], and .* \[32, 48\]"),
        ("lm_head.bias", (32,), MethodError, r"lm_head.bias has the shape \[259\]"),
    ],
)
def test_names_and_shapes_that_are_not_the_models_are_refused(name, shape, error, says):
    decoder = tiny_decoder("llama")
    before = model_snapshot(decoder)
    with (
        pytest.raises(error, match=says),
        replaced(decoder, {"model.norm.weight": torch.ones(32), name: torch.zeros(shape)}),
    ):
        pass
    assert not changes(before, model_snapshot(decoder))


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_names_are_the_dense_models_when_layers_are_out(family, ids):
    decoder = tiny_decoder(family)
    site = next(site for site in sites(decoder, layers=[2]) if ".mlp." in site.place or "fc1" in site.place)
    name, zero = f"{site.name}.weight", torch.zeros_like(site.module.weight)
    kept = site.module.weight
    with without_blocks(decoder, [0]):
        assert name in [f"{each.name}.weight" for each in sites(decoder, layers=[2])]
        dropped = logits(decoder, ids)
        with replaced(decoder, {name: zero}):
            assert not site.module.weight.any()
            assert not torch.equal(logits(decoder, ids), dropped)
        assert torch.equal(logits(decoder, ids), dropped)
    assert site.module.weight is kept


@pytest.mark.parametrize("how", ["block", "mlp"])
def test_what_is_out_of_the_model_is_refused(how):
    decoder = tiny_decoder("llama")
    out = without_blocks(decoder, [1]) if how == "block" else without_branches(decoder, mlp=[1])
    name = "model.layers.1.mlp.up_proj.weight"
    with (
        out,
        pytest.raises(MethodError, match="another method has taken it out"),
        replaced(decoder, {name: torch.zeros(48, 32)}),
    ):
        pass


def test_kernels_compute_what_is_there_and_are_not_replaced(ids):
    decoder = tiny_decoder("llama")
    site = next(site for site in sites(decoder) if site.name.endswith("0.mlp.up_proj"))
    name = f"{site.name}.weight"
    values = torch.eye(48, 32) * 127
    with replaced(decoder, {name: values}):
        with installed([(site, Int8Linear(site.weight, site.bias, kernels_here.PRODUCT))]):
            computed = site.module(torch.eye(32))
            torch.testing.assert_close(computed, values.T, rtol=1e-3, atol=1e-3)
            says = r"up_proj\.weight cannot be replaced: its linear layer is computed by"
            with pytest.raises(MethodError, match=says), replaced(decoder, {name: values}):
                pass
            with (
                pytest.raises(MethodError, match=r"up_proj\.bias cannot be replaced"),
                replaced(decoder, {f"{site.name}.bias": torch.zeros(48)}),
            ):
                pass
        assert torch.equal(site.weight, values)


def test_zeros_are_labelled_while_they_last():
    decoder = tiny_decoder("llama")
    site = sites(decoder)[0]
    name = f"{site.name}.weight"
    mask = torch.arange(32) % 4 < 2
    with masked([(site, mask.expand(32, 32), "2:4")]):
        assert zeros(site.module) == "2:4"
        with replaced(decoder, {name: 2 * site.weight}):
            assert zeros(site.module) == "2:4"
        with replaced(decoder, {name: torch.ones(32, 32)}):
            assert zeros(site.module) is None
            assert not kernel_counts(decoder)
        assert zeros(site.module) == "2:4"
    assert zeros(site.module) is None
