"""Early exit: a token stops at the first layer after which it is sure enough, and carries its state to the head.

Only tokens whose output predicts something may exit. The others are prompt, which is read in full: masking it would
cost quality and save nothing.
"""

from collections import defaultdict
from collections.abc import Callable, Container
from contextlib import nullcontext

import torch

from harness.contract.decoder import Auxiliary, Decoder
from harness.model.tokens.confidence import Confidence
from harness.model.tokens.token_depth import TokenPolicy, Tokens, token_depth

Threshold = Callable[[int, torch.Tensor], "torch.Tensor | float"]
"""What a confidence must reach, by the layer just run and the steps of the tokens, shape [rows, tokens]."""


class EarlyExit(TokenPolicy):
    """Exit after the first checked layer where confidence reaches the threshold.

    Attributes:
        confidence: the measure, computed for tokens that may still exit alone.
        threshold: what it must reach.
        layers: the dense layers after which it is checked; after the last layer there is nothing to leave.
        hits: how many checks in a row must reach it.
    """

    def __init__(
        self,
        model: Decoder,
        confidence: Confidence,
        threshold: Threshold,
        layers: Container[int],
        hits: int = 1,
    ) -> None:
        self.confidence, self.threshold, self.layers, self.hits = confidence, threshold, layers, hits
        self.auxiliaries = tuple(Auxiliary(module, "exit") for module in confidence.auxiliaries)
        self._model = model

    def begin(self, tokens: Tokens) -> None:
        """Nobody has left yet."""
        self._tokens = tokens
        self._inside: torch.Tensor | None = None
        self._streak = torch.zeros_like(tokens.steps)
        self._last: tuple[int, torch.Tensor] | None = None

    def runs(self, layer: int, states: torch.Tensor) -> torch.Tensor | None:
        """Those that have not exited; the states are the output of the layer before."""
        if self._last is not None and self._last[0] in self.layers:
            self._check(*self._last, states)
        self._last = layer, states
        return self._inside

    def _check(self, layer: int, before: torch.Tensor, after: torch.Tensor) -> None:
        """Let the tokens exit that are sure enough after a layer."""
        inside = torch.ones_like(self._tokens.predicting) if self._inside is None else self._inside
        candidates = inside & self._tokens.predicting
        leaving = torch.zeros_like(inside)
        for places, rows in _alike(candidates).items():
            at = torch.tensor(rows, device=inside.device)[:, None], torch.tensor(places, device=inside.device)
            context = self._model.context
            with nullcontext() if context is None or len(rows) == len(inside) else context.only(tuple(rows)):
                confidence = self.confidence(layer, before[at], after[at])
            reached = confidence >= self.threshold(layer, self._tokens.steps[at])
            self._streak[at] = torch.where(reached, self._streak[at] + 1, 0)
            leaving[at] = self._streak[at] >= self.hits
        if leaving.any():
            self._inside = inside & ~leaving


@torch.no_grad()
def layer_inputs(model: Decoder, window: torch.Tensor) -> tuple[dict[int, torch.Tensor], torch.Tensor]:
    """Run a text through the whole model.

    Args:
        window: token ids, shape [rows, tokens].

    Returns:
        The states entering each layer, by its index in the dense model, shape [rows, tokens, width]; and the model's
        logits, shape [rows, tokens, vocabulary].

    Raises:
        UnsupportedModelError: a model whose layers a token cannot skip.
    """
    watch = _Watch()
    with token_depth(model, watch):
        logits = model.module(input_ids=window, use_cache=False).logits
    return watch.states, logits


class _Watch(TokenPolicy):
    """Keeps what enters each layer, and lets all tokens run all of them."""

    def __init__(self) -> None:
        self.states: dict[int, torch.Tensor] = {}

    def runs(self, layer: int, states: torch.Tensor) -> None:
        self.states[layer] = states


def _alike(candidates: torch.Tensor) -> dict[tuple[int, ...], list[int]]:
    """Rows by their candidates' places, so that rows with the same ones are checked together."""
    groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for row, flags in enumerate(candidates.tolist()):
        if any(flags):
            groups[tuple(place for place, flag in enumerate(flags) if flag)].append(row)
    return groups
