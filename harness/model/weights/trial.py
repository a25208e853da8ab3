"""Whether a kernel computes what it should on a device of this machine, tried once, before it is taken."""

from collections.abc import Callable
from typing import Final

import torch

TOKENS: Final = (1, 3, 70)
"""Rows of the products that a kernel is tried on: no whole tiles, of one row and of many."""


def fault(
    make: Callable[[], Callable[[torch.Tensor], torch.Tensor]],
    x: torch.Tensor,
    expected: torch.Tensor,
    device: str,
    tolerance: float,
) -> str | None:
    """What is wrong with a kernel, in words; None where its results are those expected.

    Args:
        make: the kernel's layer, with weights on the device; it may raise anything.
        x: activations on the CPU, [tokens, in], as many as the most of ``TOKENS``.
        expected: float64 on the CPU, [tokens, out].
        tolerance: by how much of the largest value a result may differ.
    """
    try:
        kernel = make()
        results = [kernel(x[:tokens].to(device)).cpu() for tokens in TOKENS]
    except Exception as error:  # torch's, a driver's or a compiler's: what cannot run is not taken
        return f"it cannot run here ({str(error).strip().partition(chr(10))[0] or type(error).__name__})"
    largest = expected.abs().max()
    errors = [(y - expected[: len(y)]).abs().max() / largest for y in results]
    worst = float(torch.stack(errors).max())  # no number where one of them is none
    if not worst <= tolerance:
        return f"it differs from the dense product by {worst:.2g} of the largest value here, and is not used"
    return None
