"""Linear layers that multiply only the blocks of weights that are not zero: 16 or 4 outputs of one input.

Where the project's own kernels cannot run, the same numbers are multiplied densely and the saving is called simulated.
"""

from typing import Any

import torch
from torch.nn.functional import linear
from torch.utils.flop_counter import register_flop_formula

from harness.contract.facts import Savings
from harness.core.errors import MethodError
from harness.model.weights import sparse_kernels
from harness.model.weights.blocks import TENSORS, Blocks, Number
from harness.model.weights.int8 import Int8Linear
from harness.model.weights.linear import ReplacementLayer
from harness.model.weights.sparse_kernels import Kernels

MOST_INPUTS = 2**16
"""Inputs are numbered in two bytes."""


class BlockSparseLinear(ReplacementLayer):
    """A linear layer over the blocks of a weight [out, in] that are not all zero."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, rows: int, number: Number) -> None:
        super().__init__()
        blocks = Blocks.of(weight, rows, number)
        kernels = sparse_kernels.load()
        assert isinstance(kernels, Kernels)
        self.out, self.level = blocks.out, kernels.level
        for name, tensor in zip(TENSORS, blocks.tensors, strict=True):
            self.register_buffer(name, tensor)
        self.register_buffer("bias", None if bias is None else bias.float())
        self.kernel = f"block-sparse {number} {rows}x1, {kernels.name(rows, number)}"
        self.savings = Savings.REAL
        self.macs_per_token = blocks.value.numel()
        self.weight_count = blocks.weight_count

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """From [..., in] to [..., out], in the type of the input."""
        tokens = x.reshape(-1, x.shape[-1]).float().contiguous()  # [tokens, in]
        blocks = (getattr(self, name) for name in TENSORS)
        y: torch.Tensor = torch.ops.harness.block_sparse(tokens, self.bias, *blocks, self.out, self.level)
        return y.to(x.dtype).reshape(*x.shape[:-1], self.out)

    def _apply(self, *_: Any, **__: Any) -> "BlockSparseLinear":
        raise MethodError(
            "a kernel reads these weights as they are: cast or move the model before attaching the method"
        )


class DenseOverZeros(ReplacementLayer):
    """The dense product over all weights, where no kernel can skip the zeros."""

    kernel, savings = "dense product over zeros", Savings.SIMULATED
    weight: torch.Tensor
    bias: torch.Tensor | None

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__()
        self.register_buffer("weight", weight.contiguous())
        self.register_buffer("bias", bias)
        self.macs_per_token = self.weight_count = weight.numel()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """From [..., in] to [..., out]."""
        return linear(x, self.weight, self.bias)


def block_sparse_layer(weight: torch.Tensor, bias: torch.Tensor | None, rows: int, number: Number) -> ReplacementLayer:
    """The replacement for a linear layer with weight [out, in], on the best kernel that this machine has."""
    if why_not(weight) is None:
        return BlockSparseLinear(weight, bias, rows, number)
    return DenseOverZeros(weight, bias) if number == "fp32" else Int8Linear(weight, bias, integer=False)


def why_not(weight: torch.Tensor) -> str | None:
    """Why a weight cannot be multiplied sparsely here; None where it can."""
    if weight.device.type != "cpu":
        return f"the kernel is for a CPU, and the model is on {weight.device}"
    if weight.shape[1] > MOST_INPUTS:
        return f"the kernel takes up to {MOST_INPUTS} inputs, and a linear layer has {weight.shape[1]}"
    kernels = sparse_kernels.load()
    return None if isinstance(kernels, Kernels) else kernels


_LIBRARY = torch.library.Library("harness", "FRAGMENT")  # type: ignore[no-untyped-call]
_LIBRARY.define(  # type: ignore[no-untyped-call]
    "block_sparse(Tensor x, Tensor? bias, Tensor start, Tensor column, Tensor value, Tensor? scale, Tensor? offset, "
    "int out, int level) -> Tensor"
)


def _operator(x: torch.Tensor, *arguments: Any) -> torch.Tensor:
    bias, *blocks, out, level = arguments
    kernels = sparse_kernels.load()
    assert isinstance(kernels, Kernels)
    return Kernels(kernels.run, level).multiply(x, bias, blocks, out)


_LIBRARY.impl("block_sparse", _operator, "CPU")  # type: ignore[no-untyped-call]


@register_flop_formula(torch.ops.harness.block_sparse)
def _flops(x: tuple[int, ...], bias: Any, start: Any, column: Any, value: tuple[int, ...], *_: Any, **__: Any) -> int:
    """A product of tokens [tokens, in] with every weight in the blocks, what fills up included."""
    return 2 * x[0] * torch.Size(value).numel()
