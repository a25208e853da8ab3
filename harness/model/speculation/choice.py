"""Which part of a model is to draft: the one whose drafts would save the most, by their agreement on a text.

A part that reads the share e of the layers' weights, and K guesses for each verification, read K e + 1 times the
weights for n tokens, so that writing is n / (K e + 1) times as fast as in dense where weights are the bound. With L
layers, of which the part has E = e L, this is n L / (K E + L) (Elhoushi et al., arXiv:2404.16710).
"""

from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal

import torch

from harness.contract.decoder import Decoder
from harness.model.speculation.part import measuring
from harness.model.surgery import without_blocks, without_branches

Unit = Literal["block", "attention"]


@dataclass(frozen=True)
class Part:
    """A part of the model as a draft.

    Attributes:
        out: layers that it leaves out, or whose attention it does, by their indices in the dense model.
        draft: guesses for each verification with which it saves the most.
        speedup: modelled, over dense.
        right: share of the text's places at which its first guess is the model's.
        share: of the layers' weights, those that it reads.
    """

    out: tuple[int, ...]
    draft: int
    speedup: float
    right: float
    share: float


def chosen_part(model: Decoder, windows: Sequence[torch.Tensor], unit: Unit, most: int) -> tuple[Part, list[Part]]:
    """The part that would save the most among the nested ones, and all of these.

    Units are ranked by how often the model without that unit alone agrees with the whole, and are left out one more
    at a time in this order: twice as many forwards over the text as there are units.

    Args:
        windows: token ids, [1, tokens] each.
        most: guesses for each verification, at most.
    """
    tried = _Trials(model, windows, unit, most)
    fixed = measuring(model)
    units = [block.index for block in model.live if block.index not in fixed]
    alone = {index: tried.part((index,)) for index in units}
    order = sorted(units, key=lambda index: (-alone[index].right, index))
    nested = [alone[order[0]], *(tried.part(tuple(sorted(order[:count]))) for count in range(2, len(order) + 1))]
    return max(nested, key=lambda part: part.speedup), nested


def speedup(agreement: Sequence[torch.Tensor], share: float, draft: int) -> float:
    """Of so many guesses for each verification, by where the part agrees with the model: bool, [tokens] each.

    A verification at a place writes one token, and one more for each guess that is right with all before it.
    """
    written = 1.0
    for length in range(1, draft + 1):
        runs = [text.unfold(0, length, 1).all(-1) for text in agreement if len(text) >= length]  # [places] each
        if not runs:
            break
        written += float(torch.cat(runs).double().mean())
    return written / (draft * share + 1)


class _Trials:
    """The model without some units, compared with the whole on a text."""

    def __init__(self, model: Decoder, windows: Sequence[torch.Tensor], unit: Unit, most: int) -> None:
        self._model, self._windows, self._unit, self._most = model, windows, unit, most
        self._whole = list(self._choices())

    def part(self, out: tuple[int, ...]) -> Part:
        """What the model would save if it drafted without these units."""
        with _without(self._model, self._unit, out):
            pairs = zip(self._whole, self._choices(), strict=True)
            agreement = [whole == part for whole, part in pairs]  # bool, [tokens] each
        share = _share(self._model, self._unit, out)
        best = max(range(1, self._most + 1), key=lambda draft: speedup(agreement, share, draft))
        right = float(torch.cat(agreement).double().mean())
        return Part(out, best, speedup(agreement, share, best), right, share)

    @torch.no_grad()
    def _choices(self) -> Iterator[torch.Tensor]:
        """The likeliest next token at each place of each window, [tokens], on the CPU."""
        for window in self._windows:
            yield self._model.module(input_ids=window, use_cache=False).logits[0].argmax(-1).cpu()


def _without(model: Decoder, unit: Unit, out: Collection[int]) -> AbstractContextManager[None]:
    return without_blocks(model, out) if unit == "block" else without_branches(model, attention=out)


def _share(model: Decoder, unit: Unit, out: Collection[int]) -> float:
    """Of the layers' weights, those that the part reads."""

    def weights(modules: Sequence[Any]) -> int:
        return sum(parameter.numel() for module in modules for parameter in module.parameters())

    every = sum(weights([block.module]) for block in model.live)
    gone = [block for block in model.live if block.index in out]
    left = sum(weights([block.module] if unit == "block" else block.attention.modules) for block in gone)
    return 1 - left / every
