"""Early exit: a token stops at the first layer after which it is confident enough, and carries its state to the head.

Only tokens whose output predicts something may exit. The rest of the prompt is read in full: masking it would cost
quality and save nothing.
"""

from collections import defaultdict
from collections.abc import Callable, Container

import torch

from harness.contract.decoder import Auxiliary, Decoder, only
from harness.model.forwards import uploaded
from harness.model.tokens.confidence import Confidence
from harness.model.tokens.token_depth import TokenPolicy, Tokens, token_depth

Threshold = Callable[[int, torch.Tensor], "torch.Tensor | float"]
"""The confidence at which a token exits, by the layer just run and the tokens' steps, [rows, tokens], on the CPU."""


class EarlyExit(TokenPolicy):
    """Exit after the first checked layer where confidence reaches the threshold.

    Attributes:
        confidence: the measure, computed only for tokens that may still exit.
        threshold: the confidence at which a token exits.
        layers: the dense layers after which it is checked; after the last layer there is nothing left to skip.
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
        """Start with every token inside the model."""
        self._tokens = tokens
        self._inside: torch.Tensor | None = None  # [rows, tokens], bool, on the CPU; None before the first exit
        self._streak = torch.zeros_like(tokens.steps)  # [rows, tokens], checks in a row that reached the threshold
        self._previous: tuple[int, torch.Tensor] | None = None  # a layer and its input

    def runs(self, layer: int, states: torch.Tensor) -> torch.Tensor | None:
        """The tokens that have not exited; the states are the output of the layer before."""
        if self._previous is not None and self._previous[0] in self.layers:
            self._check(*self._previous, states)
        self._previous = layer, states
        return self._inside

    def _check(self, layer: int, before: torch.Tensor, after: torch.Tensor) -> None:
        """Let the tokens exit that are confident enough after a layer."""
        inside = torch.ones_like(self._tokens.predicting) if self._inside is None else self._inside
        groups = _by_columns(inside & self._tokens.predicting)
        if not groups:
            return
        measured = []
        for columns, rows in groups.items():
            with only(self._model, tuple(rows)):
                confidence = self.confidence(layer, _part(before, rows, columns), _part(after, rows, columns))
            measured.append(confidence.flatten())  # [group rows * group columns]
        sizes = [len(part) for part in measured]
        leaving = torch.zeros_like(inside)
        # the one transfer to the host: exits, streaks and thresholds are kept there
        for (columns, rows), part in zip(groups.items(), torch.split(torch.cat(measured).cpu(), sizes), strict=True):
            # [group rows, 1] and [group columns] select a [group rows, group columns] part of the batch
            place = torch.tensor(rows)[:, None], torch.tensor(columns)
            reached = part.view(len(rows), -1) >= self.threshold(layer, self._tokens.steps[place])
            self._streak[place] = torch.where(reached, self._streak[place] + 1, 0)
            leaving[place] = self._streak[place] >= self.hits
        if leaving.any():
            self._inside = inside & ~leaving


@torch.no_grad()
def layer_inputs(model: Decoder, window: torch.Tensor) -> dict[int, torch.Tensor]:
    """Run a text through the whole model.

    Args:
        window: token ids, [rows, tokens].

    Returns:
        The states that enter each layer, [rows, tokens, width], by the layer's index in the dense model.

    Raises:
        UnsupportedModelError: a model whose layers a token cannot skip.
    """
    recorder = _Recorder()
    with token_depth(model, recorder):
        model.anatomy.parent(input_ids=window, use_cache=False)
    return recorder.states


class _Recorder(TokenPolicy):
    """Keeps the states that enter each layer, and lets all tokens run all layers."""

    def __init__(self) -> None:
        self.states: dict[int, torch.Tensor] = {}

    def runs(self, layer: int, states: torch.Tensor) -> None:
        self.states[layer] = states


def _part(states: torch.Tensor, rows: list[int], columns: tuple[int, ...]) -> torch.Tensor:
    """Some rows and tokens of states [rows, tokens, width]; the states themselves where it is all of them."""
    if (len(rows), len(columns)) == states.shape[:2]:
        return states
    return states[uploaded(rows, states.device)[:, None], uploaded(columns, states.device)]


def _by_columns(candidates: torch.Tensor) -> dict[tuple[int, ...], list[int]]:
    """Rows of a mask [rows, tokens] by the columns that are set in them, so that equal rows are checked together."""
    groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for row, flags in enumerate(candidates.tolist()):
        if any(flags):
            groups[tuple(column for column, flag in enumerate(flags) if flag)].append(row)
    return groups
