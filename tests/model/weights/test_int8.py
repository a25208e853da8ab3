"""Int8: the stated error, the same for every token; a product that is not exact is seen and not used."""

import math
import os

import pytest
import torch

from harness.contract.facts import Savings
from harness.core.cpu import instruction_sets, limits
from harness.measure.audit import count_flops
from harness.model.weights import dense_kernels, int8
from harness.model.weights.computations import Layer
from harness.model.weights.int8 import PRODUCTS, Int8Linear, computations, is_right, quantize_rows
from tests import kernels_here


@pytest.fixture
def weight():
    return torch.randn(96, 256, generator=torch.Generator().manual_seed(0)) / 16


@pytest.fixture
def x():
    return torch.randn(40, 256, generator=torch.Generator().manual_seed(1))


def by_token(found, expected):
    return ((found - expected).norm(dim=1) / expected.norm(dim=1)).double()


def formula(x, weight, bias):
    """The documented formula, token by token in double precision."""
    quantized, scale = quantize_rows(weight)
    largest = x.abs().amax(1, keepdim=True)
    rounded = (x * (127 / largest)).round().double()
    return rounded @ quantized.double().T * scale.double() * largest.double() / 127 + bias.double()


def test_the_product_is_the_formula(x, weight):
    bias = torch.randn(96, generator=torch.Generator().manual_seed(2))
    found = Int8Linear(weight, bias, kernels_here.PRODUCT)(x)
    assert torch.allclose(found.double(), formula(x, weight, bias), rtol=1e-5, atol=1e-5)


def test_the_error_on_normal_values_is_about_a_percent(x, weight):
    assert 0.006 < float(by_token(Int8Linear(weight, None, kernels_here.PRODUCT)(x), x @ weight.T).median()) < 0.014


def test_a_massive_token_costs_the_others_nothing(x, weight, monkeypatch):
    plain = by_token(Int8Linear(weight, None, kernels_here.PRODUCT)(x), x @ weight.T)
    x[7] *= 200
    with_sink = by_token(Int8Linear(weight, None, kernels_here.PRODUCT)(x), x @ weight.T)
    assert torch.allclose(plain, with_sink, atol=1e-4)
    monkeypatch.setattr(torch.backends.quantized, "engine", "fbgemm")
    scales, zeros = weight.abs().amax(1).double() / 127, torch.zeros(96, dtype=torch.long)
    packed = torch.ops.quantized.linear_prepack(torch.quantize_per_channel(weight, scales, zeros, 0, torch.qint8), None)
    one_scale = torch.ops.quantized.linear_dynamic(x, packed)
    assert by_token(one_scale, x @ weight.T).median() > 0.5  # what a scale for all tokens would do


def test_channels_that_are_large_on_every_token_cost_precision(x, weight):
    x[:, ::43] *= 50  # six of 256
    assert 0.02 < float(by_token(Int8Linear(weight, None, kernels_here.PRODUCT)(x), x @ weight.T).median()) < 0.08


def test_a_token_gives_the_same_bits_in_any_company(x, weight):
    linear = Int8Linear(weight, None, kernels_here.PRODUCT)
    alone = torch.cat([linear(x[i : i + 1]) for i in range(len(x))])
    assert torch.equal(linear(x), alone)
    assert torch.equal(linear(x.reshape(4, 10, 256)).reshape(40, 96), alone)


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_what_is_not_finite_stays_so(broken, x, weight):
    x[3, 5] = broken
    found = Int8Linear(weight, None, kernels_here.PRODUCT)(x)
    assert not torch.isfinite(found[3]).any()
    assert torch.isfinite(found[4]).all()


def test_a_token_or_row_of_zeros_gives_zeros(x, weight):
    x[2], weight[5] = 0, 0
    found = Int8Linear(weight, None, kernels_here.PRODUCT)(x)
    assert not found[2].any()
    assert not found[:, 5].any()


def test_the_answer_is_in_the_inputs_type(x, weight):
    assert Int8Linear(weight.bfloat16(), None, kernels_here.PRODUCT)(x.bfloat16()).dtype == torch.bfloat16


def test_without_an_integer_product_it_is_simulated_and_answers_alike(x, weight):
    used = Int8Linear(weight, None, kernels_here.PRODUCT)
    expected = used(x)
    assert (used.kernel, used.savings) == (kernels_here.KERNEL, kernels_here.SAVINGS)
    simulated = Int8Linear(weight, None, None)
    assert simulated.savings is Savings.SIMULATED
    assert simulated.kernel == "dense product over int8 values"
    assert simulated.weight_bytes == 4 * 96 * 256 + 4 * 96
    assert torch.allclose(simulated(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("product", [kernels_here.PRODUCT, None])
def test_no_tokens_give_none(weight, product):
    assert Int8Linear(weight, None, product)(torch.empty(2, 0, 256)).shape == (2, 0, 96)


def test_a_product_that_saturates_is_not_taken(monkeypatch):
    def saturating(x, packed, scale):  # unsigned activations, sums of two products in 16 bits: vpmaddubsw
        products = ((x.int() + 128)[:, None, :] * packed.int()).unflatten(-1, (-1, 2)).sum(-1)
        sums = products.clamp(-(2**15), 2**15 - 1).sum(-1) - 128 * packed.int().sum(-1)
        return sums.float() * scale

    def exact(x, packed, scale):
        return (x.double() @ packed.double().T * scale).float()

    broken, right = (int8.Int8Product(each.__name__, lambda weight: weight, each) for each in (saturating, exact))
    monkeypatch.setattr(int8, "PRODUCTS", (broken, right))
    layer = Layer(96, 256, "float32")
    assert [kernel.name for kernel in computations(layer, "cpu").able] == ["exact"]
    monkeypatch.setattr(int8, "PRODUCTS", (broken,))
    (kernel,) = computations(layer, "cpu").kernels
    assert kernel.why_not == "saturating is not there, or not exact on this processor"
    (kernel,) = computations(layer, "cuda:0").kernels
    assert kernel.why_not == "saturating: it is for a CPU, and the model is on cuda:0"


@pytest.mark.parametrize("product", PRODUCTS, ids=lambda product: product.name)
def test_every_product_is_right_where_the_processor_has_vnni(product, x, weight):
    if product.device != "cpu":
        pytest.skip(f"{product.name} is for CUDA")
    if not is_right(product):
        if (reason := dense_kernels.missing("plain C")) and product.linear is not None:
            pytest.skip(reason)
        vnni = {"AVX512-VNNI", "AVX-VNNI"} & set(instruction_sets() or ())
        limited = limits() or "ATEN_CPU_CAPABILITY" in os.environ
        assert limited or not vnni, f"{product.name} is wrong on a processor with {vnni}"
        pytest.skip(f"{product.name} is not exact without VNNI")
    for tokens in (40, 1):  # what rows are filled up with is not counted
        _, flops = count_flops(lambda tokens=tokens: Int8Linear(weight, None, product)(x.view(-1, 256)[:tokens]))
        assert flops == 2 * tokens * 96 * 256
