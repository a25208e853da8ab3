"""Linear maps that multiply only the blocks of weights that are not zero: 16 or 4 outputs of one input.

The kernels are C of the harness's own (the folder kernels), after "An Efficient Sparse Inference Software Accelerator
for Transformer-based Language Models on CPUs" (arXiv:2306.16601): AMX or AVX512-VNNI where the processor has it, else
plain C. They are compiled on first use and checked against the dense product; where that fails, the same numbers are
multiplied densely and the saving is called simulated.
"""

import ctypes
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import product
from pathlib import Path
from typing import Any, Literal

import torch
from torch.nn.functional import linear, pad
from torch.utils.flop_counter import register_flop_formula

from harness.contract.facts import Savings
from harness.core.errors import HarnessError, KernelError, MethodError
from harness.model.weights.compiled import library
from harness.model.weights.int8 import Int8Linear, quantize_rows
from harness.model.weights.linear import LinearMap

Number = Literal["int8", "fp32"]

SOURCE = Path(__file__).with_name("kernels")
MOST_INPUTS = 2**16
"""Inputs are numbered in two bytes."""

TENSORS = ("start", "column", "value", "scale", "offset")

_TOLERANCE = 1e-4

log = logging.getLogger("harness")


@dataclass(frozen=True)
class Kernels:
    """The compiled kernels.

    Attributes:
        run: the C function.
        level: 0 for plain C, 1 for AVX512-VNNI, 2 for AMX where it serves: int8 in blocks of 16.
    """

    run: Any
    level: int

    def name(self, rows: int, number: Number) -> str:
        """What the kernel for blocks of so many outputs is called in the record."""
        if number == "fp32":
            return "avx512" if self.level else "plain C"
        return ("plain C", "avx512-vnni", "amx-int8")[self.level if rows == 16 else min(self.level, 1)]


