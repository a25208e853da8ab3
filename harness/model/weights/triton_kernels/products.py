"""Products of packed weights, and int8 activations, as operators of torch: they run in CUDA graphs and are counted."""

from typing import Any, Final

import torch
from torch.utils.flop_counter import register_flop_formula

from harness.model.weights.triton_kernels.launch import multiprocessors, power_above, tile_cut, vector_cut
from harness.model.weights.triton_kernels.packed import Number, span_inputs

_LIBRARY: Final = torch.library.Library("harness", "FRAGMENT")  # type: ignore[no-untyped-call]
_LIBRARY.define(  # type: ignore[no-untyped-call]
    "triton_product(Tensor x, Tensor codes, Tensor scale, Tensor? zero, int group, str number) -> Tensor"
)
_LIBRARY.define("triton_rounded(Tensor x, int levels) -> (Tensor, Tensor)")  # type: ignore[no-untyped-call]


def product(x: torch.Tensor, packed: tuple[torch.Tensor, ...], group: int, number: Number) -> torch.Tensor:
    """Tokens [tokens, in] with a packed weight: [tokens, out] in the type of the tokens; int8 tokens give float32.

    Args:
        packed: codes, scales, and zero points where there are any; see ``packed.packed``.
        group: inputs of a group.
    """
    codes, scale, *zeros = packed
    zero = zeros[0] if zeros else None
    spans = group // span_inputs(number) if scale.shape[1] > 1 else 0
    result: torch.Tensor = torch.ops.harness.triton_product(x, codes, scale, zero, spans, number)
    return result


def _launch(
    x: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None, group: int, number: str
) -> torch.Tensor:
    """The product by a kernel; the shapes and the card alone decide how it is cut, and nothing waits for the card."""
    from harness.model.weights.triton_kernels import dense_kernels

    x = x.contiguous()
    (tokens, inputs), (out, spans), groups = x.shape, codes.shape[:2], scale.shape[1]
    y = _result(x, codes)  # [tokens, out]
    if tokens == 0:
        return y
    processors = multiprocessors(x.device)
    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]  # Triton launches on the current device
        if tokens == 1:
            cut = vector_cut(out, spans, processors)
            dense_kernels.vector[(-(-out // cut.rows),)](
                *(x, codes.view(torch.int32), scale, zero, y, out, inputs, spans, groups),
                *(number, group, cut.rows, cut.chunk),
                num_warps=cut.warps,
            )
            return y
        cut = tile_cut(out, tokens, spans, group, processors, x.element_size())
        share = -(-spans // (cut.parts * cut.chunk)) * cut.chunk
        parts = y[None] if cut.parts == 1 else y.new_empty(cut.parts, tokens, out, dtype=torch.float32)
        dense_kernels.tile[(-(-out // cut.rows), -(-tokens // cut.tokens), cut.parts)](
            *(x, codes, scale, zero, parts, tokens, out, inputs, spans, groups, share),
            *(number, group, cut.rows, cut.tokens, cut.chunk),
            num_warps=cut.warps,
            num_stages=cut.stages,
        )
    return y if cut.parts == 1 else parts.sum(0).to(y.dtype)


def _result(x: torch.Tensor, codes: torch.Tensor, *_: Any) -> torch.Tensor:
    return x.new_empty(x.shape[0], codes.shape[0], dtype=torch.float32 if x.dtype == torch.int8 else x.dtype)


for _key, _function in {"CPU": _launch, "CUDA": _launch, "Meta": _result}.items():
    _LIBRARY.impl("triton_product", _function, _key)  # type: ignore[no-untyped-call]


@register_flop_formula(torch.ops.harness.triton_product)
def _flops(x: tuple[int, ...], codes: tuple[int, ...], *_: object, **__: object) -> int:
    """A product of tokens [tokens, in] with a weight [out, spans, 16]; what fills a span up is not counted."""
    return 2 * x[0] * x[1] * codes[0]


def rounded(x: torch.Tensor, levels: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens [tokens, in] as int8 by the largest of each, and their scales, float32 [tokens, 1]: in one launch.

    The same codes and scales as those of ``by_token.scaled``.
    """
    result: tuple[torch.Tensor, torch.Tensor] = torch.ops.harness.triton_rounded(x, levels)
    return result


def _launch_rounded(x: torch.Tensor, levels: int) -> tuple[torch.Tensor, torch.Tensor]:
    from harness.model.weights.triton_kernels import dense_kernels

    x = x.contiguous()
    codes, scale = _result_rounded(x, levels)
    (tokens, inputs), chunk = x.shape, min(power_above(x.shape[1]), 4096)
    if x.numel():
        with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
            options = {"num_warps": 4 if chunk < 2048 else 8, "enable_fp_fusion": False}
            dense_kernels.rounded[(tokens,)](x, codes, scale, inputs, levels, chunk, **options)
    return codes, scale


def _result_rounded(x: torch.Tensor, levels: int) -> tuple[torch.Tensor, torch.Tensor]:
    return x.new_empty(x.shape, dtype=torch.int8), x.new_empty(len(x), 1, dtype=torch.float32)


for _key, _pair in {"CPU": _launch_rounded, "CUDA": _launch_rounded, "Meta": _result_rounded}.items():
    _LIBRARY.impl("triton_rounded", _pair, _key)  # type: ignore[no-untyped-call]


@register_flop_formula(torch.ops.harness.triton_rounded)
def _no_flops(*_: object, **__: object) -> int:
    """It multiplies no matrices."""
    return 0
