"""Linear layers that multiply only the blocks of weights that are not zero: 64, 16 or 4 outputs of one input.

Where the project's own kernels cannot run, or are not faster, the same numbers are multiplied densely and the saving is
called simulated.
"""

from functools import partial
from typing import Any

import torch
from torch.nn.functional import pad
from torch.utils.flop_counter import register_flop_formula

from harness.contract.facts import Savings
from harness.core.cpu import KERNEL_SETS
from harness.core.errors import MethodError
from harness.model.weights import sparse_kernels
from harness.model.weights.blocks import MOST_INPUTS, TENSORS, Blocks, Number
from harness.model.weights.computations import Computation, Computations, Layer
from harness.model.weights.dense_over_zeros import DENSE_PRODUCT, DenseOverZeros
from harness.model.weights.int8 import DENSE_PRODUCT as INT8_DENSE_PRODUCT
from harness.model.weights.int8 import Int8Linear
from harness.model.weights.linear import ReplacementLayer
from harness.model.weights.sparse_kernels import Kernels, kernel_name
from harness.model.weights.triton_kernels import block_linear

MOST_ROWS = 16
"""Outputs of a block that the kernels for a CPU take; one of 64 is four of 16."""


class BlockSparseLinear(ReplacementLayer):
    """A linear layer over the blocks of a weight [out, in] that are not all zero."""

    def __init__(
        self, weight: torch.Tensor, bias: torch.Tensor | None, rows: int, number: Number, kernels: Kernels | str
    ) -> None:
        super().__init__()
        if isinstance(kernels, str):
            raise MethodError(f"a block-sparse kernel cannot run: {kernels}")
        blocks = Blocks.of(weight, rows, number)
        self.out, self.level = blocks.out, kernels.level
        for name, tensor in zip(TENSORS, blocks.tensors, strict=True):
            self.register_buffer(name, tensor)
        self.register_buffer("bias", None if bias is None else bias.float())
        self.kernel = _name(rows, number, kernel_name(kernels.level, rows, number))
        self.savings = Savings.REAL
        self.bits = 8 if number == "int8" else None
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


def computations(layer: Layer, device: str, number: Number) -> Computations:
    """What may compute a linear layer whose weight has blocks of zeros, on a device.

    Raises:
        SpecError: ``HARNESS_ISA`` names no instruction set, or one that this processor does not have.
    """
    rows = min(layer.rows, MOST_ROWS)
    dense = (
        Computation(DENSE_PRODUCT, DenseOverZeros)
        if number == "fp32"
        else Computation(INT8_DENSE_PRODUCT, partial(Int8Linear, product=None))
    )
    reason, on_cpu = why_not(layer, device), device.startswith("cpu")
    loaded = sparse_kernels.load() if reason is None else (reason,) * len(KERNEL_SETS)
    kernels = tuple(
        Computation(
            _name(rows, number, instructions),
            partial(BlockSparseLinear, rows=rows, number=number, kernels=kernels),
            kernels if isinstance(kernels, str) else None,
            elsewhere=not on_cpu,
        )
        for instructions, kernels in sparse_kernels.by_name(loaded, rows, number).items()
    )
    on_card = block_linear.computation(layer, device, number)
    return Computations(dense, (on_card, *kernels), __name__, device, equal_work=False)


def why_not(layer: Layer, device: str) -> str | None:
    """Why no kernel can multiply a layer; None where one might."""
    if not device.startswith("cpu"):
        return f"the kernel is for a CPU, and the model is on {device}"
    if layer.inputs > MOST_INPUTS:
        return f"the kernel takes up to {MOST_INPUTS} inputs, and a linear layer has {layer.inputs}"
    return None


def zero_blocks(weight: torch.Tensor, rows: int) -> float:
    """The share of blocks of ``rows`` outputs of one input, in a weight [out, in], that are all zero."""
    blocks = pad(weight != 0, (0, 0, 0, -len(weight) % rows)).view(-1, rows, weight.shape[1])  # [groups, rows, in]
    return 1 - float(blocks.any(1).float().mean())


def _name(rows: int, number: Number, instructions: str) -> str:
    return f"block-sparse {number} {rows}x1, {instructions}"


_LIBRARY = torch.library.Library("harness", "FRAGMENT")  # type: ignore[no-untyped-call]
_LIBRARY.define(  # type: ignore[no-untyped-call]
    "block_sparse(Tensor x, Tensor? bias, Tensor start, Tensor column, Tensor value, Tensor? scale, Tensor? offset, "
    "int out, int level) -> Tensor"
)


def _operator(x: torch.Tensor, *arguments: Any) -> torch.Tensor:
    bias, *blocks, out, level = arguments
    kernels = sparse_kernels.load()[level]
    assert isinstance(kernels, Kernels)
    return kernels.multiply(x, bias, blocks, out)


_LIBRARY.impl("block_sparse", _operator, "CPU")  # type: ignore[no-untyped-call]


@register_flop_formula(torch.ops.harness.block_sparse)
def _flops(x: tuple[int, ...], bias: Any, start: Any, column: Any, value: tuple[int, ...], *_: Any, **__: Any) -> int:
    """A product of tokens [tokens, in] with every weight in the blocks, what fills up included."""
    return 2 * x[0] * torch.Size(value).numel()
