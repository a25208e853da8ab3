"""HQQ: what its iterations may change, and which kernels can take zero points between codes."""

import itertools

import pytest
import torch

from harness.contract.prepared import Prepared
from harness.contract.stack import parse
from harness.core.errors import MethodError
from harness.methods.quantization.hqq import Hqq
from harness.model.weights.computations import Layer
from harness.model.weights.formats import NumberFormat, quantize
from harness.model.weights.half_quadratic import fitted_zeros, with_zeros
from harness.model.weights.linear import kernel_counts, sites
from harness.model.weights.weight_only import computations
from harness.testing.tiny import tiny_decoder

NUMBER = NumberFormat(4, 16, symmetric=False, scale="float16", zero="float16")
WHOLE = NumberFormat(4, 16, symmetric=False, scale="float16")


@torch.no_grad()
def logits(decoder, ids):
    return decoder.module(input_ids=ids).logits


def weights():
    """Of the usual size, heavy-tailed, and with a row of zeros, a constant one and a huge outlier."""
    generator = torch.Generator().manual_seed(3)
    normal = torch.randn(24, 64, generator=generator)
    special = normal * 0.02
    special[0], special[1], special[2, 5] = 0.0, 0.3, 1e4
    return [normal, normal**3, special]


@pytest.mark.parametrize("weight", weights())
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_error_of_no_group_rises(weight, bits):
    number = NumberFormat(bits, 16, symmetric=False, scale="float16", zero="float16")

    def errors(iterations):
        zero, overall = fitted_zeros(weight, number, iterations)
        change = (with_zeros(weight, number, zero).dequantized() - weight).abs().pow(0.7)
        assert change.isfinite().all()
        return change.view(24, 4, 16).sum(2), overall

    history = [errors(iterations) for iterations in (1, 2, 5, 20)]
    for (before, _), (after, _) in itertools.pairwise(history):
        assert (after <= before * (1 + 1e-5) + 1e-6).all()
    last, overall = history[-1]
    assert overall == sorted(overall, reverse=True)
    assert overall[-1] == pytest.approx(float(last.double().sum()), rel=1e-4)


def test_it_errs_less_than_rounding_to_nearest():
    weight = weights()[1]
    _, errors = fitted_zeros(weight, NUMBER, 20)
    assert errors[-1] < 0.98 * errors[0]


@pytest.mark.parametrize("weight", weights())
def test_one_iteration_is_rounding_to_nearest(weight):
    zero, _ = fitted_zeros(weight, NUMBER, 1)
    own, nearest = with_zeros(weight, NUMBER, zero), quantize(weight, WHOLE)
    assert torch.equal(own.codes, nearest.codes)
    assert torch.equal(own.dequantized(), nearest.dequantized())


def test_iterations_by_hand():
    """The second zero point, from the formula in plain steps."""
    weight = weights()[0][:, :16]
    nearest = quantize(weight, WHOLE)
    x = weight - nearest.dequantized()
    sparse = x.sign() * (x.abs() - x.abs() ** -0.3 / 10).clamp(min=0)
    zero = (nearest.codes - (weight - sparse) / nearest.scale).mean(1, keepdim=True).half()
    fitted, errors = fitted_zeros(weight, NUMBER, 2)
    changed = fitted != nearest.zero
    assert changed.any()
    assert len(errors) == 2
    torch.testing.assert_close(fitted[changed], zero[changed])


def test_a_format_with_fractions_for_zero_points_counts_their_bytes():
    assert NUMBER.nbytes(24, 64) == 24 * (32 + 4 * 2 + 4 * 2)
    assert WHOLE.nbytes(24, 64) == 24 * (32 + 4 * 2 + 2)
    assert NUMBER.label == "int4 g16 float16 zeros"
    with pytest.raises(MethodError, match="a symmetric format has no zero points"):
        NumberFormat(4, 16, symmetric=True, zero="float16")


def test_the_model_has_the_fitted_weights(ids):
    decoder, by_hand = tiny_decoder("gpt2", layers=2), tiny_decoder("gpt2", layers=2)
    method = Hqq(group=16)
    dense, state = logits(decoder, ids), method.prepare(decoder, None)
    assert 0 < state.facts["error"] < 1
    for site in sites(by_hand):
        zero, _ = fitted_zeros(site.weight, NUMBER, 20)
        site.module.weight.data.copy_(site.stored(with_zeros(site.weight, NUMBER, zero).dequantized()))
    with method.attach(decoder, state):
        torch.testing.assert_close(logits(decoder, ids), logits(by_hand, ids))
        assert kernel_counts(decoder) == {"dense product over int4 g16 float16 zeros weights": 8}
    assert torch.equal(logits(decoder, ids), dense)


def test_sixteen_bits_leave_the_model_as_it_is(ids):
    decoder, method = tiny_decoder("llama", layers=1), Hqq(bits=16)
    dense = logits(decoder, ids)
    with method.attach(decoder, method.prepare(decoder, None)):
        assert torch.equal(logits(decoder, ids), dense)
        assert not kernel_counts(decoder)
    assert not Prepared().tensors


def test_no_kernel_for_whole_zero_points_is_given_fractions():
    names = [kernel.name for kernel in computations(Layer(64, 64, "bfloat16"), "cpu", NUMBER).kernels]
    assert {name.partition(",")[0] for name in names} == {"torch int4pack", "torch tile-packed"}


@pytest.mark.parametrize("group", [32, 64])
def test_torch_s_kernel_takes_fractions(group):
    number = NumberFormat(4, group, symmetric=False, scale="float16", zero="float16")
    weight = torch.randn(32, 128, generator=torch.Generator().manual_seed(0))
    zero, _ = fitted_zeros(weight, number, 20)
    ways = computations(Layer(32, 128, "bfloat16"), "cpu", number, with_zeros(weight, number, zero))
    kernel = next(each for each in ways.kernels if each.name.startswith("torch int4pack"))
    if kernel.why_not is not None:
        pytest.skip(kernel.why_not)
    x = torch.randn(3, 128, generator=torch.Generator().manual_seed(1)).bfloat16()
    dense, packed = (way.make(weight.bfloat16(), None)(x).float() for way in (ways.dense, kernel))
    torch.testing.assert_close(packed, dense, rtol=0, atol=0.02 * float(dense.abs().max()))


def test_what_prunes_is_refused_below_it():
    with pytest.raises(MethodError, match=r"would fill the zeros of wanda: take wanda\+int4-weight-only"):
        parse("wanda+hqq").check_order()
