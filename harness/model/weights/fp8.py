"""Linear layers in fp8: weights rounded to E4M3 per output, activations per token, multiplied by torch's own operator.

y = (e4m3(448 x / a) W_q) s a / 448,    a = max|x| of the token,    s = max|w| / 448 of the output row
"""

from functools import cache

import torch
from torch.nn.functional import linear

from harness.contract.facts import Savings
from harness.model.weights import cuda, trial
from harness.model.weights.by_token import ByToken
from harness.model.weights.computations import Computation, Computations, Layer
from harness.model.weights.formats import NumberFormat, quantize
from harness.model.weights.stored import stored

E4M3 = NumberFormat(8, element="e4m3")
DENSE_PRODUCT = "dense product over fp8 values"
SCALED_PRODUCT = "cuBLAS fp8"

_UNIT = 512
"""A power of two by which numbers are divided, so that no sum of products is beyond the range of float16."""
_MULTIPLE = 16
_TOLERANCE = 1e-2
"""Of the largest output, which the operator rounds to bfloat16."""


class Fp8Linear(ByToken):
    """A linear layer with weights in E4M3, from a weight of shape [out, in]: the product of floats over such values."""

    levels = E4M3.largest
    savings = Savings.SIMULATED
    kernel = DENSE_PRODUCT
    rounded: torch.Tensor
    scale: torch.Tensor

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__()
        quantized = quantize(weight, E4M3)
        self.register_buffer("rounded", self.stored(quantized.codes.view(torch.float8_e4m3fn), weight.dtype))
        self.register_buffer("scale", quantized.scale[:, 0])
        self.register_buffer("bias", bias)
        self.macs_per_token = self.weight_count = weight.numel()
        self.format_bytes = quantized.nbytes if self.savings is Savings.SIMULATED else None

    def stored(self, weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """What is kept of weights in E4M3 [out, in], for a model of a type, which holds all of them exactly."""
        return weight.to(dtype) / _UNIT

    def product(self, x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """See ``ByToken``."""
        rounded = x.to(torch.float8_e4m3fn).to(self.rounded.dtype) / _UNIT
        return linear(rounded, self.rounded).float() * (self.scale * _UNIT**2) * scale


class ScaledFp8Linear(Fp8Linear):
    """The same on torch's product of fp8, which takes scales for each token and each output."""

    savings = Savings.REAL
    kernel = SCALED_PRODUCT

    def stored(self, weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """The weights as they are."""
        return weight

    def product(self, x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """See ``ByToken``."""
        return torch._scaled_mm(
            x.to(torch.float8_e4m3fn),
            self.rounded.T,  # [in, out], column by column, as the operator wants it
            scale_a=scale,
            scale_b=self.scale[None],
            out_dtype=torch.bfloat16,  # the only type that it gives with such scales
        ).float()


def computations(layer: Layer, device: str) -> Computations:
    """What may compute a linear layer in fp8 on a device."""
    kernel = Computation(SCALED_PRODUCT, ScaledFp8Linear, _why_not(layer, device))
    dense = Computation(DENSE_PRODUCT, Fp8Linear)
    return Computations(dense, (kernel,), __name__, device, stored=stored(E4M3, activations=E4M3))


def _why_not(layer: Layer, device: str) -> str | None:
    reason = cuda.why_not(device, (8, 9))
    if reason is None and (layer.inputs % _MULTIPLE or layer.out % _MULTIPLE):
        reason = (
            f"it takes multiples of {_MULTIPLE} inputs and outputs, and a linear layer has {layer.inputs} inputs and "
            f"{layer.out} outputs"
        )
    reason = reason or _fault(device)
    return f"{SCALED_PRODUCT}: {reason}" if reason else None


@cache
def _fault(device: str) -> str | None:
    """What is wrong with torch's product of fp8 on a device, tried beside that of floats over the same numbers."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(48, 256, generator=generator)
    x = torch.randn(max(trial.TOKENS), 256, generator=generator)
    expected = Fp8Linear(weight, None)(x).double()
    return trial.fault(lambda: ScaledFp8Linear(weight.to(device), None), x, expected, device, _TOLERANCE)
