"""AWQ's two searches, decoder layer by decoder layer: scales of channels, then how far a group's weights are clipped.

Scales are powers of the mean magnitudes of a layer's inputs, s = mean|x|^r over the root of their largest times their
least, for r = 0, 1/n, ..., (n - 1)/n; the r is taken whose rounded weights change the output of the inspected module
least. Then the largest magnitude of every group is lowered in steps of a twentieth, to eleven at most, to where its
part of the output changes least: E|d x|^2 = d H d^T with the second moments H of the group's inputs, over all tokens.

Source: AWQ (arXiv:2306.00978), and its authors' code, auto_scale.py and auto_clip.py.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from typing import Any, Final

import torch

from harness.contract.anatomy import Block
from harness.contract.decoder import Decoder
from harness.model.channel_scales import Call, Feed, captured, moved, require_exact
from harness.model.forwards import states_of
from harness.model.weights.formats import NumberFormat, quantize
from harness.model.weights.layerwise import Observers, layer_by_layer
from harness.model.weights.linear import Site
from harness.model.weights.observers import MeanAbs
from harness.model.weights.replaced import Place, replace

SEARCHED: Final = 4096
"""Tokens, in whole windows, on which scales are compared."""
_LEAST: Final = 1e-4
_STEPS, _STEP = 10, 1 / 20


@dataclass
class Searched:
    """What the searches chose.

    Attributes:
        scales: by a feed's name, float32 [channels].
        clips: by a linear layer's name, the largest magnitude of each group, float32 [out, groups].
        errors: by a feed's name, the squared change of the inspected module's output: of rounding to nearest, and of
            the scales that were chosen.
        tokens: number of calibration tokens.
    """

    scales: dict[str, torch.Tensor] = field(default_factory=dict)
    clips: dict[str, torch.Tensor] = field(default_factory=dict)
    errors: dict[str, tuple[float, float]] = field(default_factory=dict)
    tokens: int = 0


class _Inputs(MeanAbs):
    """Mean magnitudes of inputs, [in], and their second moments inside each group, [groups, group, group]."""

    def __init__(self, site: Site, number: NumberFormat) -> None:
        super().__init__(site)
        inputs = site.weight.shape[1]
        groups = number.groups(inputs)
        self.moments = torch.zeros(groups, inputs // groups, inputs // groups, device=site.weight.device)

    def add(self, x: torch.Tensor) -> torch.Tensor:
        """What is accumulated, with the inputs [tokens, in]."""
        grouped = x.float().view(len(x), *self.moments.shape[:2]).transpose(0, 1)  # [groups, tokens, group]
        self.moments.baddbmm_(grouped.mT, grouped)
        return super().add(x)


@torch.no_grad()
def search(
    model: Decoder,
    windows: Sequence[torch.Tensor],
    fed: Sequence[Feed],
    chosen: Sequence[Site],
    number: NumberFormat,
    *,
    grid: int,
    clip: bool,
) -> Searched:
    """Search on calibration text, every layer on what the model as it is gives.

    Args:
        windows: tokens, each of shape [1, length].
        fed: the tensors whose channels are scaled.
        chosen: the linear layers that are rounded.
        grid: powers that are tried.
        clip: whether weights are clipped.

    Raises:
        MethodError: activations or weights are not finite.
        UnsupportedModelError: see ``require_exact``.
    """
    searched = Searched()
    rounded = {site.module for site in chosen}

    def visit(block: Block, run: Callable[[Observers], None]) -> AbstractContextManager[Any]:
        own = [feed for feed in fed if feed.layer == block.index]
        sites = [site for site in chosen if site.layer == block.index]
        if not sites:
            return nullcontext()
        read = {reader.name: feed for feed in own for reader in feed.readers}
        alone = [site for site in sites if site.name not in read]  # what they read has no scales
        inputs = {site.name: _Inputs(site, number) for site in (*(feed.readers[0] for feed in own), *alone)}
        with captured({block.module, *(feed.inspected for feed in own)}, SEARCHED) as calls:
            run({observer.site.module: observer for observer in inputs.values()})
        require_exact(model, block, own, calls[block.module][0])
        for feed in own:
            readers = [reader for reader in feed.readers if reader.module in rounded]
            scale, errors = _best_scale(feed, readers, inputs[feed.name].value, calls[feed.inspected], number, grid)
            searched.scales[feed.name], searched.errors[feed.name] = scale.cpu(), errors
        if clip:
            searched.clips.update(_clips(block, own, sites, inputs, searched.scales, number))
        return nullcontext()

    searched.tokens = layer_by_layer(model, windows, visit)
    return searched


def clipped(weight: torch.Tensor, most: torch.Tensor) -> torch.Tensor:
    """A weight [out, in] whose groups have no larger magnitudes than ``most``, [out, groups]."""
    most = most.to(weight)[..., None]
    return weight.reshape(*most.shape[:2], -1).clamp(-most, most).reshape(weight.shape)


def _clips(
    block: Block,
    fed: list[Feed],
    sites: list[Site],
    inputs: dict[str, _Inputs],
    scales: dict[str, torch.Tensor],
    number: NumberFormat,
) -> Iterator[tuple[str, torch.Tensor]]:
    """For linear layers of a block, by name, the largest magnitude to which each group is clipped, [out, groups].

    Args:
        inputs: what is known of inputs, by the name of a feed, or of a linear layer whose inputs have no scales.
    """
    read = {reader.name: feed for feed in fed for reader in feed.readers}
    values = moved(fed, scales)
    query_key = {block.roles[role].module for role in ("query", "key") if role in block.roles}
    for site in sites:
        if site.module in query_key:  # their products grow with the square of an error
            continue
        feed = read.get(site.name)
        moments = inputs[feed.name if feed else site.name].moments  # [groups, group, group]
        if feed is not None:
            scale = scales[feed.name].to(moments).view(moments.shape[:2])
            moments = moments / scale[:, :, None] / scale[:, None, :]
        value = values.get(f"{site.name}.weight")
        weight = site.weight if value is None else site.stored(value)
        yield site.name, _best_clip(weight.float(), moments, number).cpu()


def _best_scale(
    feed: Feed, readers: list[Site], mean: torch.Tensor, calls: list[Call], number: NumberFormat, grid: int
) -> tuple[torch.Tensor, tuple[float, float]]:
    """The scales [channels] of a feed, and the squared changes of the inspected output without and with them.

    Args:
        readers: those that are rounded.
        mean: mean magnitudes of what is read, [channels].
    """

    def outputs() -> list[torch.Tensor]:
        return [states_of(feed.inspected(*args, **kwargs)).float() for args, kwargs in calls]

    dense = outputs()
    weights = [reader.weight.float() for reader in readers]  # [out, in] each
    best, errors = torch.ones_like(mean, dtype=torch.float32), list[float]()
    for step in range(grid):
        scale = mean.clamp(min=_LEAST).pow(step / grid)
        scale = (scale / (scale.max() * scale.min()).sqrt()).float()
        with ExitStack() as undo:
            for reader, weight in zip(readers, weights, strict=True):
                new = quantize(weight * scale, number).dequantized() / scale
                replace(undo, Place(reader.module, "weight"), reader.stored(new))
            changes = [float((now - before).square().sum()) for now, before in zip(outputs(), dense, strict=True)]
        if not errors or sum(changes) < min(errors):
            best = scale
        errors.append(sum(changes))
    return best, (errors[0], min(errors))


def _best_clip(weight: torch.Tensor, moments: torch.Tensor, number: NumberFormat) -> torch.Tensor:
    """The largest magnitude [out, groups] to which each group of a weight [out, in] is clipped.

    Args:
        moments: second moments of the inputs in each group, [groups, group, group].
    """
    grouped = weight.view(len(weight), *moments.shape[:2])  # [out, groups, group]
    largest = grouped.abs().amax(2)
    best, least = largest, torch.full_like(largest, torch.inf)
    for step in range(_STEPS):
        most = largest * (1 - step * _STEP)
        rounded = quantize(clipped(weight, most), number).dequantized()
        change = (rounded - weight).view_as(grouped).transpose(0, 1)  # [groups, out, group]
        error = ((change @ moments) * change).sum(2).T  # [out, groups]
        better = error < least
        best, least = most.where(better, best), error.where(better, least)
    return best
