"""Linear layers in int8: weights quantized per output, activations per token.

    y = (round(127 x / a) W_q) s a / 127,    a = max|x| of the token,    s = max|w| / 127 of the output row

torch's ``quantize_dynamic`` has one scale for all tokens of a call; here each token has its own.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Literal

import torch
from torch.nn.functional import linear, pad
from torch.utils.flop_counter import register_flop_formula

from harness.contract.facts import Savings
from harness.core.cpu import kernel_limit
from harness.model.weights import cuda, dense_kernels
from harness.model.weights.by_token import ByToken, scaled
from harness.model.weights.computations import Computation, Computations, Layer, not_on_cpu
from harness.model.weights.formats import NumberFormat, quantize
from harness.model.weights.stored import stored
from harness.model.weights.triton_kernels.available import missing
from harness.model.weights.triton_kernels.packed import SPAN, spans
from harness.model.weights.triton_kernels.products import product as triton_product
from harness.model.weights.triton_kernels.products import rounded as triton_rounded

LEVELS = 127
DENSE_PRODUCT = "dense product over int8 values"

_UNIT = 128
_TOLERANCE, _TOLERANCE_ROUNDED = 1e-5, 1e-2
"""Of the largest output: exact sums, and those of activations of which one may be rounded to the other side."""


@dataclass(frozen=True)
class Int8Product:
    """An int8 matrix product.

    Attributes:
        name: what it is called in the record.
        pack: from weights int8 [out, in] to what ``product`` takes.
        product: from activations int8 [tokens, in], the packed weights and scales [out] to floats [tokens, out].
        device: the kind of device that it is for.
        multiple: what inputs and outputs have to be a multiple of.
        missing: what it lacks on this machine, in words; None where nothing is missing.
        linear: the whole layer in fewer calls, where it has them: from activations [tokens, in], packed weights, scales
            [out] and a bias float32 [out] or None to floats [tokens, out].
    """

    name: str
    pack: Callable[[torch.Tensor], torch.Tensor]
    product: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
    device: Literal["cpu", "cuda"] = "cpu"
    multiple: int = 1
    missing: Callable[[], str | None] = lambda: None
    linear: Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor] | None = None


class Int8Linear(ByToken):
    """A linear layer with int8 weights, quantized from a weight of shape [out, in] by rounding to nearest.

    Without an int8 product the rounded numbers are multiplied as floats: the same answers, nothing saved.
    """

    levels = LEVELS
    scale: torch.Tensor
    rounded: torch.Tensor

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, product: Int8Product | None) -> None:
        super().__init__()
        quantized, scale = quantize_rows(weight)
        self._linear = product.linear if product else None
        self._product = partial(torch.ops.harness.int8_product, product=product.name) if product else _float_product
        # an opaque tensor has no storage to be counted or saved: it is no buffer
        self._packed = product.pack(quantized) if product else None
        self.register_buffer("scale", scale)
        self.register_buffer("bias", bias)
        if product is None:
            self.register_buffer("rounded", _as_floats(quantized, weight.dtype))
        self.kernel = product.name if product else DENSE_PRODUCT
        self.savings = Savings.REAL if product else Savings.SIMULATED
        self.macs_per_token = self.weight_count = weight.numel()
        self.opaque_bytes = weight.numel() if product else 0
        self.format_bytes = None if product else NumberFormat(8).nbytes(*weight.shape)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """From [..., in] to [..., out], in the type of the input."""
        if self._linear is None or self._packed is None:
            return super().forward(x)
        tokens = x.reshape(-1, x.shape[-1])  # [tokens, in]
        bias = None if self.bias is None else self.bias.float()
        return self._linear(tokens, self._packed, self.scale, bias).to(x.dtype).view(*x.shape[:-1], len(self.scale))

    def product(self, x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """See ``ByToken``."""
        weight = self.rounded if self._packed is None else self._packed
        return self._product(x.round_().to(torch.int8), weight, self.scale).mul_(scale)


def quantize_rows(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights int8 [out, in] in -127..127 and scales float32 [out], from a weight of shape [out, in]."""
    quantized = quantize(weight, NumberFormat(8))
    return quantized.codes, quantized.scale[:, 0]


def computations(layer: Layer, device: str) -> Computations:
    """What may compute a linear layer in eight bits on a device."""
    kernels = []
    for each in PRODUCTS:
        elsewhere = not device.startswith(each.device)
        kernels.append(
            Computation(each.name, partial(Int8Linear, product=each), _why_not(each, layer, device), elsewhere)
        )
    dense = Computation(DENSE_PRODUCT, partial(Int8Linear, product=None))
    written = stored(NumberFormat(8), activations=NumberFormat(8))
    return Computations(dense, tuple(kernels), __name__, device, stored=written)


