"""Linear maps in eight bits: weights per output, activations per token, on torch's own int8 product.

    y = (round(127 x / a) W_q) s a / 127,    a = max|x| of the token,    s = max|w| / 127 of the output row

Each token has a scale of its own, so a token with massive activations spoils no other, and what a row of a batch
gives does not depend on the others. torch's ``quantize_dynamic`` has one scale for all tokens of a call.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch.nn.functional import linear, pad
from torch.utils.flop_counter import register_flop_formula

from harness.contract.facts import Savings
from harness.model.weights.linear import LinearMap

LEVELS = 127

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


class Int8Linear(LinearMap):
    """A linear map with int8 weights, quantized from a weight of shape [out, in] by rounding to the nearest.

    Where no int8 product works, or ``integer`` is off, the rounded numbers are multiplied as floats: the same answers,
    nothing saved.
    """

    scale: torch.Tensor
    rounded: torch.Tensor
    bias: torch.Tensor | None

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, *, integer: bool = True) -> None:
        super().__init__()
        quantized, scale = quantize_rows(weight)
        chosen = int8_product(weight.device.type) if integer else None
        self._product = torch.ops.harness.int8_product if chosen else _float_product
        # an opaque tensor has no storage to be counted or saved: it is no buffer
        self._packed = chosen.pack(quantized) if chosen else None
        self.register_buffer("scale", scale)
        self.register_buffer("bias", bias)
        if chosen is None:
            self.register_buffer("rounded", quantized.to(weight.dtype))
        self.kernel = chosen.name if chosen else "dense product over int8 values"
        self.savings = Savings.REAL if chosen else Savings.SIMULATED
        self.macs_per_token = self.held = weight.numel()
        self.packed_bytes = weight.numel() if chosen else 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """From [..., in] to [..., out], in the type of the input."""
        tokens = x.reshape(-1, x.shape[-1]).float()
        largest = tokens.abs().amax(1, keepdim=True).clamp(min=_TINY)
        quantized = (tokens * (LEVELS / largest)).round_().to(torch.int8)
        weight = self.rounded if self._packed is None else self._packed
        y = self._product(quantized, weight, self.scale).mul_(largest / LEVELS)
        if self.bias is not None:
            y += self.bias
        return y.to(x.dtype).reshape(*x.shape[:-1], y.shape[-1])


def quantize_rows(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights int8 [out, in] in -127..127 and scales float32 [out], from a weight of shape [out, in]."""
    weight = weight.float()
    scale = weight.abs().amax(1).clamp(min=_TINY) / LEVELS
    return (weight / scale[:, None]).round().to(torch.int8).contiguous(), scale


@cache
def int8_product(device: str) -> Int8Product | None:
    """The first int8 product of torch that is right on this machine; None where there is none.

    Each is tried on the largest values that it can meet, where an instruction that saturates would show.
    """
    if device != "cpu":  # those of other devices have limits on shapes that have not been tried
        return None
    return next((product for product in _PRODUCTS if _is_right(product)), None)


def _is_right(product: Int8Product) -> bool:
    generator = torch.Generator().manual_seed(0)
    draws = torch.randint(-LEVELS, LEVELS + 1, (3 + 40, 64), generator=generator).to(torch.int8)
    draws[1], draws[4] = LEVELS, LEVELS
    x, weight, scale = draws[:3], draws[3:], torch.rand(40, generator=generator)
    expected = _float_product(x, weight.float(), scale)
    try:
        found = product.product(x, product.pack(weight.contiguous()), scale)
    except (RuntimeError, AttributeError, NotImplementedError):
        return False
    return bool((found - expected).abs().max() <= _TOLERANCE * expected.abs().max())


def _float_product(x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return linear(x.to(weight.dtype), weight).float() * scale


def _onednn(x: torch.Tensor, packed: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    # in eights: for a row or two of a narrow map oneDNN may have only its reference implementation, a hundred times
    # slower, and it prepares itself anew for every number of rows
    rows, x = len(x), pad(x, (0, 0, 0, -len(x) % 8))
    zeros = torch.zeros(len(scale), dtype=torch.int32)
    plain: Any = (None, 1.0, 0, torch.float32, "none", [], "")  # no bias, floats out, nothing fused behind
    result: torch.Tensor = torch.ops.onednn.qlinear_pointwise(x, 1.0, 0, packed, scale, zeros, *plain)
    return result[:rows]


def _int_mm(x: torch.Tensor, packed: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return torch._int_mm(x, packed).float() * scale


_PRODUCTS = (
    Int8Product("onednn int8", lambda weight: torch.ops.onednn.qlinear_prepack(weight, None), _onednn),
    Int8Product("torch int8", lambda weight: weight.T, _int_mm),
)

_LIBRARY = torch.library.Library("harness", "FRAGMENT")  # type: ignore[no-untyped-call]
_LIBRARY.define("int8_product(Tensor x, Tensor weight, Tensor scale) -> Tensor")  # type: ignore[no-untyped-call]


def _operator(x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    chosen = int8_product(x.device.type)
    assert chosen is not None
    return chosen.product(x, weight, scale)


_LIBRARY.impl("int8_product", _operator, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]


@register_flop_formula(torch.ops.harness.int8_product)
def _flops(x: tuple[int, ...], weight: tuple[int, ...], *_: object, **__: object) -> int:
    """A product of activations [tokens, in] with packed weights of in times out numbers, without what fills up rows."""
    return 2 * x[0] * torch.Size(weight).numel()
