"""RepQuant: its steps and shifts, what they leave of a model, and probabilities in powers of the root of two."""

import pytest
import torch

from harness.contract.stack import parse
from harness.contract.study import Study
from harness.methods.quantization.rep_quant import RepQuant
from harness.model.log_attention import attention, rounded
from harness.model.weights.linear import kernel_counts
from harness.model.weights.steps import SHARES, steps
from harness.testing.tiny import tiny_decoder
from tests.methods.conftest import error_of_product

TEXT = Study(("The keeper of the light wrote down every ship that passed. " * 8,), "a sentence")
SMALL = {"samples": 2, "length": 48}


@torch.no_grad()
def logits(decoder, ids):
    return decoder.module(input_ids=ids).logits


@pytest.mark.parametrize("symmetric", [True, False])
def test_the_percentile_of_each_channel_errs_least(symmetric):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3000, 70, generator=generator) + torch.arange(70) / 10
    x[0, ::3] *= 40  # of some channels a single value is far out
    step, centre = steps(x, 4, symmetric=symmetric)
    assert step.shape == centre.shape == (70,)

    def errors(step, centre):
        return (((x - centre) / step).round().clamp(-7, 7) * step + centre - x).square().sum(0)

    chosen, taken = errors(step, centre), torch.zeros(70, dtype=torch.bool)
    for share in SHARES:
        high, low = (torch.quantile(x.double(), each, 0) for each in (share, 1 - share))
        middle = torch.zeros(70) if symmetric else (high + low) / 2
        width = torch.quantile(x.abs().double(), share, 0) if symmetric else high - middle
        assert (chosen <= errors(width / 7, middle) * (1 + 1e-3)).all()
        taken |= (step - width / 7).abs() <= 1e-3 * step
    assert taken.all()


def test_a_channel_that_is_always_the_same_gets_a_step():
    x = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    x[:, 1], x[:, 2] = 0.0, 3.0
    for symmetric in (True, False):
        step, centre = steps(x, 8, symmetric=symmetric)
        assert (step > 0).all()
        assert (step.isfinite() & centre.isfinite()).all()


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "gpt_neox", "gemma"])
def test_it_is_eight_bits_of_a_model_with_the_same_answers(family, ids):
    decoder = tiny_decoder(family, layers=2)
    method = RepQuant(**SMALL)
    dense, state = logits(decoder, ids), method.prepare(decoder, TEXT)
    centred = family in ("gpt2", "opt", "gpt_neox")
    assert any(name.startswith("shift.") for name in state.tensors) == centred
    for name, scale in state.tensors.items():
        if name.startswith("scale."):
            assert float(scale.mean()) == pytest.approx(1, abs=1e-4)
    with method.attach(decoder, state):
        error = (logits(decoder, ids) - dense).norm() / dense.norm()
        assert sum(kernel_counts(decoder).values()) == len(method.sites(tiny_decoder(family, layers=2)))
    assert 0 < error < 0.05
    assert torch.equal(logits(decoder, ids), dense)


def test_channels_that_stand_off_zero_are_centred(ids):
    decoder = tiny_decoder("gpt2", layers=2)
    with torch.no_grad():
        for block in decoder.live:
            block.attention.pre_norm.bias[:4] += 30
            block.mlp.pre_norm.bias[:4] -= 30
    dense = logits(decoder, ids)
    errors = []
    for text in ("int8-dynamic", "smooth-quant:samples=2,length=48", "rep-quant:samples=2,length=48"):
        (method,) = parse(text).parts
        with method.attach(decoder, method.prepare(decoder, TEXT)):
            errors.append(float((logits(decoder, ids) - dense).norm()))
    assert errors[2] < errors[1] < errors[0]


def test_a_few_large_channels_go_into_the_weights_and_are_lost_there():
    """As they would be with smoothing at alpha=1: scales of weights are those of whole rows."""

    def of_steps(x, w):
        step, _ = steps(x, 8, symmetric=True)
        return step / step.mean()

    own, smoothed = (
        [error_of_product(scale, large=large) for large in (False, True)]
        for scale in (of_steps, lambda x, w: (x.abs().amax(0) / w.abs().amax(0)).sqrt())
    )
    assert own[0] == pytest.approx(smoothed[0], rel=0.15)
    assert own[1] > 3 * smoothed[1]


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_rounded_probabilities_keep_their_order_and_their_sum(bits):
    generator = torch.Generator().manual_seed(0)
    p = (2 * torch.randn(500, 40, generator=generator)).softmax(1)
    q = rounded(p, bits)
    ordered = q.gather(1, p.argsort(1))
    assert (ordered.diff(dim=1) >= 0).all()
    assert torch.equal(q.amax(1), p.amax(1))
    kept = q > 0
    ratio = (q / p)[kept]
    assert ((ratio >= 2**-0.251) & (ratio <= 2**0.251)).all()
    if bits >= 4:
        assert float((q.sum(1) - 1).abs().mean()) < 0.05
    assert (p[~kept] < p.amax(1, keepdim=True).expand_as(p)[~kept] * 2 ** (-(2**bits - 1) / 2)).all()


def test_codes_of_probabilities_by_hand():
    p = torch.tensor([1.0, 0.5, 2**-0.5, 0.25, 2**-7.5, 2**-8.0, 0.0])
    assert torch.allclose(rounded(p, 4), torch.tensor([1.0, 0.5, 2**-0.5, 0.25, 2**-7.5, 0.0, 0.0]))


def test_with_many_bits_attention_is_nearly_the_model_s(ids):
    decoder = tiny_decoder("llama", layers=2)
    dense = logits(decoder, ids)
    answers = {}
    for bits in (0, 4, 8):
        method = RepQuant(softmax=bits, **SMALL)
        with method.attach(decoder, method.prepare(decoder, TEXT)):
            answers[bits] = logits(decoder, ids)
    assert not torch.equal(answers[0], answers[4])
    assert (answers[4] - dense).norm() / dense.norm() < 0.2
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, heads, 9, 8, generator=generator) for heads in (4, 2, 2))
    mask = torch.ones(9, 9, dtype=torch.bool).tril().expand(2, 1, -1, -1)
    for each in (None, mask, mask.expand(2, 4, -1, -1)):
        output, pairs = attention(q, k, v, each, 0.3, 8)
        keys, values = (tensor.repeat_interleave(2, 1) for tensor in (k, v))
        p = (q @ keys.mT * 0.3).masked_fill(~mask, -torch.inf).softmax(-1)
        torch.testing.assert_close(output, rounded(p, 8) @ values, rtol=1e-5, atol=1e-5)
        assert pairs == 2 * 4 * 81
