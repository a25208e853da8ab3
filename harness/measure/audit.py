"""The check on the formulas: PyTorch's own count of what the dispatcher ran, on a few requests.

Counting slows a small forward several times over, so it never happens while anything is timed. Operators that
PyTorch has no formula for read as zero, and a ratio below one then says so; its int8 product is given one here, and
an operator of the harness's own brings its formula when it is defined.
"""

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from harness.measure.flops import executed_flops
from harness.measure.segment import Segment
from harness.measure.shape import ModelShape

T = TypeVar("T")


def count_flops(run: Callable[[], T]) -> tuple[T, int]:
    """Call ``run`` without gradients and count the FLOPs of its matrix products: its result and the count.

    Fused attention on a CPU, which PyTorch's counter leaves out, is counted as the full rectangle.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    formulas = {
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
        torch.ops.aten._int_mm: _int_mm_flops,
    }
    # A counter cannot be entered twice: every call takes a fresh one.
    counter = FlopCounterMode(display=False, custom_mapping=formulas)
    with torch.no_grad(), counter:
        result = run()
    return result, int(counter.get_total_flops())


def flops_audit_ratio(shape: ModelShape, serve: Callable[[], Iterable[Segment]]) -> float:
    """Counted FLOPs over those of the formulas, 1.0 where both agree.

    Args:
        shape: the model that runs.
        serve: runs some requests and returns what a tracer saw of all their rows.

    Raises:
        ValueError: the requests ran nothing.
    """
    segments, counted = count_flops(serve)
    expected = executed_flops(shape, segments).total
    if not expected:
        raise ValueError("nothing ran that the formulas count, so there is nothing to audit")
    return counted / expected


def _attention_flops(query: tuple[int, ...], key: tuple[int, ...], value: tuple[int, ...], *_: Any, **__: Any) -> int:
    """Both products of attention over shapes [batch, heads, tokens, width]."""
    batch, heads, queries, width = query
    # query-key, then probability-value
    return 2 * batch * heads * queries * key[2] * (width + value[3])


def _int_mm_flops(x: tuple[int, ...], weight: tuple[int, ...], *_: Any, **__: Any) -> int:
    """Of [tokens, inputs] times [inputs, outputs]."""
    return 2 * x[0] * x[1] * weight[1]
