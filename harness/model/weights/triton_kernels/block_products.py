"""The product of a block-sparse weight as an operator of torch: it runs in CUDA graphs, and its FLOPs are counted."""

from typing import Any, Final

import torch
from torch.utils.flop_counter import register_flop_formula

from harness.model.weights.triton_kernels.launch import block_cut, multiprocessors

_LIBRARY: Final = torch.library.Library("harness", "FRAGMENT")  # type: ignore[no-untyped-call]
_LIBRARY.define(  # type: ignore[no-untyped-call]
    "triton_block_sparse(Tensor x, Tensor start, Tensor column, Tensor value, int out) -> Tensor"
)


def product(x: torch.Tensor, start: torch.Tensor, column: torch.Tensor, value: torch.Tensor, out: int) -> torch.Tensor:
    """Tokens [tokens, in] with blocks, as ``Blocks`` describes them: [tokens, out].

    Args:
        x: of the type of the values; int8 tokens give their exact sums, as float32 rounds them.
        value: [blocks, rows].
    """
    result: torch.Tensor = torch.ops.harness.triton_block_sparse(x, start, column, value, out)
    return result


def _launch(x: torch.Tensor, start: torch.Tensor, column: torch.Tensor, value: torch.Tensor, out: int) -> torch.Tensor:
    """The product by a kernel; the shapes and the card alone decide how it is cut, and nothing waits for the card."""
    from harness.model.weights.triton_kernels import block_kernels

    (tokens, _), (blocks, rows), groups = x.shape, value.shape, len(start) - 1
    y = _result(x, start, column, value, out)  # [tokens, out]
    if tokens == 0:
        return y
    cut = block_cut(groups, rows, blocks, tokens, multiprocessors(x.device), x.element_size())
    parts = y[None] if cut.parts == 1 else y.new_empty(cut.parts, tokens, out, dtype=torch.float32)
    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]  # Triton launches on the current device
        if tokens == 1:
            block_kernels.vector[(groups, cut.parts)](
                *(x.contiguous(), start, column, value, parts, out, rows, cut.chunk, cut.parts), num_warps=cut.warps
            )
        else:
            block_kernels.tile[(groups, -(-tokens // cut.tokens), cut.parts)](
                *(x.T.contiguous(), start, column, value, parts, tokens, out, rows, cut.tokens, cut.chunk, cut.parts),
                num_warps=cut.warps,
                num_stages=cut.stages,
            )
    return y if cut.parts == 1 else parts.sum(0).to(y.dtype)


def _result(x: torch.Tensor, start: torch.Tensor, column: torch.Tensor, value: torch.Tensor, out: int) -> torch.Tensor:
    return x.new_empty(x.shape[0], out, dtype=torch.float32 if x.dtype == torch.int8 else x.dtype)


for _key, _function in {"CPU": _launch, "CUDA": _launch, "Meta": _result}.items():
    _LIBRARY.impl("triton_block_sparse", _function, _key)  # type: ignore[no-untyped-call]


@register_flop_formula(torch.ops.harness.triton_block_sparse)
def _flops(x: tuple[int, ...], start: Any, column: Any, value: tuple[int, ...], *_: Any, **__: Any) -> int:
    """A product of tokens [tokens, in] with every weight in the blocks, [blocks, rows]."""
    return 2 * x[0] * torch.Size(value).numel()
