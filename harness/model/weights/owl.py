"""Outlier-weighed layerwise sparsity: which layers of a model have weights that stand out, and keep more of them.

OWL (Yin et al., arXiv:2310.05175, section 3.2): with A = |W| ||x|| over all linear layers of a decoder layer, its
share of outliers is that of A > M mean(A). The shares are stretched to a range of 2 lambda, and what a layer keeps lies
as far from what all keep as its share lies from their mean.
"""

from collections.abc import Iterable, Sequence

import torch

from harness.contract.decoder import Decoder
from harness.model.weights.linear import Site
from harness.model.weights.observers import SumOfSquares, calibrate


@torch.no_grad()
def owl(
    model: Decoder,
    windows: Iterable[torch.Tensor],
    chosen: Sequence[Site],
    *,
    sparsity: float,
    outliers: float,
    spread: float,
) -> list[float]:
    """The sparsity of each layer of the dense model; all chosen linear layers together have the one that is asked for.

    Args:
        windows: tokens, each of shape [1, length].
        outliers: M, what a weight that stands out is a multiple of the mean by.
        spread: lambda.

    Raises:
        MethodError: activations are not finite.
    """
    norms: dict[str, torch.Tensor] = {}

    def look(site: Site, squares: SumOfSquares) -> torch.Tensor:
        norms[site.name] = squares.value.sqrt().float()  # [in]
        return site.weight

    calibrate(model, windows, chosen, SumOfSquares, look)
    by_layer: dict[int, list[Site]] = {}
    for site in chosen:
        assert site.layer is not None
        by_layer.setdefault(site.layer, []).append(site)
    shares = {layer: _outliers(sites, norms, outliers) for layer, sites in by_layer.items()}
    counts = {layer: sum(site.weight.numel() for site in sites) for layer, sites in by_layer.items()}
    return _spread(shares, counts, len(model.anatomy.blocks), sparsity, spread)


def _outliers(sites: Sequence[Site], norms: dict[str, torch.Tensor], multiple: float) -> float:
    """The share of the weights of a layer's linear layers whose scores are above a multiple of their mean."""

    def scores(site: Site) -> torch.Tensor:
        return site.weight.abs().float() * norms[site.name]  # [out, in]

    count = sum(site.weight.numel() for site in sites)
    mean = sum(float(scores(site).double().sum()) for site in sites) / count
    return sum(int((scores(site) > multiple * mean).sum()) for site in sites) / count


def _spread(
    shares: dict[int, float], counts: dict[int, int], layers: int, sparsity: float, spread: float
) -> list[float]:
    """Sparsities by layer, whose mean over weights is the one given; a layer without linear layers has that one too."""
    least, most = min(shares.values(), default=0.0), max(shares.values(), default=0.0)
    if most == least:
        return [sparsity] * layers
    stretched = {layer: (share - least) / (most - least) * 2 * spread for layer, share in shares.items()}
    mean = sum(stretched[layer] * counts[layer] for layer in stretched) / sum(counts.values())
    return [sparsity - (stretched[layer] - mean if layer in stretched else 0.0) for layer in range(layers)]
