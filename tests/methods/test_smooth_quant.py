"""SmoothQuant: its scales by hand, what it gains where channels differ, and an outside implementation of the same."""

import pytest
import torch
from torch import nn

from harness.contract.stack import parse
from harness.contract.study import Study
from harness.core.errors import UnsupportedModelError
from harness.methods.quantization.smooth_quant import SmoothQuant
from harness.model.channel_scales import feeds
from harness.model.weights.int8 import Int8Linear
from harness.model.weights.linear import kernel_counts, sites
from harness.testing.snapshot import changes, model_snapshot
from harness.testing.tiny import tiny_decoder
from tests.methods.conftest import error_of_product

TEXT = Study(("The keeper of the light wrote down every ship that passed. " * 8,), "a sentence")
SMALL = {"samples": 2, "length": 48}


@torch.no_grad()
def logits(decoder, ids):
    return decoder.module(input_ids=ids).logits


def inputs(decoder, module, windows):
    """What a module reads of all windows, [tokens, in]."""
    seen = []
    handle = module.register_forward_pre_hook(lambda module, args: seen.append(args[0].flatten(0, -2)))
    with torch.no_grad():
        for window in windows:
            decoder.module(input_ids=window)
    handle.remove()
    return torch.cat(seen)


@pytest.mark.parametrize("alpha", [0, 0.5, 0.85, 1])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_scales_are_those_of_the_formula(family, alpha):
    decoder = tiny_decoder(family, layers=2)
    method = SmoothQuant(alpha=alpha, **SMALL)
    before = model_snapshot(decoder)
    state = method.prepare(decoder, TEXT)
    assert not changes(before, model_snapshot(decoder))
    windows = list(method.windows(decoder, TEXT))
    assert state.facts == {"tokens": 96}
    fed = feeds(decoder, sites(decoder))
    assert state.tensors.keys() == {feed.name for feed in fed}
    for feed in fed:
        x = inputs(decoder, feed.readers[0].module, windows).abs().amax(0)
        w = torch.cat([reader.weight for reader in feed.readers]).abs().amax(0)
        torch.testing.assert_close(state.tensors[feed.name], x**alpha / w ** (1 - alpha), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "gpt_neox", "gemma"])
def test_it_is_eight_bits_of_the_scaled_model(family, ids):
    decoder = tiny_decoder(family, layers=2)
    method = SmoothQuant(**SMALL)
    dense, state = logits(decoder, ids), method.prepare(decoder, TEXT)
    with method.attach(decoder, state):
        smoothed = logits(decoder, ids)
        assert sum(kernel_counts(decoder).values()) == len(list(method.sites(tiny_decoder(family, layers=2))))
    assert torch.equal(logits(decoder, ids), dense)
    error = (smoothed - dense).norm() / dense.norm()
    assert 0 < error < 0.05


def test_six_large_channels_cost_as_little_as_none():
    plain = error_of_product(lambda x, w: torch.ones(x.shape[1]), large=True)

    smoothed = error_of_product(lambda x, w: (x.abs().amax(0) / w.abs().amax(0)).sqrt(), large=True)
    assert 0.04 < plain < 0.055
    assert 0.008 < smoothed < 0.012


def test_on_normal_values_there_is_nothing_to_gain():
    plain = error_of_product(lambda x, w: torch.ones(x.shape[1]), large=False)
    smoothed = error_of_product(lambda x, w: (x.abs().amax(0) / w.abs().amax(0)).sqrt(), large=False)
    assert smoothed == pytest.approx(plain, rel=0.15)


def test_large_channels_of_a_model_are_smoothed(ids):
    decoder = tiny_decoder("llama", layers=2)
    with torch.no_grad():
        for block in decoder.live:
            block.attention.pre_norm.weight[:3] *= 50
            block.module.self_attn.q_proj.weight[:, :3] /= 50
            block.module.self_attn.k_proj.weight[:, :3] /= 50
            block.module.self_attn.v_proj.weight[:, :3] /= 50
    dense = logits(decoder, ids)
    errors = []
    for text in ("int8-dynamic", "smooth-quant:samples=2,length=48"):
        (method,) = parse(text).parts
        with method.attach(decoder, method.prepare(decoder, TEXT)):
            errors.append(float((logits(decoder, ids) - dense).norm()))
    assert errors[1] < 0.6 * errors[0]


def test_a_model_without_norms_before_its_branches_is_refused_before_anything_runs():
    with pytest.raises(UnsupportedModelError, match=r"Olmo2.*without a norm"):
        parse("smooth-quant").check_model(lambda: tiny_decoder("olmo2"))


def test_it_is_torchao_s_smooth_quant():
    """The scales that torchao gives a linear layer for the same inputs."""
    smooth = pytest.importorskip("torchao.prototype.smoothquant", reason="torchao is not installed")
    quantization = pytest.importorskip("torchao.quantization", reason="torchao is not installed")
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 32, generator=generator) * (1 + 49 * (torch.arange(32) % 8 == 0))
    model = nn.Sequential(nn.Linear(32, 16, bias=False))
    base = quantization.Int8DynamicActivationInt8WeightConfig()
    quantization.quantize_(model, smooth.SmoothQuantConfig(base_config=base, step="prepare", alpha=0.5))
    model(x)
    weight = model[0].weight.detach().clone()
    quantization.quantize_(model, smooth.SmoothQuantConfig(base_config=base, step="convert", alpha=0.5))
    scale = (x.abs().amax(0) / weight.abs().amax(0)).sqrt()
    own = Int8Linear(weight * scale, None, None)(x / scale)
    torch.testing.assert_close(model(x), own, rtol=0.02, atol=0.02 * float(own.abs().max()))
