"""Which operators the compression methods have on this processor, whether they are right, and how fast they are."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Final

import torch
from torch.nn.functional import linear

from harness.core.errors import HarnessError
from harness.measure.arithmetic import MUCH_SLOWER, slowdown, time_ratio
from harness.model.weights import sparse_kernels
from harness.model.weights.block_sparse import BlockSparseLinear
from harness.model.weights.int8 import PRODUCTS, Int8Linear, int8_product, is_right
from harness.model.weights.linear import ReplacementLayer

WIDTH, TOKENS = 1024, 64
SPARSITY: Final = 0.8


@dataclass(frozen=True)
class Operator:
    """What was found about an operator.

    Attributes:
        name: a number format or a method.
        fast: it runs here, in less than twice the time of the dense product in float32.
        detail: what was found, in words.
    """

    name: str
    fast: bool
    detail: str


@torch.inference_mode()
def operators() -> Iterator[Operator]:
    """Probe each operator on one linear layer: some hundred milliseconds, seconds where kernels are to be compiled."""
    for dtype in (torch.bfloat16, torch.float16):
        yield _number_format(dtype)
    yield _int8()
    yield _block_sparse()


def _number_format(dtype: torch.dtype) -> Operator:
    name = str(dtype).removeprefix("torch.")
    try:
        ratio = slowdown(dtype)
    except RuntimeError as error:
        return Operator(name, False, f"cannot be probed: {_first_line(error)}")
    return Operator(name, ratio <= MUCH_SLOWER, f"a product over many tokens takes {ratio:.2g}x the time of float32")


def _int8() -> Operator:
    verdicts = [f"{product.name} {'exact' if is_right(product) else 'not exact or absent'}" for product in PRODUCTS]
    if (chosen := int8_product("cpu")) is None:
        return Operator("int8-dynamic", False, f"simulated: {', '.join(verdicts)}")
    weight = torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(0))
    ratio = _ratio(Int8Linear(weight, None), weight)
    detail = f"runs on {chosen.name}, {ratio:.2g}x the time of float32 ({', '.join(verdicts)})"
    return Operator("int8-dynamic", ratio <= MUCH_SLOWER, detail)


def _block_sparse() -> Operator:
    try:
        kernels = sparse_kernels.load()
    except HarnessError as error:  # a limit that names no instruction set, or one that is not here
        return Operator("block-sparse", False, str(error))
    if isinstance(kernels, str):
        return Operator("block-sparse", False, f"simulated: {kernels}")
    generator = torch.Generator().manual_seed(0)
    kept = torch.rand(WIDTH // 16, WIDTH, generator=generator) >= SPARSITY
    weight = torch.randn(WIDTH, WIDTH, generator=generator) * kept.repeat_interleave(16, 0)
    ratio = _ratio(BlockSparseLinear(weight, None, 16, "int8"), weight)
    int8 = f"int8 16x1 on {kernels.name(16, 'int8')}, 4x1 on {kernels.name(4, 'int8')}"
    floats = f"fp32 on {kernels.name(16, 'fp32')}"
    detail = f"{int8}, {floats}; int8 16x1 with {SPARSITY:.0%} zeros {ratio:.2g}x the time of dense float32"
    return Operator("block-sparse", ratio <= MUCH_SLOWER, detail)


def _ratio(layer: ReplacementLayer, weight: torch.Tensor) -> float:
    """Time of a layer over that of the dense product with a weight [out, in]."""
    x = torch.randn(TOKENS, weight.shape[1], generator=torch.Generator().manual_seed(1))
    return time_ratio(partial(layer, x), partial(linear, x, weight))


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
