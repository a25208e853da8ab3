"""The project's own products of linear layers with weights in eight or four bits, in C, by instruction set.

Two products: of bytes with bytes, where the activations are rounded for each token, and of packed weights with floats,
for weight-only formats. The second multiplies in 16 bits: activations are rounded to 1/32767 of the largest of at most
128 neighbouring inputs, which changes a result by some 1e-5 of it. No float copy of the weights is made, for any number
of tokens; for many, they may also become floats for torch's product, as many outputs at a time as a cache holds.
"""

import ctypes
from functools import cache
from typing import Any, Final

import torch
from torch.nn.functional import pad
from torch.utils.flop_counter import register_flop_formula

from harness.core import cpu
from harness.core.errors import CompileError, KernelError
from harness.model.weights.compiled import library
from harness.model.weights.formats import NumberFormat, Quantized, quantize
from harness.model.weights.kernel_sets import SOURCE, by_set

SETS: Final = {"avx512-vnni": 3, "avx512": 2, "avx2": 1, "plain C": 0}
"""Places in ``cpu.KERNEL_SETS`` by what the record calls them, the best first; a processor with AMX takes VNNI."""

Codes = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
"""What ``pack_codes`` gives."""

_TOLERANCE = 1e-4
_PANEL: Final = 2**19
"""Bytes of weights that are floats at a time: they stay in a core's second cache until they are multiplied."""
_VNNI: Final = SETS["avx512-vnni"]
_PAIRS: Final = {8: [0, 2, 1, 3], 4: [0, 2, 4, 6, 1, 3, 5, 7]}
"""The order of a lane's inputs from the lowest bits: neighbours are 16 bits apart."""


@cache
def _library() -> Any:
    compiled = library(SOURCE)
    number, length, pointer = ctypes.c_int, ctypes.c_long, ctypes.c_void_p
    compiled.bytes.argtypes = [number] * 3 + [length] * 3 + [pointer] * 5
    compiled.packed.argtypes = [number] * 4 + [length] * 4 + [pointer] * 6
    compiled.unpack.argtypes = [number] * 4 + [length] * 4 + [pointer] * 4
    compiled.bytes.restype = compiled.packed.restype = compiled.unpack.restype = None
    return compiled


def missing(name: str) -> str | None:
    """Why the kernels of one of ``SETS`` do not run here; None where they do.

    Raises:
        SpecError: ``HARNESS_ISA`` names no instruction set, or one that this processor does not have.
    """
    reason = _load(cpu.kernel_limit())[SETS[name]]
    return reason if isinstance(reason, str) else None


def why_not(name: str) -> str | None:
    """Why the kernels of one of ``SETS`` are not taken here; None where they are: those of the best set that runs.

    Raises:
        SpecError: ``HARNESS_ISA`` names no instruction set, or one that this processor does not have.
    """
    best = next((each for each in SETS if missing(each) is None), name)
    better = None if best == name else f"the kernels for {best} run here, and do the same faster"
    return missing(name) or better


@cache
def _load(limit: str | None) -> tuple[int | str, ...]:
    try:
        best: int = _library().block_sparse_level()
    except CompileError as error:
        return (str(error),) * len(cpu.KERNEL_SETS)
    return by_set(limit, best, check)


def _lanes(level: int) -> int:
    return 16 if level >= SETS["avx512"] else 8


def _filling(out: int, level: int) -> int:
    """Outputs that are missing to an even number of groups."""
    return -out % (2 * _lanes(level))


def pack_bytes(weight: torch.Tensor, level: int) -> torch.Tensor:
    """Weights int8 [out, in] as the product of bytes reads them: int8 [groups, in / 4, lanes, 4]."""
    packed = _by_lanes(weight, level, [0, 1, 2, 3])
    return packed ^ -128 if level >= _VNNI else packed  # unsigned, 128 higher


