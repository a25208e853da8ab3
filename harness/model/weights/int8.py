"""Linear layers in int8: weights quantized per output, activations per token, multiplied by torch's own operators.

    y = (round(127 x / a) W_q) s a / 127,    a = max|x| of the token,    s = max|w| / 127 of the output row

Each token has its own scale, so a token with massive activations spoils no other, and a row of a batch gives the same
whatever the others are. torch's ``quantize_dynamic`` has one scale for all tokens of a call.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch.nn.functional import linear, pad
from torch.utils.flop_counter import register_flop_formula

from harness.contract.facts import Savings
from harness.model.weights.computations import Computation, Computations
from harness.model.weights.linear import ReplacementLayer

LEVELS = 127
DENSE_PRODUCT = "dense product over int8 values"

_TINY = torch.finfo(torch.float32).tiny
_TOLERANCE = 1e-5


@dataclass(frozen=True)
class Int8Product:
    """An int8 matrix product.

    Attributes:
        name: what it is called in the record.
        pack: from weights int8 [out, in] to what ``product`` takes.
        product: from activations int8 [tokens, in], the packed weights and scales [out] to floats [tokens, out].
    """

    name: str
    pack: Callable[[torch.Tensor], torch.Tensor]
    product: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


class Int8Linear(ReplacementLayer):
    """A linear layer with int8 weights, quantized from a weight of shape [out, in] by rounding to nearest.

    Without an int8 product the rounded numbers are multiplied as floats: the same answers, nothing saved.
    """

    scale: torch.Tensor
    rounded: torch.Tensor
    bias: torch.Tensor | None

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, product: Int8Product | None) -> None:
        super().__init__()
        quantized, scale = quantize_rows(weight)
        self._product = partial(torch.ops.harness.int8_product, product=product.name) if product else _float_product
        # an opaque tensor has no storage to be counted or saved: it is no buffer
        self._packed = product.pack(quantized) if product else None
        self.register_buffer("scale", scale)
        self.register_buffer("bias", bias)
        if product is None:
            self.register_buffer("rounded", quantized.to(weight.dtype))
        self.kernel = product.name if product else DENSE_PRODUCT
        self.savings = Savings.REAL if product else Savings.SIMULATED
        self.macs_per_token = self.weight_count = weight.numel()
        self.opaque_bytes = weight.numel() if product else 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """From [..., in] to [..., out], in the type of the input."""
        tokens = x.reshape(-1, x.shape[-1]).float()  # [tokens, in]
        largest = tokens.abs().amax(1, keepdim=True).clamp(min=_TINY)  # [tokens, 1]
        quantized = (tokens * (LEVELS / largest)).round_().to(torch.int8)
        weight = self.rounded if self._packed is None else self._packed
        y = self._product(quantized, weight, self.scale).mul_(largest / LEVELS)  # [tokens, out]
        if self.bias is not None:
            y += self.bias
        return y.to(x.dtype).reshape(*x.shape[:-1], y.shape[-1])


def quantize_rows(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights int8 [out, in] in -127..127 and scales float32 [out], from a weight of shape [out, in]."""
    weight = weight.float()
    scale = weight.abs().amax(1).clamp(min=_TINY) / LEVELS
    return (weight / scale[:, None]).round().to(torch.int8).contiguous(), scale


def computations(device: str) -> Computations:
    """What may compute a linear layer in eight bits on a device."""
    kernels = (Computation(each.name, partial(Int8Linear, product=each), _why_not(each, device)) for each in PRODUCTS)
    return Computations(Computation(DENSE_PRODUCT, partial(Int8Linear, product=None)), tuple(kernels), __name__)


def _why_not(product: Int8Product, device: str) -> str | None:
    """Why a product cannot be taken here; those of other devices have limits on shapes that have not been tried."""
    if not device.startswith("cpu"):
        return f"products of int8 are taken on a CPU alone, and the model is on {device}"
    return None if is_right(product) else f"{product.name} is not there, or not exact on this processor"


@cache
def is_right(product: Int8Product) -> bool:
    """Whether a product gives the exact sums on this machine.

    The largest values that it can meet are among the operands. Without VNNI, x86 multiplies unsigned by signed bytes
    with vpmaddubsw, which adds two products in 16 bits and saturates: 2 * 255 * 127 does not fit.
    """
    generator = torch.Generator().manual_seed(0)
    draws = torch.randint(-LEVELS, LEVELS + 1, (3 + 40, 64), generator=generator).to(torch.int8)
    draws[1], draws[4] = LEVELS, LEVELS
    x, weight, scale = draws[:3], draws[3:], torch.rand(40, generator=generator)
    expected = _float_product(x, weight.float(), scale)
    try:
        result = product.product(x, product.pack(weight.contiguous()), scale)
    except (RuntimeError, AttributeError, NotImplementedError):
        return False
    return bool((result - expected).abs().max() <= _TOLERANCE * expected.abs().max())


def _float_product(x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return linear(x.to(weight.dtype), weight).float() * scale


def _onednn(x: torch.Tensor, packed: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    rows = len(x)
    # Whole eights: oneDNN may have only its reference kernel, a hundred times slower, for one or two rows of a narrow
    # matrix, and it prepares itself anew for every number of rows.
    x = pad(x, (0, 0, 0, -rows % 8))
    # Bytes 128 higher, as unsigned ones with a zero point of 128: weights are packed for unsigned activations, and
    # signed ones get the reference kernel on a processor without AMX. Flipping the sign bit adds 128.
    shifted = x.view(torch.uint8) ^ 128
    zero_points = torch.zeros(len(scale), dtype=torch.int32)  # of the weights
    plain: Any = (None, 1.0, 0, torch.float32, "none", [], "")  # no bias, float32 output, nothing fused after it
    result: torch.Tensor = torch.ops.onednn.qlinear_pointwise(shifted, 1.0, 128, packed, scale, zero_points, *plain)
    return result[:rows]


def _int_mm(x: torch.Tensor, packed: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return torch._int_mm(x, packed).float() * scale


PRODUCTS = (
    Int8Product("onednn int8", lambda weight: torch.ops.onednn.qlinear_prepack(weight, None), _onednn),
    Int8Product("torch int8", lambda weight: weight.T, _int_mm),
)
"""The int8 products of torch, the best first."""

_LIBRARY = torch.library.Library("harness", "FRAGMENT")  # type: ignore[no-untyped-call]
_LIBRARY.define(  # type: ignore[no-untyped-call]
    "int8_product(Tensor x, Tensor weight, Tensor scale, str product) -> Tensor"
)


def _operator(x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, product: str) -> torch.Tensor:
    return next(each for each in PRODUCTS if each.name == product).product(x, weight, scale)


_LIBRARY.impl("int8_product", _operator, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]


@register_flop_formula(torch.ops.harness.int8_product)
def _flops(x: tuple[int, ...], weight: tuple[int, ...], *_: object, **__: object) -> int:
    """A product of activations [tokens, in] with in * out packed weights; rows of padding are not counted."""
    return 2 * x[0] * torch.Size(weight).numel()
