"""Scales of channels move from what writes a tensor into what reads it, and answers stay; what cannot is refused."""

import pytest
import torch

from harness.core.errors import UnsupportedModelError
from harness.model.basis import Norm
from harness.model.channel_scales import calibrated, feeds, moved
from harness.model.surgery import without_branches
from harness.model.weights.linear import sites
from harness.model.weights.observers import AbsMax
from harness.model.weights.replaced import replaced
from harness.testing.snapshot import changes, model_snapshot
from harness.testing.tiny import FAMILIES, tiny_decoder
from tests.benchmarks.architectures import decoder as architecture

TOLERANCE = 1e-5
"""Of the largest logit."""


@torch.no_grad()
def logits(decoder, ids):
    return decoder.module(input_ids=ids).logits


def drawn(fed, seed=0):
    """Scales from 1/4 to 4, and shifts for the norms that have biases."""
    generator = torch.Generator().manual_seed(seed)
    scales = {feed.name: 4 ** (2 * torch.rand(feed.width, generator=generator) - 1) for feed in fed}
    return scales, {feed.name: torch.randn(feed.width, generator=generator) for feed in fed if feed.can_shift}


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "olmo2"])
def test_moved_scales_leave_the_logits(family, ids):
    decoder = tiny_decoder(family, layers=2)
    dense, before = logits(decoder, ids), model_snapshot(decoder)
    fed = feeds(decoder, sites(decoder), inner=True)
    with replaced(decoder, moved(fed, *drawn(fed))):
        assert all(changes(before, model_snapshot(decoder)))
        close = TOLERANCE * float(dense.abs().max())
        torch.testing.assert_close(logits(decoder, ids), dense, rtol=0, atol=close)
    assert torch.equal(logits(decoder, ids), dense)


@pytest.mark.parametrize(
    ("family", "options", "inner"),
    [
        ("llama", {}, {"mlp.down_proj"}),  # two queries read one value
        ("llama", {"num_key_value_heads": 4}, {"self_attn.o_proj", "mlp.down_proj"}),
        ("phi3", {"num_key_value_heads": 4}, {"self_attn.o_proj", "mlp.down_proj"}),
        ("gpt2", {}, {"attn.c_proj"}),  # GELU passes no factor on
        ("gpt_neox", {}, {"attention.dense"}),
        ("opt", {}, {"self_attn.out_proj", "fc2"}),  # ReLU does
        ("opt", {"activation_function": "gelu"}, {"self_attn.out_proj"}),
        ("gemma2", {"num_key_value_heads": 4}, {"self_attn.o_proj", "mlp.down_proj"}),
    ],
)
def test_linear_layers_write_what_can_be_scaled_where_shapes_allow_it(family, options, inner, ids):
    decoder = tiny_decoder(family, layers=1, **options)
    dense = logits(decoder, ids)
    fed = feeds(decoder, sites(decoder), inner=True)
    written = [feed for feed in fed if not isinstance(feed.source, Norm)]
    assert {feed.name.partition(".0.")[2] for feed in written} == inner
    with replaced(decoder, moved(written, *drawn(written))):
        torch.testing.assert_close(logits(decoder, ids), dense, rtol=0, atol=TOLERANCE * float(dense.abs().max()))
    assert all(isinstance(feed.source, Norm) for feed in feeds(decoder, sites(decoder)))


def test_branches_that_read_one_norm_are_readers_alike():
    decoder = architecture("phi")
    fed = feeds(decoder, sites(decoder))
    first = fed[0]
    assert {reader.name.rpartition(".")[2] for reader in first.readers} == {"q_proj", "k_proj", "v_proj", "fc1"}
    assert first.inspected is decoder.live[0].module


def test_branches_that_are_out_of_the_model_read_nothing(ids):
    for decoder in (architecture("phi"), tiny_decoder("llama", layers=2)):
        with without_branches(decoder, attention=[1]):
            fed = feeds(decoder, sites(decoder), inner=True)
            assert not any("attn" in reader.name for feed in fed if feed.layer == 1 for reader in feed.readers)
            dense = logits(decoder, ids)
            with replaced(decoder, moved(fed, drawn(fed)[0])):
                close = TOLERANCE * float(dense.abs().max())
                torch.testing.assert_close(logits(decoder, ids), dense, rtol=0, atol=close)


def test_what_no_chosen_layer_reads_is_left():
    decoder = tiny_decoder("llama", layers=2)
    fed = feeds(decoder, sites(decoder, ["*.up_proj", "*.o_proj"], layers=[1]), inner=True)
    assert [feed.name for feed in fed] == ["model.layers.1.mlp.gate_proj"]
    assert [reader.name.rpartition(".")[2] for reader in fed[0].readers] == ["gate_proj", "up_proj"]


@pytest.mark.parametrize("family", ["llama", "gemma", "gpt2"])
def test_in_half_precision_readers_get_what_the_gain_gave(family, ids):
    decoder = tiny_decoder(family, layers=1)
    decoder.module.bfloat16()
    fed = feeds(decoder, sites(decoder))
    scales, _ = drawn(fed)
    values = moved(fed, scales)
    for feed in fed:
        norm, site = feed.source, feed.readers[0]
        given = values[f"{norm.name}.weight"].double() + norm.offset
        weight = site.stored(values[f"{site.name}.weight"])
        torch.testing.assert_close(given * weight, norm.gain * site.weight.double(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("decoder", "says"),
    [
        (lambda: tiny_decoder("olmo2"), "Olmo2.* has a branch that reads the residual stream without a norm"),
        (lambda: architecture("olmo"), "Olmo.* has no gain that could take the scales"),
    ],
)
def test_what_no_norm_can_scale_is_refused_by_name(decoder, says):
    model = decoder()
    with pytest.raises(UnsupportedModelError, match=says):
        feeds(model, sites(model))
    assert not feeds(model, sites(model, ["*.o_proj"]))


def test_something_else_that_reads_a_norm_is_seen(ids):
    decoder = tiny_decoder("llama", layers=2)

    def calibrate():
        fed = feeds(decoder, sites(decoder), inner=True)
        return calibrated(decoder, [ids[:1]], fed, AbsMax, lambda feed, largest: largest.value)

    scales, tokens = calibrate()
    assert len(scales) == 6
    assert tokens == ids.shape[1]
    decoder.live[1].module.mlp.register_forward_hook(lambda module, args, output: output + args[0])
    with pytest.raises(UnsupportedModelError, match=r"llama.*answers of layer 1 .*something else reads it"):
        calibrate()