@dataclass(frozen=True)
class Blocks:
    """A weight's blocks that are not all zero, grouped by the outputs that share them.

    Attributes:
        rows: outputs of a block.
        out: outputs of the map.
        start: where each group's blocks begin, int32 [groups + 1]; counted in fours of blocks for int8.
        column: each block's input, uint16.
        value: the weights: float32 [blocks, rows], or int8 [fours, rows, 4], filled up with zeros.
        scale: of each output, float32 [out]; None for float32.
        offset: -128 times the sum of each output's weights, int32 [groups * rows]; None for float32.
        held: weights in the blocks, without what fills up.
    """

    rows: int
    out: int
    start: torch.Tensor
    column: torch.Tensor
    value: torch.Tensor
    scale: torch.Tensor | None
    offset: torch.Tensor | None
    held: int

    @property
    def tensors(self) -> tuple[torch.Tensor | None, ...]:
        """What the kernel is given, in its order."""
        return tuple(getattr(self, name) for name in TENSORS)

    @classmethod
    def of(cls, weight: torch.Tensor, rows: int, number: Number) -> "Blocks":
        """The blocks of a weight [out, in]."""
        out, shape = len(weight), (-1, rows, weight.shape[1])
        grouped = pad(weight.float(), (0, 0, 0, -out % rows)).view(shape)  # [groups, rows, in]
        there = (grouped != 0).any(1)
        counts = there.sum(1)
        fours = 4 if number == "int8" else 1
        ends = ((counts + fours - 1) // fours).cumsum(0)
        start = torch.cat([ends.new_zeros(1), ends])
        group, column = there.nonzero(as_tuple=True)
        slot = torch.arange(len(group)) - (counts.cumsum(0) - counts)[group] + fours * start[group]
        columns = torch.zeros(fours * int(ends[-1]), dtype=torch.int32)
        columns[slot] = column.int()
        held = sum(int(n) * min(rows, out - i * rows) for i, n in enumerate(counts))
        scale = offset = None
        if number == "int8":
            quantized, scale = quantize_rows(weight)
            grouped = pad(quantized, (0, 0, 0, -out % rows)).view(shape)
            offset = (-128 * grouped.sum(2, dtype=torch.int32)).flatten()
        value = torch.zeros(len(columns), rows, dtype=grouped.dtype)
        value[slot] = grouped[group, :, column]
        if number == "int8":
            value = value.view(-1, 4, rows).transpose(1, 2).contiguous()
        return cls(rows, out, start.int(), columns.to(torch.uint16), value, scale, offset, held)


class BlockSparseLinear(LinearMap):
    """A linear map over the blocks of a weight [out, in] that are not all zero."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, rows: int, number: Number) -> None:
        super().__init__()
        blocks = Blocks.of(weight, rows, number)
        found = kernels()
        assert isinstance(found, Kernels)
        self.out, self.level = blocks.out, found.level
        for name, tensor in zip(TENSORS, blocks.tensors, strict=True):
            self.register_buffer(name, tensor)
        self.register_buffer("bias", None if bias is None else bias.float())
        self.kernel = f"block-sparse {number} {rows}x1, {found.name(rows, number)}"
        self.savings = Savings.REAL
        self.macs_per_token = blocks.value.numel()
        self.held = blocks.held

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """From [..., in] to [..., out], in the type of the input."""
        tokens = x.reshape(-1, x.shape[-1]).float().contiguous()
        blocks = (getattr(self, name) for name in TENSORS)
        y: torch.Tensor = torch.ops.harness.block_sparse(tokens, self.bias, *blocks, self.out, self.level)
        return y.to(x.dtype).reshape(*x.shape[:-1], self.out)

    def _apply(self, *_: Any, **__: Any) -> "BlockSparseLinear":
        raise MethodError(
            "a kernel reads these weights as they are: cast or move the model before attaching the method"
        )


class DenseOverZeros(LinearMap):
    """The dense product over all weights, for want of a kernel that skips the zeros."""

    kernel, savings = "dense product over zeros", Savings.SIMULATED
    weight: torch.Tensor
    bias: torch.Tensor | None

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__()
        self.register_buffer("weight", weight.contiguous())
        self.register_buffer("bias", bias)
        self.macs_per_token = self.held = weight.numel()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """From [..., in] to [..., out]."""
        return linear(x, self.weight, self.bias)


def block_sparse_map(weight: torch.Tensor, bias: torch.Tensor | None, rows: int, number: Number) -> LinearMap:
    """The map of a weight [out, in] on the best kernel that this machine has."""
    if why_not(weight) is None:
        return BlockSparseLinear(weight, bias, rows, number)
    return DenseOverZeros(weight, bias) if number == "fp32" else Int8Linear(weight, bias, integer=False)


def why_not(weight: torch.Tensor) -> str | None:
    """Why a weight cannot be multiplied sparsely here; None where it can."""
    if weight.device.type != "cpu":
        return f"the kernel is for a CPU, and the model is on {weight.device}"
    if weight.shape[1] > MOST_INPUTS:
        return f"the kernel takes up to {MOST_INPUTS} inputs, and a map has {weight.shape[1]}"
    found = kernels()
    return None if isinstance(found, Kernels) else found


@cache
def kernels() -> Kernels | str:
    """The kernels, compiled and checked; or why there are none.

    Those that compute something else than the dense product give way to the next simpler ones, with a warning.
    """
    try:
        compiled = library(SOURCE)
    except HarnessError as error:
        return str(error)
    run = compiled.block_sparse
    run.argtypes, run.restype = [ctypes.c_int] * 4 + [ctypes.c_long] * 3 + [ctypes.c_void_p] * 8, None
    reason = ""
    for level in range(compiled.block_sparse_level(), -1, -1):
        found = Kernels(run, level)
        try:
            check(found)
        except KernelError as error:
            log.warning(str(error))
            reason = str(error)
        else:
            return found
    return reason


def check(found: Kernels) -> None:
    """Compare every variant with the dense product, on shapes that fill no group, four or tile.

    Raises:
        KernelError: one differs.
    """
    generator = torch.Generator().manual_seed(0)
    draw = partial(torch.randn, generator=generator, dtype=torch.float32)
    out, inputs = 150, 300
    weight = draw(out, inputs) * (torch.rand(out, inputs, generator=generator) < 0.2)
    bias = draw(out)
    numbers: tuple[Number, ...] = ("int8", "fp32")
    for rows, number, tokens in product((16, 4), numbers, (1, 3, 20, 70)):
        x = draw(tokens, inputs)
        blocks = Blocks.of(weight, rows, number)
        y = _call(found, x, bias, blocks.tensors, out)
        dense = linear(x, weight, bias) if number == "fp32" else Int8Linear(weight, bias, integer=False)(x)
        worst = float((y - dense).abs().max() / dense.abs().max())
        if not worst <= _TOLERANCE:
            raise KernelError(
                f"the {found.name(rows, number)} kernel for {number} in blocks of {rows}x1 differs from the dense "
                f"product by {worst:.2g} of the largest value and is not used"
            )


def _call(
    found: Kernels, x: torch.Tensor, bias: torch.Tensor | None, blocks: Sequence[torch.Tensor | None], out: int
) -> torch.Tensor:
    """The product of tokens [tokens, in] with the tensors of ``Blocks``, [tokens, out]."""
    value, scale = blocks[2], blocks[3]
    assert value is not None
    y = torch.empty(len(x), out, dtype=torch.float32)
    pointers = [None if tensor is None else tensor.data_ptr() for tensor in (x, y, bias, *blocks)]
    found.run(found.level, scale is not None, value.shape[1], torch.get_num_threads(), *x.shape, out, *pointers)
    return y


_LIBRARY = torch.library.Library("harness", "FRAGMENT")  # type: ignore[no-untyped-call]
_LIBRARY.define(  # type: ignore[no-untyped-call]
    "block_sparse(Tensor x, Tensor? bias, Tensor start, Tensor column, Tensor value, Tensor? scale, Tensor? offset, "
    "int out, int level) -> Tensor"
)


def _operator(x: torch.Tensor, *arguments: Any) -> torch.Tensor:
    bias, *blocks, out, level = arguments
    found = kernels()
    assert isinstance(found, Kernels)
    return _call(Kernels(found.run, level), x, bias, blocks, out)


_LIBRARY.impl("block_sparse", _operator, "CPU")  # type: ignore[no-untyped-call]


@register_flop_formula(torch.ops.harness.block_sparse)
def _flops(x: tuple[int, ...], bias: Any, start: Any, column: Any, value: tuple[int, ...], *_: Any, **__: Any) -> int:
    """A product of tokens [tokens, in] with every weight that is held, what fills up included."""
    return 2 * x[0] * torch.Size(value).numel()
