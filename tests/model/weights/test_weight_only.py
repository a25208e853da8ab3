"""Weights alone in few bits, and fp8: the stated formula, on every product that there is on this machine."""

import pytest
import torch
from torch.nn.functional import linear

from harness.contract.facts import Savings
from harness.measure.audit import count_flops
from harness.model.weights.computations import Computation, Layer
from harness.model.weights.formats import NumberFormat, quantize
from harness.model.weights.fp8 import Fp8Linear
from harness.model.weights.int8 import Int8Linear
from harness.model.weights.weight_only import computations

INT8 = NumberFormat(8)
INT4 = NumberFormat(4, 128, False, scale="float16")
SYMMETRIC = NumberFormat(4, 32, True, scale="float16")
LAYER = Layer(48, 256, "bfloat16")


@pytest.fixture
def weight() -> torch.Tensor:
    return torch.randn(48, 256, generator=torch.Generator().manual_seed(0)) / 16


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(40, 256, generator=torch.Generator().manual_seed(1))


def kernel(number: NumberFormat) -> Computation:
    """The first product with packed weights that this machine has for a model in bfloat16."""
    ways = computations(LAYER, "cpu", number)
    if not ways.able:
        pytest.skip(str(ways.why_dense))
    return ways.able[0]


@pytest.mark.parametrize("number", [INT8, INT4, SYMMETRIC, NumberFormat(3, 16, False, scale="float16")])
def test_the_dense_product_is_over_the_rounded_weights(
    number: NumberFormat, weight: torch.Tensor, x: torch.Tensor
) -> None:
    bias = torch.randn(48, generator=torch.Generator().manual_seed(2))
    layer = computations(LAYER, "cpu", number).dense.make(weight, bias)
    expected = linear(x.double(), quantize(weight, number).dequantized().double(), bias.double())
    assert torch.allclose(layer(x).double(), expected, atol=1e-5)
    assert (layer.savings, layer.kernel) == (Savings.SIMULATED, f"dense product over {number.label} weights")
    assert layer.weight_bytes == weight.nbytes  # which is what it reads
    assert layer.weight_count == layer.macs_per_token == 48 * 256


@pytest.mark.parametrize(
    ("number", "nbytes"), [(INT8, 48 * 256 + 48 * 2), (INT4, 48 * 128 + 48 * 2 * 4), (SYMMETRIC, 48 * 128 + 48 * 8 * 4)]
)
def test_a_packed_product_is_that_of_the_rounded_weights(
    number: NumberFormat, nbytes: int, weight: torch.Tensor, x: torch.Tensor
) -> None:
    bias = torch.randn(48, generator=torch.Generator().manual_seed(2))
    layer = kernel(number).make(weight.bfloat16(), bias.bfloat16())
    tokens = x.bfloat16().view(2, 20, 256)
    y, flops = count_flops(lambda: layer(tokens))
    values = quantize(weight.bfloat16(), number).dequantized()
    expected = linear(tokens.double(), values.double(), bias.bfloat16().double())
    assert (y.shape, y.dtype) == ((2, 20, 48), torch.bfloat16)
    assert float((y - expected).abs().max() / expected.abs().max()) < 0.02
    assert flops == 2 * 40 * 48 * 256
    assert layer.savings is Savings.REAL
    if layer.kernel.startswith("torch "):
        assert layer.weight_bytes == nbytes
    assert layer(tokens[:, :0]).shape == (2, 0, 48)


@pytest.mark.parametrize(
    ("layer", "number", "says"),
    [
        (
            Layer(48, 256, "float32"),
            INT8,
            "torch int8pack: it takes bfloat16, and has scalar code for the model's float32",
        ),
        (
            Layer(48, 40, "bfloat16"),
            INT8,
            "torch int8pack: it takes a multiple of 32 inputs, and a linear layer has 40",
        ),
        (Layer(48, 256, "float16"), INT4, "torch int4pack: it takes bfloat16, and the model is in float16"),
        (
            Layer(40, 256, "bfloat16"),
            INT4,
            "torch int4pack: it takes a multiple of 16 outputs, and a linear layer has 40",
        ),
        (Layer(48, 256, "bfloat16"), NumberFormat(4, 16), "torch int4pack: it takes groups of 32, 64, 128, 256 inputs"),
    ],
)
def test_what_torchs_products_do_not_take_is_said(layer: Layer, number: NumberFormat, says: str) -> None:
    reasons = [str(each.why_not) for each in computations(layer, "cpu", number).kernels]
    assert any(says in reason for reason in reasons)


def by_hand(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The documented formula of fp8, token by token in double precision, with torch's own casts."""
    largest, scale = x.abs().amax(1, keepdim=True), weight.abs().amax(1) / 448
    rounded = (x * (448 / largest)).to(torch.float8_e4m3fn).double()
    values = (weight / scale[:, None]).to(torch.float8_e4m3fn).double()
    return rounded @ values.T * scale.double() * largest.double() / 448


def test_fp8_is_the_formula(weight: torch.Tensor, x: torch.Tensor) -> None:
    layer = Fp8Linear(weight, None)
    assert torch.allclose(layer(x).double(), by_hand(x, weight), rtol=1e-5, atol=1e-5)
    assert (layer.savings, layer.weight_bytes) == (Savings.SIMULATED, weight.nbytes + 4 * 48)
    dense = x @ weight.T
    assert 0.02 < float((layer(x) - dense).norm() / dense.norm()) < 0.05


def test_a_massive_token_costs_the_others_nothing_in_fp8(weight: torch.Tensor, x: torch.Tensor) -> None:
    layer = Fp8Linear(weight, None)
    plain = layer(x)
    x[7] *= 1e4
    massive = layer(x)
    others = torch.arange(40) != 7
    assert torch.allclose(massive[others], plain[others], rtol=1e-5, atol=1e-5)
    alone = torch.cat([layer(row[None]) for row in x])
    assert torch.allclose(alone, massive, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", [Fp8Linear, lambda weight, bias: Int8Linear(weight, bias, None)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_no_sum_is_beyond_a_type_and_no_token_of_zeros_is_no_number(kind: object, dtype: torch.dtype) -> None:
    weight = torch.ones(16, 4096, dtype=dtype)
    layer = kind(weight, None)  # type: ignore[operator]
    x = torch.ones(4, 4096, dtype=dtype)
    x[1], x[2] = 0, 1e-7  # below float16's normal numbers
    y = layer(x).float()
    assert torch.allclose(y[0], torch.tensor(4096.0), rtol=1e-2)
    assert not y[1].any()
    assert torch.allclose(y[2], 4096 * x[2, 0].float(), rtol=1e-2)
