"""Which layers take another attention: one after the other, each time the one with which the loss on text is least."""

from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

from harness.contract.decoder import Decoder
from harness.model.training import text_loss


@dataclass(frozen=True)
class Greedy:
    """Layers in the order in which they were taken.

    Attributes:
        layers: dense layers.
        losses: mean cross-entropy of the next token, in nats: with none of the layers, and after each.
    """

    layers: tuple[int, ...]
    losses: tuple[float, ...]


@torch.no_grad()
def greedy(
    model: Decoder,
    windows: Sequence[torch.Tensor],
    layers: Collection[int],
    count: int,
    taking: Callable[[frozenset[int]], AbstractContextManager[None]],
) -> Greedy:
    """Take ``count`` layers of these; a tie goes to the first.

    Args:
        windows: token ids, each [1, length].
        taking: runs the model with these layers taken.
    """

    def loss(taken: frozenset[int]) -> float:
        with taking(taken):
            losses = [float(text_loss(model.module(ids).logits, ids)) * ids[:, 1:].numel() for ids in windows]
        return sum(losses) / sum(ids[:, 1:].numel() for ids in windows)

    chosen: list[int] = []
    losses = [loss(frozenset())]
    for _ in range(count):
        tried = {layer: loss(frozenset((*chosen, layer))) for layer in sorted(layers) if layer not in chosen}
        best = min(tried, key=tried.__getitem__)
        chosen.append(best)
        losses.append(tried[best])
    return Greedy(tuple(chosen), tuple(losses))


def forwards(layers: int, count: int) -> int:
    """How often the text is read to take so many of the layers."""
    return 1 + sum(layers - taken for taken in range(count))
