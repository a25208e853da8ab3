"""What rounding one linear layer of a model to some bits would cost: by trying, by curvature, or by gradients.

Q-BERT (arXiv:1909.05840) gives bits by the top eigenvalue of the loss's Hessian for each part of a model: the mean
over parts of the data and their spread, times the squared change of the weights. Fisher information stands in for the
Hessian by squared gradients, one for each weight. Trying needs neither.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from statistics import fmean, stdev
from typing import Final

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from harness.contract.decoder import Decoder
from harness.core.errors import MethodError
from harness.model.training import text_loss
from harness.model.weights.linear import Site
from harness.model.weights.replaced import Place, replace

Losses = dict[str, dict[int, float]]
"""By a linear layer's name and its bits, what rounding it costs."""

Rounded = Callable[[Site, int], torch.Tensor]
"""The values [out, in] of a linear layer's weight at some bits."""

STEPS: Final = 100
"""Power iterations at the most."""
TOLERANCE: Final = 1e-3
"""The relative change of an eigenvalue at which they end."""


@dataclass
class Sensitivity:
    """Losses, and what is to be said of them.

    Attributes:
        negative: names of linear layers with a negative top eigenvalue on some part of the text: the model is at no
            minimum of its loss there, and curvature says little.
    """

    losses: Losses = field(default_factory=dict)
    negative: list[str] = field(default_factory=list)


@torch.no_grad()
def mean_loss(model: Decoder, windows: Sequence[torch.Tensor]) -> float:
    """Mean cross-entropy of each next token over windows [1, length], in nats.

    Raises:
        MethodError: it is not finite.
    """
    total, tokens = 0.0, 0
    for window in windows:
        count = window.shape[1] - 1
        total += float(text_loss(_logits(model, window), window)) * count
        tokens += count
    if not total < float("inf"):
        raise MethodError("on the calibration text, the model's loss is not finite")
    return total / tokens


def by_loss(
    model: Decoder, windows: Sequence[torch.Tensor], chosen: Sequence[Site], bits: Sequence[int], rounded: Rounded
) -> Sensitivity:
    """By how much the mean loss rises, in nats, where one linear layer alone is rounded."""
    dense, losses = mean_loss(model, windows), Losses()
    for site in chosen:
        losses[site.name] = {}
        for count in bits:
            with ExitStack() as undo:
                replace(undo, Place(site.module, "weight"), site.stored(rounded(site, count)))
                losses[site.name][count] = mean_loss(model, windows) - dense
    return Sensitivity(losses)


def by_fisher(
    model: Decoder, windows: Sequence[torch.Tensor], chosen: Sequence[Site], bits: Sequence[int], rounded: Rounded
) -> Sensitivity:
    """The sum over weights of g^2 D^2: g the gradient of a window's mean loss, its square a mean over windows."""
    squares = {site.name: torch.zeros_like(site.weight, dtype=torch.float32) for site in chosen}  # [out, in]
    with _differentiable(chosen) as weights:
        for window in windows:
            gradients = torch.autograd.grad(text_loss(_logits(model, window), window), weights)
            for site, gradient in zip(chosen, gradients, strict=True):
                squares[site.name] += site.stored(gradient).float().square() / len(windows)
    return Sensitivity(
        {
            site.name: {
                count: float((squares[site.name] * (rounded(site, count) - site.weight.float()).square()).sum())
                for count in bits
            }
            for site in chosen
        }
    )


def by_hessian(
    model: Decoder, windows: Sequence[torch.Tensor], chosen: Sequence[Site], bits: Sequence[int], rounded: Rounded
) -> Sensitivity:
    """Omega ||D||^2, Omega = |mean of the top eigenvalues on each window| + their standard deviation."""
    eigenvalues: dict[str, list[float]] = {site.name: [] for site in chosen}
    with _differentiable(chosen) as weights, sdpa_kernel(SDPBackend.MATH):  # other products have no second derivative
        for window in windows:
            loss = text_loss(_logits(model, window), window)
            gradients = torch.autograd.grad(loss, weights, create_graph=True)
            for site, weight, gradient in zip(chosen, weights, gradients, strict=True):
                eigenvalues[site.name].append(top_eigenvalue(gradient, weight))
    sensitivity = Sensitivity()
    for site in chosen:
        values = eigenvalues[site.name]
        omega = abs(fmean(values)) + (stdev(values) if len(values) > 1 else 0.0)
        sensitivity.losses[site.name] = {
            count: omega * float((rounded(site, count) - site.weight.float()).square().sum()) for count in bits
        }
        if min(values) < 0:
            sensitivity.negative.append(site.name)
    return sensitivity


def top_eigenvalue(gradient: torch.Tensor, weight: torch.Tensor) -> float:
    """The eigenvalue of largest magnitude of the Hessian of a loss for one weight, by power iteration.

    Args:
        gradient: of the loss, with its graph.
    """
    generator = torch.Generator().manual_seed(0)
    vector = torch.randn(weight.shape, generator=generator).to(weight)
    value = 0.0
    for _ in range(STEPS):
        vector = vector / vector.norm().clamp(min=torch.finfo(vector.dtype).tiny)
        (product,) = torch.autograd.grad(gradient, weight, vector, retain_graph=True)
        before, value = value, float((product * vector).sum())
        if abs(value - before) <= TOLERANCE * abs(value):
            break
        vector = product.detach()
    return value


def _logits(model: Decoder, window: torch.Tensor) -> torch.Tensor:
    logits: torch.Tensor = model.module(input_ids=window, use_cache=False).logits  # [1, length, vocabulary]
    return logits


@contextmanager
def _differentiable(chosen: Sequence[Site]) -> Iterator[list[torch.Tensor]]:
    """The weights of linear layers, which alone have gradients inside the ``with`` block."""
    weights = [site.module.get_parameter("weight") for site in chosen]
    before = [weight.requires_grad for weight in weights]
    try:
        with torch.enable_grad():
            for weight in weights:
                weight.requires_grad_(True)
            yield list(weights)
    finally:
        for weight, wanted in zip(weights, before, strict=True):
            weight.requires_grad_(wanted)
