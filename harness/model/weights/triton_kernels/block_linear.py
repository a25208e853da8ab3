"""Linear layers over the blocks of a weight that are not zero, on a CUDA card."""

import logging
from functools import cache, partial
from typing import Final

import torch
from torch.nn.functional import linear

from harness.contract.facts import Savings
from harness.model.weights import cuda, trial
from harness.model.weights.blocks import MOST_INPUTS, Blocks, Number
from harness.model.weights.by_token import ByToken
from harness.model.weights.computations import Computation, Layer
from harness.model.weights.int8 import Int8Linear, quantize_rows
from harness.model.weights.linear import ReplacementLayer
from harness.model.weights.triton_kernels.available import CAPABILITY, missing
from harness.model.weights.triton_kernels.block_products import product
from harness.model.weights.triton_kernels.packed import TYPES

ROWS: Final = (16, 64)
"""Outputs of a block that the kernels take: whole tiles of a card's matrix units."""
_SHORT: Final = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
_TOLERANCE: Final = {"float32": 1e-4, "bfloat16": 2e-2, "float16": 5e-3}
"""Of the largest output: what rounding may do, by the type of the activations."""

log = logging.getLogger("harness")


class FloatBlocks(ReplacementLayer):
    """A linear layer over the blocks of a weight [out, in], in the weight's own type."""

    start: torch.Tensor
    column: torch.Tensor
    value: torch.Tensor
    bias: torch.Tensor | None

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, rows: int) -> None:
        super().__init__()
        store(self, Blocks.of(weight, rows, "fp32"), weight.dtype)
        self.register_buffer("bias", bias)
        self.out = len(weight)
        self.kernel = name(rows, "fp32", str(weight.dtype).removeprefix("torch."))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """From [..., in] to [..., out], in the type of the input."""
        tokens = x.reshape(-1, x.shape[-1]).to(self.value.dtype)  # [tokens, in]
        y = product(tokens, self.start, self.column, self.value, self.out)  # [tokens, out]
        if self.bias is not None:
            y = y + self.bias
        return y.to(x.dtype).reshape(*x.shape[:-1], self.out)


class Int8Blocks(ByToken):
    """A linear layer over the blocks of a weight [out, in] in int8, with activations in int8: ``Int8Linear``'s answers.

    A block whose weights are all rounded to zero is left out too.
    """

    levels = 127
    start: torch.Tensor
    column: torch.Tensor
    value: torch.Tensor
    scale: torch.Tensor

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, rows: int) -> None:
        super().__init__()
        codes, scale = quantize_rows(weight)
        store(self, Blocks.of(codes, rows, "fp32"), torch.int8)
        self.register_buffer("scale", scale)
        self.register_buffer("bias", bias)
        self.out = len(weight)
        self.kernel = name(rows, "int8", "")

    def product(self, x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """See ``ByToken``."""
        tokens = x.round_().to(torch.int8)
        return product(tokens, self.start, self.column, self.value, self.out) * self.scale * scale


def store(layer: ReplacementLayer, blocks: Blocks, dtype: torch.dtype) -> None:
    """Give a layer its blocks, with values [blocks, rows] of a type that holds them exactly."""
    layer.register_buffer("start", blocks.start)
    layer.register_buffer("column", blocks.column)
    layer.register_buffer("value", blocks.value.to(dtype))
    layer.savings = Savings.REAL
    layer.macs_per_token, layer.weight_count = blocks.value.numel(), blocks.weight_count


def name(rows: int, number: Number, dtype: str) -> str:
    """What the kernel is called in the record; floats are in the type of the model."""
    return f"block-sparse {'int8' if number == 'int8' else _SHORT.get(dtype, dtype)} {rows}x1, triton"


def computation(layer: Layer, device: str, number: Number) -> Computation:
    """The kernel for a layer whose weight has blocks of zeros, on a device."""
    return Computation(
        name(layer.rows, number, layer.dtype),
        partial(Int8Blocks if number == "int8" else FloatBlocks, rows=layer.rows),
        why_not(layer, device, number),
        elsewhere=not device.startswith("cuda"),
    )


def why_not(layer: Layer, device: str, number: Number) -> str | None:
    """Why the kernel cannot multiply a layer, in words; None where it can."""
    reason = cuda.why_not(device, CAPABILITY)
    if reason is None and layer.rows not in ROWS:
        reason = f"it takes blocks of {' or '.join(f'{rows}x1' for rows in ROWS)}, and not of {layer.rows}x1"
    if reason is None and layer.inputs > MOST_INPUTS:
        reason = f"it takes up to {MOST_INPUTS} inputs, and a linear layer has {layer.inputs}"
    if reason is None and layer.dtype not in TYPES:
        reason = f"it takes {', '.join(TYPES[:-1])} and {TYPES[-1]}, and the model is in {layer.dtype}"
    reason = reason or missing() or _fault(layer.rows, number, layer.dtype, device)
    return f"the kernel in Triton: {reason}" if reason else None


@cache
def _fault(rows: int, number: Number, dtype: str, device: str) -> str | None:
    """What is wrong with the kernel on a device; see ``trial.fault``."""
    generator = torch.Generator().manual_seed(0)
    out, inputs = 150, 300  # no whole group of outputs, and as many blocks as fill no piece
    kept = torch.rand(-(-out // rows), inputs, generator=generator) < 0.3
    weight = torch.randn(out, inputs, generator=generator) * kept.repeat_interleave(rows, 0)[:out]
    draws = torch.randn(max(trial.TOKENS), inputs, generator=generator).to(getattr(torch, dtype))
    weight = weight.to(draws.dtype)
    make: type[Int8Blocks | FloatBlocks]
    if number == "int8":
        make, expected = Int8Blocks, Int8Linear(weight.float(), None, None)(draws.float())  # [tokens, out]
    else:
        make, expected = FloatBlocks, linear(draws.double(), weight.double())
    problem = trial.fault(
        lambda: make(weight.to(device), None, rows), draws, expected.double(), device, _TOLERANCE[dtype]
    )
    if problem:
        log.warning(f"{name(rows, number, dtype)}: {problem}")
    return problem
