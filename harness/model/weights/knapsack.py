"""One option for each item under a budget of bytes, such that the sum of losses is small.

The multiple-choice knapsack: greedily the upgrade that saves the most loss for each byte, then exchanges between two
items. Losses are taken to add up; nothing here knows what they are of.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations, product
from typing import Final


@dataclass(frozen=True)
class Option:
    """What an item may be.

    Attributes:
        size: bytes that it takes.
        loss: what it costs; it may be negative.
    """

    size: int
    loss: float


Items = Sequence[Sequence[Option]]

PASSES: Final = 5
"""Of exchanges, at the most; each takes as many steps as there are pairs of items."""


def choose(items: Items, budget: float) -> list[int] | None:
    """The index of each item's option; None where even the smallest options take more than the budget."""
    chosen = [options.index(min(options, key=lambda option: (option.size, option.loss))) for options in items]
    spare = budget - size(items, chosen)
    if spare < 0:
        return None
    while (upgrade := _best_upgrade(items, chosen, spare)) is not None:
        item, option = upgrade
        spare -= items[item][option].size - items[item][chosen[item]].size
        chosen[item] = option
    for _ in range(PASSES):
        before = list(chosen)
        for pair in permutations(range(len(items)), 2):
            spare -= _exchange(items, chosen, pair, spare)
        if chosen == before:
            break
    return chosen


def size(items: Items, chosen: Sequence[int]) -> int:
    """Bytes that the chosen options take together."""
    return sum(options[index].size for options, index in zip(items, chosen, strict=True))


def _best_upgrade(items: Items, chosen: Sequence[int], spare: float) -> tuple[int, int] | None:
    """The item, and its option, that saves the most loss for each byte among those that fit."""
    best, most = None, -1e-300  # what saves nothing is taken too, last of all
    for item, options in enumerate(items):
        now = options[chosen[item]]
        for index, option in enumerate(options):
            added, saved = option.size - now.size, now.loss - option.loss
            if 0 < added <= spare and saved / added > most:
                best, most = (item, index), saved / added
    return best


def _exchange(items: Items, chosen: list[int], pair: tuple[int, int], spare: float) -> int:
    """Let one item grow at the cost of another where that lowers the loss, and say how many bytes it adds."""
    now = [items[item][chosen[item]] for item in pair]
    options, best, most, bytes_added = [range(len(items[item])) for item in pair], None, 0.0, 0
    for indices in product(*options):
        new = [items[item][index] for item, index in zip(pair, indices, strict=True)]
        saved = sum(option.loss for option in now) - sum(option.loss for option in new)
        added = sum(option.size for option in new) - sum(option.size for option in now)
        if new[0].size > now[0].size and new[1].size < now[1].size and saved > most and added <= spare:
            best, most, bytes_added = indices, saved, added
    if best is not None:
        for item, index in zip(pair, best, strict=True):
            chosen[item] = index
    return bytes_added
