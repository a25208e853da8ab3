"""HQQ's zero points: between codes, such that a weight's rounding errs least in a norm that forgives few large errors.

Of |W - W'|^p, p = 0.7, one minimises over the zero points z with W_e, a sparse part of the error, in turns:

    W_e = sign(x) relu(|x| - |x|^(p - 1) / beta), x = W - W';    z = mean over a group of (q - (W - W_e) / s)

Source: "Half-Quadratic Quantization of Large Machine Learning Models", Badri and Shaji, mobiusml.github.io/hqq_blog.
"""

from typing import Final

import torch

from harness.model.weights.formats import NumberFormat, Quantized, rounded, scales

_NORM: Final = 0.7
_BETA: Final = 10.0
_GROWTH: Final = 1.01


@torch.no_grad()
def fitted_zeros(weight: torch.Tensor, number: NumberFormat, iterations: int) -> tuple[torch.Tensor, list[float]]:
    """Zero points of a weight [out, in] in an asymmetric format whose zero points are float16.

    Every group keeps those of its iterations that erred least, the first being rounding to nearest.

    Returns:
        The zero points, float16 [out, groups], and the error sum |W - W'|^p after each iteration.
    """
    scale, zero = scales(weight, number)
    assert zero is not None
    grouped = weight.float().reshape(*scale.shape, -1)  # [out, groups, group]
    best, least = zero, torch.full_like(zero, torch.inf)
    errors: list[float] = []
    beta = _BETA
    for _ in range(iterations):
        codes = rounded(weight, scale, zero, number).float().view_as(grouped)
        rest = grouped - (codes - zero[..., None]) * scale[..., None]
        error = rest.abs().pow(_NORM).sum(2)  # [out, groups]
        better = error < least
        if not better.any():
            break
        best, least = zero.where(better, best), error.where(better, least)
        errors.append(float(least.double().sum()))
        sparse = rest.sign() * (rest.abs() - rest.abs().pow(_NORM - 1) / beta).relu()
        zero = (codes - (grouped - sparse) / scale[..., None]).mean(2).half().float()
        beta *= _GROWTH
    return best.half(), errors


def with_zeros(weight: torch.Tensor, number: NumberFormat, zero: torch.Tensor) -> Quantized:
    """A weight [out, in] in a format, with given zero points [out, groups]."""
    scale, _ = scales(weight, number)
    zero = zero.to(scale)
    return Quantized(number, rounded(weight, scale, zero, number), scale, zero)
