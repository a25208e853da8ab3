"""The check on the formulas: PyTorch's own count of what the dispatcher ran, on a few requests.

Counting slows a small forward several times over, so it never happens while anything is timed. Operators that
PyTorch has no formula for read as zero, and a ratio below one then says so; some are given one
(``harness.measure.formulas``), and an operator of the harness's own brings its formula when it is defined.
"""

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from math import prod
from typing import Any, TypeVar

from harness.contract.decoder import Decoder
from harness.measure.flops import executed_flops, unknown_flops
from harness.measure.segment import Segment
from harness.measure.shape import ModelShape

T = TypeVar("T")


def count_flops(run: Callable[[], T]) -> tuple[T, int]:
    """Call ``run`` without gradients and count the FLOPs of its matrix products: its result and the count.

    Fused attention is counted as the full rectangle.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from harness.measure.formulas import added

    # A counter cannot be entered twice: every call takes a fresh one.
    counter = FlopCounterMode(display=False, custom_mapping=dict(added()))
    with torch.no_grad(), counter:
        result = run()
    return result, int(counter.get_total_flops())


@dataclass(frozen=True)
class Audit:
    """FLOPs of some requests: ``stated`` by the formulas, ``counted`` by PyTorch."""

    stated: int
    counted: int

    @property
    def ratio(self) -> float:
        """Counted over stated, 1.0 where both agree."""
        return self.counted / self.stated


def audit(model: Decoder, serve: Callable[[], Iterable[Segment]]) -> Audit:
    """Count some requests twice.

    Products that a method's own modules make element by element, for which PyTorch has no formula, are counted in both
    as the modules declare them.

    Args:
        model: what runs, with its methods attached.
        serve: runs some requests and returns what a tracer saw of all their rows.

    Raises:
        ValueError: the requests ran nothing, or nothing that the formulas count.
    """
    shape = ModelShape.of(model)
    elementwise = [added.module for added in model.auxiliaries if getattr(added.module, "is_elementwise", False)]
    unseen = 0

    def add(module: Any, args: Any, output: Any) -> None:
        nonlocal unseen
        unseen += 2 * module.macs_per_token * prod(output.shape[:-1])

    with ExitStack() as hooks:
        for module in elementwise:
            hooks.callback(module.register_forward_hook(add).remove)
        segments, counted = count_flops(lambda: list(serve()))
    if (reason := unknown_flops(shape, segments)) is not None:
        raise ValueError(reason)
    stated = executed_flops(shape, segments).total
    if not stated:
        raise ValueError("nothing ran that the formulas count, so there is nothing to audit")
    return Audit(stated, counted + unseen)
