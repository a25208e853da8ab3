"""Which weights of a linear layer to prune: scores, the patterns of the zeros, and Wanda's pass over some text.

Patterns, outputs x inputs: single weights ("unstructured"); the two least of each four neighbours of a row ("2:4");
blocks of 4, 16 or 64 outputs of one input ("4x1", "16x1", "64x1"), which a sparse kernel can use. A block's
score is the sum of its weights' squared scores.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch.nn.functional import pad

from harness.contract.decoder import Decoder
from harness.contract.identity import digest
from harness.contract.parameters import Pattern
from harness.contract.prepared import Prepared
from harness.core.errors import MethodError
from harness.model.weights.linear import Site
from harness.model.weights.observers import SumOfSquares, calibrate
from harness.model.weights.replaced import zeros
from harness.model.weights.semi_structured import zeroed_as_planned

log = logging.getLogger("harness")

ROWS: dict[Pattern, int] = {"unstructured": 1, "4x1": 4, "16x1": 16, "64x1": 64}
"""Outputs in a block."""

COLLAPSED = 0.01
"""A linear layer that keeps less than this share of its squared scores is reported: its output is all but lost."""


def keep(scores: torch.Tensor, pattern: Pattern, sparsity: float, within: Literal["rows", "matrix"]) -> torch.Tensor:
    """Which weights stay, bool [out, in], by scores of that shape, none negative.

    Args:
        within: "rows": every row (of blocks) loses the same number; "matrix": the least of all, wherever they are.

    Raises:
        MethodError: 2:4, and the number of inputs is no multiple of 4.
    """
    if sparsity == 0:
        return torch.ones_like(scores, dtype=torch.bool)
    refuse_width(scores.shape[1], pattern)
    if pattern == "2:4":
        return _without_least(scores.reshape(-1, 4), 2).view(scores.shape)
    rows = ROWS[pattern]
    blocks = scores
    if rows > 1:
        padded = pad(scores, (0, 0, 0, -len(scores) % rows))  # [groups * rows, in]
        blocks = padded.square().view(-1, rows, scores.shape[1]).sum(1)  # [groups, in]
    groups = blocks if within == "rows" else blocks.reshape(1, -1)  # [groups, in] or [1, groups * in]
    kept = _without_least(groups, int(groups.shape[1] * sparsity)).view(blocks.shape)
    return kept.repeat_interleave(rows, 0)[: len(scores)]  # [groups, in] to [out, in]


def refuse_width(inputs: int, pattern: Pattern) -> None:
    """Refuse a linear layer of a number of inputs that the pattern does not divide.

    Raises:
        MethodError: 2:4, and the number of inputs is no multiple of 4.
    """
    if pattern == "2:4" and inputs % 4:
        raise MethodError(f"pattern=2:4 needs a multiple of 4 inputs; a linear layer here has {inputs}")


def _without_least(scores: torch.Tensor, count: int) -> torch.Tensor:
    """True but for the ``count`` least of each row, bool of the same shape; of equal scores the first are the least."""
    least = scores.argsort(dim=1, stable=True)[:, :count]  # columns, [rows, count]
    return torch.ones_like(scores, dtype=torch.bool).scatter_(1, least, False)


def sparsity_by_layer(model: Decoder, sparsity: Sequence[float]) -> list[float]:
    """The sparsity of each layer of the dense model.

    Raises:
        MethodError: there are several, and not one for each layer.
    """
    layers = len(model.anatomy.blocks)
    if len(sparsity) not in (1, layers):
        raise MethodError(f"{len(sparsity)} sparsities are given; the model has {layers} layers: give one, or {layers}")
    return list(sparsity) * (layers // len(sparsity))


@dataclass
class Pruned:
    """The weights that were chosen.

    Attributes:
        masks: by the linear layer's name, which weights stay, bool [out, in].
        collapsed: names of linear layers that keep less than ``COLLAPSED``.
        tokens: number of calibration tokens.
    """

    masks: dict[str, torch.Tensor] = field(default_factory=dict)
    collapsed: list[str] = field(default_factory=list)
    tokens: int = 0

    def add(self, site: Site, scores: torch.Tensor, kept: torch.Tensor) -> None:
        """Add the choice for one linear layer."""
        self.masks[site.name] = kept
        squares = scores.double().square()
        if (squares * kept).sum() < COLLAPSED * squares.sum():
            self.collapsed.append(site.name)

    def state(self) -> Prepared:
        """The state to store; it keeps eight weights of a mask to a byte."""
        masks = {name: mask.cpu() for name, mask in self.masks.items()}
        return Prepared(masks, {"zeros": self.zeros, "tokens": self.tokens, "collapsed": self.collapsed})

    @classmethod
    def of(cls, state: Prepared, chosen: Sequence[Site]) -> "Pruned":
        """The choice for these linear layers, from a stored state."""
        masks = {site.name: state.tensors[site.name].to(site.weight.device) for site in chosen}
        return cls(masks, state.facts["collapsed"], state.facts["tokens"])

    def warn(self) -> None:
        """Warn about linear layers that lost nearly all of their score mass."""
        if self.collapsed:
            names = ", ".join(self.collapsed[:3]) + (", ..." if len(self.collapsed) > 3 else "")
            log.warning(
                f"{len(self.collapsed)} of {len(self.masks)} pruned linear layers keep less than {COLLAPSED:.0%} of "
                f"their squared scores, so that their outputs are all but lost: {names}"
            )

    @property
    def zeros(self) -> float:
        """The share of weights that are pruned."""
        kept = sum(int(mask.sum()) for mask in self.masks.values())
        return 1 - kept / sum(mask.numel() for mask in self.masks.values())


@torch.no_grad()
def wanda(
    model: Decoder,
    windows: Iterable[torch.Tensor],
    chosen: Sequence[Site],
    pattern: Pattern,
    sparsity: Sequence[float],
) -> Pruned:
    """Choose by S = |W| ||x||, x an input's values over all tokens; a layer reads what the pruned ones before it give.

    Args:
        windows: tokens, each of shape [1, length].
        sparsity: of each layer of the dense model.

    Raises:
        MethodError: activations are not finite.
    """
    pruned = Pruned()

    def change(site: Site, squares: SumOfSquares) -> torch.Tensor:
        assert site.layer is not None
        # [out, in] times [in]
        scores = site.weight.abs().float() * squares.value.sqrt().to(torch.float32)
        if not torch.isfinite(scores).all():
            raise MethodError(f"the scores of {site.name} are not finite: a weight or an activation is damaged")
        kept = keep(scores, pattern, sparsity[site.layer], "rows")
        pruned.add(site, scores, kept)
        return site.weight * kept

    pruned.tokens = calibrate(model, windows, chosen, SumOfSquares, change)
    return pruned


def magnitude(chosen: Sequence[Site], pattern: Pattern, sparsity: Sequence[float]) -> Pruned:
    """Choose by S = |W| alone, the least of each whole matrix."""
    return _scored(chosen, pattern, sparsity, lambda site: site.weight.abs().float())


def drawn(chosen: Sequence[Site], pattern: Pattern, sparsity: Sequence[float], seed: int) -> Pruned:
    """Choose at random, of each whole matrix, the same on every machine; a linear layer's choice is its place's own."""

    def scores(site: Site) -> torch.Tensor:
        generator = torch.Generator().manual_seed(int(digest([seed, site.place])[:15], 16))
        return torch.rand(site.weight.shape, generator=generator).to(site.weight.device)  # [out, in]

    return _scored(chosen, pattern, sparsity, scores)


def _scored(
    chosen: Sequence[Site], pattern: Pattern, sparsity: Sequence[float], score: Callable[[Site], torch.Tensor]
) -> Pruned:
    pruned = Pruned()
    for site in chosen:
        scores = score(site)
        assert site.layer is not None
        pruned.add(site, scores, keep(scores, pattern, sparsity[site.layer], "matrix"))
    return pruned


def without(model: Decoder, chosen: Sequence[Site], pruned: Pruned, pattern: Pattern) -> AbstractContextManager[None]:
    """Run the model with zeros in place of the pruned weights, with a warning about linear layers that collapsed."""
    pruned.warn()
    masks = ((site, pruned.masks[site.name]) for site in chosen)
    return zeroed_as_planned(model, ((site, site.weight * mask, pattern) for site, mask in masks if not mask.all()))


def require_blocks(chosen: Sequence[Site], pattern: Pattern) -> bool:
    """Whether an earlier method has pruned any of the linear layers, in blocks that this pattern can skip.

    Raises:
        MethodError: it pruned in a pattern that leaves hardly a block of zeros.
    """
    earlier = {name for site in chosen if (name := zeros(site.module)) is not None}
    for name in earlier:
        refuse_pattern(name, pattern)
    return bool(earlier)


def refuse_pattern(earlier: Pattern, pattern: Pattern, by: str = "an earlier method") -> None:
    """Refuse to look for blocks among the zeros of an earlier method.

    Args:
        by: the name of that method, where it is known.

    Raises:
        MethodError: it pruned in a pattern that leaves hardly a block of zeros.
    """
    if ROWS.get(earlier, 1) % ROWS[pattern]:
        raise MethodError(
            f"the weights are pruned by {by} in the pattern {earlier}, which leaves hardly a block of {pattern} all "
            f"zero: prune with pattern={pattern}, or give block-sparse a sparsity of its own"
        )
