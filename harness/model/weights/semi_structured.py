"""Linear layers whose weights have two zeros in each four neighbours of a row, on cuSPARSELt: torch's product for 2:4.

It keeps half of the values and two bits for the place of each, and multiplies half as often, on the sparse tensor
cores that NVIDIA's cards have since Ampere ("Accelerating Sparse Deep Neural Networks", arXiv:2104.08378). They are
the operators that ``torch.sparse.to_sparse_semi_structured`` takes.
"""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any, Final

import torch
from torch.nn.functional import linear, pad
from torch.utils.flop_counter import register_flop_formula

from harness.contract.decoder import Decoder
from harness.contract.facts import Savings
from harness.contract.parameters import Pattern
from harness.model.weights import cuda, trial
from harness.model.weights.computations import Computation, Computations, Layer
from harness.model.weights.dense_over_zeros import DenseOverZeros
from harness.model.weights.linear import ReplacementLayer, Site, dense_over, installed, zeroed

NAME: Final = "cuSPARSELt 2:4"

_MULTIPLE: Final = 16
_ROWS: Final = 8
"""What tokens are filled up to a multiple of."""
_TOLERANCE: Final = 2e-2
"""Of the largest output: what rounding to bfloat16 or float16 may do."""


class SemiStructuredLinear(ReplacementLayer):
    """A linear layer over a weight [out, in] with two zeros in each four neighbours of a row."""

    kernel, savings = NAME, Savings.REAL
    packed: torch.Tensor
    bias: torch.Tensor | None

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__()
        self.out = len(weight)
        self.register_buffer("packed", torch._cslt_compress(weight.contiguous()))
        self.register_buffer("bias", bias)
        self.macs_per_token = self.weight_count = weight.numel() // 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """From [..., in] to [..., out], in the type of the input."""
        tokens = x.reshape(-1, x.shape[-1])  # [tokens, in]
        y: torch.Tensor = torch.ops.harness.semi_structured(tokens, self.packed, self.out)
        if self.bias is not None:
            y = y + self.bias
        return y.reshape(*x.shape[:-1], self.out)


def computations(layer: Layer, device: str) -> Computations:
    """What may compute a linear layer with two zeros in each four neighbours, on a device."""
    dense = Computation(dense_over("2:4"), DenseOverZeros)
    kernel = Computation(NAME, SemiStructuredLinear, _why_not(layer, device))
    return Computations(dense, (kernel,), __name__, device, equal_work=False)


def _why_not(layer: Layer, device: str) -> str | None:
    reason = cuda.why_not(device, (8, 0))
    if reason is None and layer.dtype not in ("bfloat16", "float16"):
        reason = f"it takes bfloat16 and float16, and the model is in {layer.dtype}"
    if reason is None and (layer.inputs % _MULTIPLE or layer.out % _MULTIPLE):
        reason = (
            f"it takes multiples of {_MULTIPLE} inputs and outputs, and a linear layer has {layer.inputs} inputs and "
            f"{layer.out} outputs"
        )
    reason = reason or _fault(layer.dtype, device)
    return f"{NAME}: {reason}" if reason else None


@cache
def _fault(dtype: str, device: str) -> str | None:
    """What is wrong with the product on a device, tried beside the dense product over the same numbers."""
    generator = torch.Generator().manual_seed(0)
    draws = torch.randn(48 + max(trial.TOKENS), 256, generator=generator).to(getattr(torch, dtype))
    weight, x = draws[:48].clone(), draws[48:]
    weight[:24, 1::2] = 0  # the second and the fourth of four
    weight[24:].view(24, -1, 4)[..., 1:3] = 0
    expected = linear(x.double(), weight.double())  # [tokens, out]
    return trial.fault(lambda: SemiStructuredLinear(weight.to(device), None), x, expected, device, _TOLERANCE)


@contextmanager
def zeroed_as_planned(model: Decoder, weights: Iterable[tuple[Site, torch.Tensor, Pattern]]) -> Iterator[None]:
    """``zeroed``, on the kernel for 2:4 where the plan of the run says that it is faster."""
    with ExitStack() as undo:
        for site, weight, pattern in weights:
            if model.kernels.get(site.place) == NAME:
                replacement = SemiStructuredLinear(weight.to(site.weight.device), site.bias)
                undo.enter_context(installed([(site, replacement)]))
            else:
                undo.enter_context(zeroed([(site, weight, pattern)]))
        yield


_LIBRARY = torch.library.Library("harness", "FRAGMENT")  # type: ignore[no-untyped-call]
_LIBRARY.define("semi_structured(Tensor x, Tensor packed, int out) -> Tensor")  # type: ignore[no-untyped-call]


def _operator(x: torch.Tensor, packed: torch.Tensor, out: int) -> torch.Tensor:
    filled = pad(x, (0, 0, 0, -len(x) % _ROWS))  # [rows, in]
    y: torch.Tensor = torch._cslt_sparse_mm(packed, filled.T, transpose_result=True)  # [rows, out]
    return y[: len(x)]


_LIBRARY.impl("semi_structured", _operator, "CUDA")  # type: ignore[no-untyped-call]


@register_flop_formula(torch.ops.harness.semi_structured)
def _flops(x: tuple[int, ...], packed: Any, out: int, *_: Any, **__: Any) -> int:
    """A product of tokens [tokens, in] with half of the weights; rows that fill up are not counted."""
    return x[0] * x[1] * out