def pack_codes(weight: Quantized, level: int) -> Codes:
    """A weight of 8 or 4 bits as the product of packed weights reads it.

    Returns:
        Codes [groups, in / 4 or in / 8, lanes, 4]; scales and zero points, float32 and int8, both
        [groups, scales, lanes], zero points of symmetric formats being empty; and an empty tensor [out, 0].
    """
    signed, bits = weight.zero is None, weight.format.bits
    codes = weight.codes if signed else weight.codes.short() - 128 * (bits == 8)
    packed = _by_lanes((codes + 8 * (bits == 4 and signed)).to(torch.int8), level, _PAIRS[bits])
    if bits == 4:
        packed = packed[..., 0::2] | packed[..., 1::2] << 4  # [groups, in / 8, lanes, 4]
    zero = weight.scale.new_empty(0, dtype=torch.int8)
    if weight.zero is not None:
        zero = _scales((weight.zero.short() - 128 * (bits == 8)).to(torch.int8), level)
    return packed, _scales(weight.scale, level), zero, weight.codes[:, :0]


def _by_lanes(weight: torch.Tensor, level: int, order: list[int]) -> torch.Tensor:
    """A weight [out, in] as [groups, in / n, lanes, n], filled up with zeros: n inputs in an order."""
    whole = 8 if order in _PAIRS.values() else 4  # inputs
    filled = pad(weight, (0, -weight.shape[1] % whole, 0, _filling(len(weight), level)))
    lanes = filled.view(-1, _lanes(level), filled.shape[1] // len(order), len(order))[..., order]
    return lanes.transpose(1, 2).contiguous()


def _scales(values: torch.Tensor, level: int) -> torch.Tensor:
    """Values [out, scales] as [groups, scales, lanes]."""
    filled = pad(values, (0, 0, 0, _filling(len(values), level)))
    return filled.view(-1, _lanes(level), values.shape[1]).transpose(1, 2).contiguous()


def check(level: int) -> int:
    """Compare the kernels of a set with the dense product, on shapes that fill no vector, the largest sums among them.

    Raises:
        KernelError: one differs.
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(-127, 128, (11, 152), generator=generator).float()
    weight = torch.randn(37, 152, generator=generator, dtype=torch.float32)
    weight[3], x[1] = 1.0, 127
    bias = torch.randn(37, generator=generator, dtype=torch.float32)
    for number in (NumberFormat(8), NumberFormat(8, 8, False), NumberFormat(4, 152), NumberFormat(4, 8, False)):
        quantized = quantize(weight, number)
        packed = pack_codes(quantized, level)
        dense = x.double() @ quantized.dequantized().double().T
        for tokens in (1, 3, 11):
            for product in (_packed, _unpacked):
                y = product(x[:tokens], *packed, quantized.codes.shape[1] // quantized.scale.shape[1], level)
                _compare(y, dense[:tokens], number.label, level)
            if number == NumberFormat(8):
                scale = quantized.scale[:, 0].contiguous()
                y = _bytes(x[:tokens], pack_bytes(quantized.codes, level), scale, bias, level, True)
                _compare(y, dense[:tokens] + bias, "int8 by int8", level)
    return level


def _compare(y: torch.Tensor, dense: torch.Tensor, name: str, level: int) -> None:
    worst = float((y - dense).abs().max() / dense.abs().max())
    if not worst <= _TOLERANCE:
        raise KernelError(
            f"the {cpu.KERNEL_SETS[level]} kernel for {name} weights differs from the dense product by {worst:.2g} of "
            "the largest value and is not used"
        )


def _bytes(
    x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None, level: int, whole: bool
) -> torch.Tensor:
    y = torch.empty(len(x), len(scale), dtype=torch.float32)
    numbers = (level, torch.get_num_threads(), whole, *x.shape, len(scale))
    bias_pointer = None if bias is None else bias.data_ptr()
    _library().bytes(*numbers, x.data_ptr(), y.data_ptr(), bias_pointer, weight.data_ptr(), scale.data_ptr())
    return y


def _packed(
    x: torch.Tensor,
    codes: torch.Tensor,
    scale: torch.Tensor,
    zero: torch.Tensor,
    outputs: torch.Tensor,
    group: int,
    level: int,
) -> torch.Tensor:
    y = torch.empty(len(x), len(outputs), dtype=torch.float32)
    numbers = (level, torch.get_num_threads(), *_bits(x, codes), *x.shape, len(outputs), group)
    tensors = (x.data_ptr(), y.data_ptr(), None, codes.data_ptr(), scale.data_ptr())
    _library().packed(*numbers, *tensors, zero.data_ptr() if len(zero) else None)
    return y


def _bits(x: torch.Tensor, codes: torch.Tensor) -> tuple[int, int]:
    """Bits of a code, and the code that stands for zero in a symmetric format."""
    bits = 4 * codes.shape[1] // -(-x.shape[1] // 8)  # 32 of them in a lane
    return bits, 8 if bits == 4 else 0


@torch.no_grad()
def _unpacked(
    x: torch.Tensor,
    codes: torch.Tensor,
    scale: torch.Tensor,
    zero: torch.Tensor,
    outputs: torch.Tensor,
    group: int,
    level: int,
) -> torch.Tensor:
    inputs, lanes = x.shape[1], _lanes(level)
    most = max(1, _PANEL // (4 * inputs * lanes))  # groups of outputs
    y = torch.empty(len(x), len(outputs), dtype=torch.float32)
    panel = torch.empty(inputs * min(most, len(codes)) * lanes, dtype=torch.float32)
    tensors = (panel.data_ptr(), codes.data_ptr(), scale.data_ptr(), zero.data_ptr() if len(zero) else None)
    for first in range(0, -(-len(outputs) // lanes), most):
        count = min(most, len(codes) - first)
        numbers = (level, torch.get_num_threads(), *_bits(x, codes), inputs, group, first, count)
        _library().unpack(*numbers, *tensors)
        part = y[:, first * lanes : (first + count) * lanes]  # [tokens, outputs of these groups]
        weight = panel[: inputs * count * lanes].view(inputs, -1)  # [in, count * lanes]
        torch.mm(x, weight[:, : part.shape[1]], out=part)
    return y


_OPERATORS = torch.library.Library("harness", "FRAGMENT")  # type: ignore[no-untyped-call]
_OPERATORS.define(  # type: ignore[no-untyped-call]
    "int8_linear(Tensor x, Tensor weight, Tensor scale, Tensor? bias, int level, bool whole) -> Tensor"
)
_OPERATORS.define(  # type: ignore[no-untyped-call]
    "packed_linear(Tensor x, Tensor codes, Tensor scale, Tensor zero, Tensor outputs, int group, int level) -> Tensor"
)
_OPERATORS.define(  # type: ignore[no-untyped-call]
    "unpacked_linear(Tensor x, Tensor codes, Tensor scale, Tensor zero, Tensor outputs, int group, int level) -> Tensor"
)
_OPERATORS.impl("unpacked_linear", _unpacked, "CPU")  # type: ignore[no-untyped-call]
_OPERATORS.impl("int8_linear", _bytes, "CPU")  # type: ignore[no-untyped-call]
_OPERATORS.impl("packed_linear", _packed, "CPU")  # type: ignore[no-untyped-call]


@register_flop_formula(torch.ops.harness.int8_linear)
def _of_bytes(x: tuple[int, ...], weight: Any, scale: tuple[int, ...], *_: Any, **__: Any) -> int:
    """Of tokens [tokens, in] with weights of as many outputs as scales; what is filled up is not counted."""
    return 2 * x[0] * x[1] * scale[0]


@register_flop_formula([torch.ops.harness.packed_linear, torch.ops.harness.unpacked_linear])
def _of_codes(x: tuple[int, ...], *tensors: Any, **__: Any) -> int:
    """Of tokens [tokens, in] with weights of as many outputs as there are rows in the fourth of the other tensors."""
    outputs: int = tensors[3][0]
    return 2 * x[0] * x[1] * outputs
