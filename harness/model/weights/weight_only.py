"""What may compute a linear layer whose weights alone are in a number format."""

from functools import cache, partial

import torch
from torch.nn.functional import linear

from harness.model.weights import cuda, trial
from harness.model.weights.computations import Computation, Computations, Layer, not_on_cpu
from harness.model.weights.formats import NumberFormat, Quantized, quantize
from harness.model.weights.linear import ReplacementLayer
from harness.model.weights.packed_linear import DenseOverValues, PackedLinear, PackedProduct, dense_label
from harness.model.weights.packed_products import PRODUCTS
from harness.model.weights.stored import stored

_TOLERANCE = {"float32": 1e-4, "float16": 5e-3, "bfloat16": 2e-2}
"""Of the largest output: what a product's own rounding may do, by its type."""
_OUT, _INPUTS = 48, 512
"""Of the weight that a product is tried on; every group that a product takes divides the inputs."""


def computations(layer: Layer, device: str, number: NumberFormat, rounded: Quantized | None = None) -> Computations:
    """The dense product over the rounded weights, and the products over packed ones, on a device.

    Args:
        rounded: the layer's weight in the format; None: each computation rounds what it is given to nearest.
    """
    kernels = []
    for each in PRODUCTS:
        if each.takes(number):
            make = partial(_packed, number=number, product=each, rounded=rounded)
            why_not, elsewhere = _why_not(each, number, layer, device), not device.startswith(each.device)
            floats = each.multiplies_floats
            kernels.append(Computation(each.label(number), make, why_not, elsewhere, multiplies_floats=floats))
    dense = Computation(dense_label(number), partial(_dense, number=number, rounded=rounded))
    written = stored(number, codes=None if rounded is None else lambda: rounded)
    return Computations(dense, tuple(kernels), __name__, device, stored=written)


def _dense(
    weight: torch.Tensor, bias: torch.Tensor | None, number: NumberFormat, rounded: Quantized | None
) -> ReplacementLayer:
    return DenseOverValues(rounded or quantize(weight, number), bias, weight.dtype)


def _packed(
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    number: NumberFormat,
    product: PackedProduct,
    rounded: Quantized | None,
) -> ReplacementLayer:
    return PackedLinear(rounded or quantize(weight, number), bias, weight.dtype, product)


def _why_not(product: PackedProduct, number: NumberFormat, layer: Layer, device: str) -> str | None:
    reason = (
        (cuda.why_not(device, product.capability) if product.device == "cuda" else not_on_cpu(device))
        or product.refuses(number, layer)
        or _fault(product, number, layer.dtype, device)
    )
    return f"{product.name}: {reason}" if reason else None


@cache
def _fault(product: PackedProduct, number: NumberFormat, dtype: str, device: str) -> str | None:
    """What is wrong with a product on a device of this machine, tried beside the dense product over the same numbers.

    Args:
        dtype: of the activations.
    """
    generator = torch.Generator().manual_seed(0)
    weight = quantize(torch.randn(_OUT, _INPUTS, generator=generator), number)
    draws = torch.randn(max(trial.TOKENS), _INPUTS, generator=generator).to(getattr(torch, dtype))
    expected = linear(draws.double(), weight.dequantized().double())  # [tokens, out]
    return trial.fault(
        lambda: PackedLinear(weight.to(device), None, draws.dtype, product), draws, expected, device, _TOLERANCE[dtype]
    )
