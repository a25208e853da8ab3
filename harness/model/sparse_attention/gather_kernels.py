"""Attention of each query over a list of keys, in C: compiled on first use and checked before it is used.

Float32 on a CPU; AVX512 or AVX2 where the processor has it and ``HARNESS_ISA`` allows it, else plain C. Keys and values
are read where they are in the cache, those of the list and no others. torch's own gather copies them first, and then
takes longer than the dense product.
"""

import ctypes
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

from harness.core import cpu
from harness.core.errors import CompileError, KernelError
from harness.model.weights.compiled import library
from harness.model.weights.kernel_sets import by_set

SOURCE = Path(__file__).with_name("kernels")

_BEST = cpu.KERNEL_SETS.index("avx512")
_TOLERANCE = 1e-5


@cache
def _library() -> Any:
    compiled = library(SOURCE)
    compiled.gather.argtypes = [ctypes.c_int] * 2 + [ctypes.c_void_p] * 2 + [ctypes.c_float] + [ctypes.c_void_p] * 5
    compiled.gather.restype = None
    return compiled


def best() -> int | str:
    """The place in ``cpu.KERNEL_SETS`` of the best kernel that is right here, or why there is none.

    Raises:
        SpecError: ``HARNESS_ISA`` names no instruction set, or one that this processor does not have.
    """
    return _best(cpu.kernel_limit())


@cache
def _best(limit: str | None) -> int | str:
    try:
        level: int = _library().gather_level()
    except CompileError as error:
        return str(error)
    if limit is not None:
        limit = cpu.KERNEL_SETS[min(cpu.KERNEL_SETS.index(limit), _BEST)]
    loaded = by_set(limit, level, check)
    return next((each for each in reversed(loaded) if isinstance(each, int)), str(loaded[0]))


def check(level: int) -> int:
    """Compare the kernel of a set with the product in float64, on widths that fill no vector and with gaps in lists.

    Raises:
        KernelError: it differs.
    """
    generator = torch.Generator().manual_seed(0)
    draw = partial(torch.randn, generator=generator, dtype=torch.float32)
    for lists, width, value_width, kept in ((1, 64, 64, 33), (2, 20, 84, 7), (2, 130, 9, 1)):
        q, k, v = draw(2, 6, 3, width), draw(2, 50, 2, width).transpose(1, 2), draw(2, 2, 50, value_width)
        chosen = torch.rand(2, lists, 3, 50, generator=generator, dtype=torch.float32).argsort(-1)[..., :kept]
        chosen[..., -1] = -1 if kept > 1 else chosen[..., -1]
        y = _gathered(q, k, v, chosen.int(), 0.3, level)
        worst = float((y - reference(q, k, v, chosen, 0.3)).abs().max())
        if not worst <= _TOLERANCE:
            raise KernelError(
                f"the {cpu.KERNEL_SETS[level]} kernel for attention over lists of keys differs from the dense product "
                f"by {worst:.2g} and is not used"
            )
    return level


def reference(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, chosen: torch.Tensor, scale: float) -> torch.Tensor:
    """The product in float64; arguments and shapes as of ``harness::gather_attention``."""
    heads, kv_heads, keys = q.shape[1], k.shape[1], k.shape[2]
    columns = torch.where(chosen < 0, keys, chosen.long())
    readable = torch.zeros(*chosen.shape[:3], keys + 1, dtype=torch.bool).scatter(-1, columns, value=True)[..., :keys]
    k, v = (tensor.double().repeat_interleave(heads // kv_heads, 1) for tensor in (k, v))
    readable = readable.expand(-1, kv_heads, -1, -1).repeat_interleave(heads // kv_heads, 1)
    scores = (q.double() @ k.mT * scale).masked_fill(~readable, -torch.inf)  # [rows, heads, queries, keys]
    return scores.softmax(-1) @ v


def _gathered(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, lists: torch.Tensor, scale: float, level: int
) -> torch.Tensor:
    q, k, v = q.contiguous(), *(each if each.stride(-1) == 1 else each.contiguous() for each in (k, v))
    y = q.new_empty(*q.shape[:3], v.shape[-1])  # [rows, heads, queries, value width]
    rows, heads, queries, width = q.shape
    sizes = (rows, heads, k.shape[1], queries, lists.shape[-1], lists.shape[1], width, v.shape[-1])
    strides = (*k.stride()[:3], *v.stride()[:3])
    arrays = [(ctypes.c_long * len(numbers))(*numbers) for numbers in (sizes, strides)]
    pointers = [each.data_ptr() for each in (q, k, v, lists.contiguous(), y)]
    _library().gather(level, torch.get_num_threads(), *arrays, scale, *pointers)
    return y


_OPERATORS = torch.library.Library("harness", "FRAGMENT")  # type: ignore[no-untyped-call]
_OPERATORS.define(  # type: ignore[no-untyped-call]
    "gather_attention(Tensor q, Tensor k, Tensor v, Tensor lists, float scale, int level) -> Tensor"
)
_OPERATORS.impl("gather_attention", _gathered, "CPU")  # type: ignore[no-untyped-call]


@register_flop_formula(torch.ops.harness.gather_attention)
def _flops(q: tuple[int, ...], k: Any, v: tuple[int, ...], lists: tuple[int, ...], *_: Any, **__: Any) -> int:
    """Of queries [rows, heads, queries, width] with as many keys as their lists are long."""
    rows, heads, queries, width = q
    return 2 * rows * heads * queries * lists[-1] * (width + v[-1])
