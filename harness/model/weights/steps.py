"""Step sizes of a uniform quantizer for each channel of an activation, by the percentile that errs least.

    symmetric:  step = max / (2^(b-1) - 1),         centre = 0
    else:       step = (high - low) / (2^b - 2),    centre = (high + low) / 2

Of the percentiles .999, .9999 and .99999 as ends of the range, each channel takes the one with the least squared error.

Source: RepQ-ViT (arXiv:2212.08254) and its authors' code, quant/quantizer.py, whose codes count from the range's lower
end; here they count from its middle, as products of eight bits take activations with a sign.
"""

from typing import Final

import torch

from harness.model.weights.linear import Site
from harness.model.weights.observers import Observer

SHARES: Final = (0.999, 0.9999, 0.99999)
_CHANNELS: Final = 64
"""Channels that are sorted at once."""


class Samples(Observer):
    """All inputs [tokens, in] of one linear layer."""

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self._parts: list[torch.Tensor] = []

    def add(self, x: torch.Tensor) -> torch.Tensor:
        """What is accumulated: nothing beside the inputs [tokens, in] themselves, and what is not finite of them."""
        self._parts.append(x.float())
        return self.total + x.double().sum(0) * 0

    @property
    def value(self) -> torch.Tensor:
        """What came of it, float32 [tokens, in]."""
        return torch.cat([super().value.float()[None, :][:0], *self._parts])


@torch.no_grad()
def steps(x: torch.Tensor, bits: int, *, symmetric: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Step sizes and centres [in] of a quantizer for each channel of x, [tokens, in]; no step is zero."""
    starts = range(0, x.shape[1], _CHANNELS)
    parts = [_of_channels(x[:, start : start + _CHANNELS].float(), bits, symmetric) for start in starts]
    step, centre = (torch.cat(each) for each in zip(*parts, strict=True))
    positive = step > 0
    usual = step[positive].mean() if positive.any() else step.new_tensor(1.0)
    return step.where(positive, usual), centre


def _of_channels(x: torch.Tensor, bits: int, symmetric: bool) -> tuple[torch.Tensor, torch.Tensor]:
    levels = 2 ** (bits - 1) - 1
    ordered = (x.abs() if symmetric else x).sort(0).values  # [tokens, channels]
    best, middle, least = (torch.zeros(x.shape[1], device=x.device) for _ in range(3))
    for index, share in enumerate(SHARES):
        high = _percentile(ordered, share)
        centre = torch.zeros_like(high) if symmetric else (high + _percentile(ordered, 1 - share)) / 2
        step = (high - centre) / levels
        unit = step.where(step > 0, 1)
        rounded = ((x - centre) / unit).round().clamp(-levels, levels) * unit + centre
        error = (rounded - x).square().sum(0)  # [channels]
        better = (error < least) | (index == 0)
        best, middle = step.where(better, best), centre.where(better, middle)
        least = error.where(better, least)
    return best, middle


def _percentile(ordered: torch.Tensor, share: float) -> torch.Tensor:
    """Of each column of ascending values, the one below which that share lies, between two linearly."""
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return torch.lerp(ordered[below], ordered[above], place - below)
