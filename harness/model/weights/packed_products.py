"""Products with packed weights: the project's own in C and in Triton, and torch's, int8 by rows and int4 by groups.

Torch's int4 operators stand for (q - 8) s + m where a format stands for (q - z) s: they are given m = (8 - z) s, and
both numbers in bfloat16, as all of their arithmetic is.
"""

from functools import partial
from typing import Any, Final

import torch
from torch.utils.flop_counter import register_flop_formula

from harness.model.weights import dense_kernels
from harness.model.weights.computations import Layer
from harness.model.weights.formats import NumberFormat, Quantized, pack
from harness.model.weights.packed_linear import Packed, PackedProduct
from harness.model.weights.triton_kernels.available import CAPABILITY
from harness.model.weights.triton_kernels.packed import NUMBERS, packed, refuses, takes
from harness.model.weights.triton_kernels.products import product

_ATEN: Final = torch.ops.aten
_GROUPS: Final = (32, 64, 128, 256)
_WIDTH: Final = 32
"""The operator for int8 on a CPU reads whole registers, and beyond a row of another width."""
_EIGHT: Final = 8


def _is_int8(number: NumberFormat) -> bool:
    return number == NumberFormat(8)


def _is_int4(number: NumberFormat) -> bool:
    return number.bits == 4 and number.element == "int"


def _fits_all(number: NumberFormat, layer: Layer) -> None:
    return None


def _int8_on_cpu_refuses(number: NumberFormat, layer: Layer) -> str | None:
    if layer.dtype != "bfloat16":
        return f"it takes bfloat16, and has scalar code for the model's {layer.dtype}"
    if layer.inputs % _WIDTH:
        return f"it takes a multiple of {_WIDTH} inputs, and a linear layer has {layer.inputs}"
    return None


def _int8(weight: Quantized, dtype: torch.dtype) -> Packed:
    return weight.codes, weight.scale[:, 0].to(dtype)


def _int8_product(x: torch.Tensor, packed: Packed, group: int) -> torch.Tensor:
    y: torch.Tensor = _ATEN._weight_int8pack_mm(x.contiguous(), *packed)
    return y


def _int4_refuses(number: NumberFormat, layer: Layer, outputs: int) -> str | None:
    if (number.group or layer.inputs) not in _GROUPS:
        return f"it takes groups of {', '.join(map(str, _GROUPS))} inputs, and the format is {number.label}"
    if layer.dtype != "bfloat16":
        return f"it takes bfloat16, and the model is in {layer.dtype}"
    return (
        f"it takes a multiple of {outputs} outputs, and a linear layer has {layer.out}" if layer.out % outputs else None
    )


def _unsigned(weight: Quantized) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes 0..15, uint8 [out, in], and scale and middle of each group, bfloat16 [groups, out, 2]."""
    signed = weight.zero is None
    codes = (weight.codes + 8).to(torch.uint8) if signed else weight.codes
    zero = 8.0 if weight.zero is None else weight.zero.float()
    pairs = torch.stack([weight.scale, (8 - zero) * weight.scale], 2)  # [out, groups, 2]
    return codes, pairs.transpose(0, 1).contiguous().bfloat16()


def _int4_on_cpu(weight: Quantized, dtype: torch.dtype) -> Packed:
    codes, pairs = _unsigned(weight)
    return _ATEN._convert_weight_to_int4pack_for_cpu(codes.int(), 2), pairs


def _int4_on_cpu_product(x: torch.Tensor, packed: Packed, group: int) -> torch.Tensor:
    y: torch.Tensor = _ATEN._weight_int4pack_mm_for_cpu(x.contiguous(), packed[0], group, packed[1])
    return y


def _int4_on_cuda(weight: Quantized, dtype: torch.dtype) -> Packed:
    codes, pairs = _unsigned(weight)
    swapped = codes.view(len(codes), -1, 2).flip(2).flatten(1)  # it has the even input in the high nibble
    tiles = next(tiles for tiles in (8, 4, 2) if codes.shape[1] % (16 * tiles) == 0)
    return _ATEN._convert_weight_to_int4pack(pack(swapped, 4), tiles), pairs


def _int4_on_cuda_product(x: torch.Tensor, packed: Packed, group: int) -> torch.Tensor:
    y: torch.Tensor = _ATEN._weight_int4pack_mm(x.contiguous(), packed[0], group, packed[1])
    return y


def _is_own(number: NumberFormat) -> bool:
    return number.bits in (4, 8) and number.element == "int" and number.zero == "code"


def _own_refuses(number: NumberFormat, layer: Layer, name: str) -> str | None:
    if number.group is not None and number.group < layer.inputs and number.group % _EIGHT:
        return f"it takes groups of whole eights of inputs, and the format is {number.label}"
    return dense_kernels.why_not(name)


def _own(name: str, level: int, *, unpacked: bool = False) -> PackedProduct:
    """The project's own product for an instruction set; see ``dense_kernels.SETS``.

    Args:
        unpacked: torch multiplies floats that the codes become, some outputs' at a time.
    """
    operator = torch.ops.harness.unpacked_linear if unpacked else torch.ops.harness.packed_linear

    def pack_codes(weight: Quantized, dtype: torch.dtype) -> Packed:
        return dense_kernels.pack_codes(weight, level)

    def product(x: torch.Tensor, packed: Packed, group: int) -> torch.Tensor:
        y: torch.Tensor = operator(x.float().contiguous(), *packed, group, level)
        return y.to(x.dtype)

    label, refuses = f"{name} unpacked" if unpacked else name, partial(_own_refuses, name=name)
    return PackedProduct(label, "cpu", _is_own, refuses, pack_codes, product, multiplies_floats=unpacked)


PRODUCTS: Final = (
    *(_own(name, level) for name, level in dense_kernels.SETS.items()),
    *(_own(name, level, unpacked=True) for name, level in dense_kernels.SETS.items()),
    PackedProduct("torch int8pack", "cpu", _is_int8, _int8_on_cpu_refuses, _int8, _int8_product),
    PackedProduct("torch int8pack on CUDA", "cuda", _is_int8, _fits_all, _int8, _int8_product),
    PackedProduct(
        "torch int4pack", "cpu", _is_int4, partial(_int4_refuses, outputs=16), _int4_on_cpu, _int4_on_cpu_product
    ),
    PackedProduct(
        "torch tile-packed",
        "cuda",
        _is_int4,
        partial(_int4_refuses, outputs=8),
        _int4_on_cuda,
        _int4_on_cuda_product,
        capability=(8, 0),
    ),
    *(
        PackedProduct(
            "triton",
            "cuda",
            partial(takes, number=number),
            partial(refuses, number=number),
            partial(packed, number=number),
            partial(product, number=number),
            capability=CAPABILITY,
        )
        for number in NUMBERS
    ),
)
"""The products, those of the project on a CPU first, then torch's own before others."""


@register_flop_formula([_ATEN._weight_int8pack_mm, _ATEN._weight_int4pack_mm_for_cpu])
def _by_rows(x: tuple[int, ...], weight: tuple[int, ...], *_: Any, **__: Any) -> int:
    """Of activations [tokens, in] with packed weights [out, ...]."""
    return 2 * x[0] * x[1] * weight[0]


@register_flop_formula(_ATEN._weight_int4pack_mm)
def _by_tiles(x: tuple[int, ...], weight: tuple[int, ...], *_: Any, **__: Any) -> int:
    """Of activations [tokens, in] with packed weights [out / 8, ...]."""
    return 2 * x[0] * x[1] * 8 * weight[0]
