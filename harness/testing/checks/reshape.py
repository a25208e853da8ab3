"""A smaller dense model: what is left of a layer are units of the dense one, none of them torn."""

from collections.abc import Mapping
from typing import Any

import torch

from harness.contract.decoder import Decoder
from harness.core.errors import MethodError, UnsupportedModelError
from harness.model.units import Heads, head_weights, heads_of, neurons_of
from harness.testing.outcome import Failed, Skipped
from harness.testing.subject import Subject, on

_Weights = dict[str, torch.Tensor]


def keeps_units_whole(subject: Subject) -> None:
    """Where layers are narrower than dense's, each head and neuron that is left has all the weights of one of dense's.

    Weights that a method also changes are not compared.
    """
    narrower = 0
    for family, decoder in subject.each():
        dense = [_units(decoder, layer) for layer in range(len(decoder.anatomy.blocks))]
        with on(family), subject.attached(decoder):
            for block in decoder.live:
                for before, now in zip(dense[block.index], _units(decoder, block.index), strict=True):
                    if now and before and len(_first(now)) < len(_first(before)):
                        narrower += 1
                        _require_whole(before, now, block.index)
    if not narrower:
        raise Skipped("it makes no layer narrower")


def _units(decoder: Decoder, layer: int) -> tuple[_Weights, _Weights]:
    """The weights of a layer's heads, each with those of its group, and of its neurons; none where these cannot be
    told apart.
    """
    try:
        heads, weights = heads_of(decoder, layer), _copied(head_weights(decoder, layer))
    except (MethodError, UnsupportedModelError):
        attention = {}
    else:
        attention = {role: _of_heads(weight, heads) for role, weight in weights.items()}
    try:
        return attention, _copied(neurons_of(decoder, layer))
    except (MethodError, UnsupportedModelError):
        return attention, {}


def _of_heads(weight: torch.Tensor, heads: Heads) -> torch.Tensor:
    """The weights that each head uses, [heads, features * width]."""
    return weight.repeat_interleave(heads.count // len(weight), 0).flatten(1)


def _copied(weights: Mapping[Any, torch.Tensor]) -> _Weights:
    return {role: weight.clone() for role, weight in weights.items()}


def _first(weights: _Weights) -> torch.Tensor:
    return next(iter(weights.values()))


def _require_whole(dense: _Weights, now: _Weights, layer: int) -> None:
    """Every unit's weights of each role are those of one and the same unit of dense, in dense's order."""
    places: dict[str, list[int | None]] = {
        role: [next((i for i, row in enumerate(dense[role]) if torch.equal(row, kept)), None) for kept in weight]
        for role, weight in now.items()
    }
    if any(place is None for found in places.values() for place in found):
        return
    what = "heads" if "query" in now else "neurons"
    for role, weight in now.items():
        shared = [dense[role][place] for place in places[next(iter(now))]]
        if not all(map(torch.equal, shared, weight)):
            raise Failed(f"layer {layer} has {what} whose {role} weights are those of others")