def _why_not(product: Int8Product, layer: Layer, device: str) -> str | None:
    """Why a product cannot be taken here."""
    reason = cuda.why_not(device) if product.device == "cuda" else not_on_cpu(device)
    if reason is not None:
        return f"{product.name}: {reason}"
    if reason := product.missing():
        return f"{product.name}: {reason}"
    if layer.inputs % product.multiple or layer.out % product.multiple:
        return (
            f"{product.name} takes multiples of {product.multiple} inputs and outputs, and a linear layer has "
            f"{layer.inputs} inputs and {layer.out} outputs"
        )
    what = "processor" if product.device == "cpu" else "card"
    return None if is_right(product, device) else f"{product.name} is not there, or not exact on this {what}"


def is_right(product: Int8Product, device: str = "cpu") -> bool:
    """Whether a product runs on a device of this machine, and gives the exact sums there."""
    return _is_exact(product, device, kernel_limit())


@cache
def _is_exact(product: Int8Product, device: str, limit: str | None) -> bool:
    """The same, as ``HARNESS_ISA`` limits the project's own products.

    The largest values that it can meet are among the operands. Without VNNI, x86 multiplies unsigned by signed bytes
    with vpmaddubsw, which adds two products in 16 bits and saturates: 2 * 255 * 127 does not fit.
    """
    generator = torch.Generator().manual_seed(0)
    draws = torch.randint(-LEVELS, LEVELS + 1, (3 + 40, 64), generator=generator).to(torch.int8)
    draws[2], draws[4] = LEVELS, LEVELS
    x, weight, scale = draws[:3], draws[3:], torch.rand(40, generator=generator)
    floats = _as_floats(weight, torch.float32)
    expected = _float_product(x, floats, scale)  # [3, 40]
    rounded, of_token = scaled(x.float(), LEVELS)
    layer = _float_product(rounded.round_().to(torch.int8), floats, scale) * of_token
    try:
        packed = product.pack(weight.contiguous().to(device))
        pairs = [
            (product.product(x[-rows:].to(device), packed, scale.to(device)), expected[-rows:], _TOLERANCE)
            for rows in (1, 3)
        ]
        if product.linear is not None:
            y = product.linear(x.float().to(device), packed, scale.to(device), None)
            pairs.append((y, layer, _TOLERANCE_ROUNDED))
        return all(bool((y.cpu() - wanted).abs().max() <= most * wanted.abs().max()) for y, wanted, most in pairs)
    except Exception:  # a compiler's, a driver's or torch's own: what cannot run is not right
        return False


def _float_product(x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return linear(_as_floats(x, weight.dtype), weight).float() * (scale * _UNIT**2)


def _as_floats(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Int8 in parts of a power of two, which are exact, so that no sum is beyond the range of float16."""
    return values.to(dtype) / _UNIT


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


def _cublas(x: torch.Tensor, packed: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    rows = len(x)
    # cuBLASLt's product of int8 takes more than 16 rows; it is fastest on multiples of 8
    return _int_mm(pad(x, (0, 0, 0, max(_CUBLAS_ROWS, rows + -rows % 8) - rows)), packed, scale)[:rows]


def _own(name: str, level: int) -> Int8Product:
    """The project's own product for an instruction set; see ``dense_kernels.SETS``."""

    def whole(x: torch.Tensor, packed: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        if reason := dense_kernels.missing(name):
            raise RuntimeError(reason)
        y: torch.Tensor = torch.ops.harness.int8_linear(x.float(), packed, scale, None, level, True)
        return y

    def layer(x: torch.Tensor, packed: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        y: torch.Tensor = torch.ops.harness.int8_linear(x.float().contiguous(), packed, scale, bias, level, False)
        return y

    return Int8Product(
        f"int8 {name}",
        partial(dense_kernels.pack_bytes, level=level),
        whole,
        linear=layer,
        missing=partial(dense_kernels.why_not, name),
    )


def _triton(x: torch.Tensor, packed: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return triton_product(x, (packed, scale[:, None]), x.shape[1], "int8")


def _triton_layer(
    x: torch.Tensor, packed: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    codes, of_token = triton_rounded(x, LEVELS)
    y = _triton(codes, packed, scale).mul_(of_token)
    return y if bias is None else y.add_(bias)


_CUBLAS_ROWS = 24
PRODUCTS = (
    *(_own(name, level) for name, level in dense_kernels.SETS.items()),
    Int8Product("onednn int8", lambda weight: torch.ops.onednn.qlinear_prepack(weight, None), _onednn),
    Int8Product("torch int8", lambda weight: weight.T, _int_mm),
    Int8Product("cuBLAS int8", lambda weight: weight.T, _cublas, "cuda", 8),
    Int8Product("triton int8", partial(spans, number="int8"), _triton, "cuda", SPAN, missing, _triton_layer),
)
"""The int8 products, those of the project on a CPU first, then torch's own before others."""

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
