"""PoLar's predictor (arXiv:2606.06574): from the prompt's embeddings to a whole path, before any layer runs.

Token states are projected, a learned query of each layer attends to them, a small transformer lets the layers see one
another, and two heads say for each layer whether a segment of the path begins there and what is done with it.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn.functional import logsigmoid

from harness.contract.decoder import Auxiliary, only
from harness.methods.routing.router import CLASSES
from harness.model.paths.controller import Controller, Prompts

if TYPE_CHECKING:
    from harness.contract.decoder import Decoder
    from harness.model.paths.routed_cache import LayerPath

HEADS = 4
LONGEST_SEGMENT = 4
LONGEST_PROMPT = 512


class Scores(nn.Module):
    """Attention's scores of every key for every query.

    Attributes:
        macs_per_token: multiply-accumulates for a key: of its scores, and of the sum of values that they weigh.
    """

    def __init__(self, width: int, queries: int) -> None:
        super().__init__()
        self.macs_per_token = 2 * queries * width

    def forward(self, keys: torch.Tensor, queries: torch.Tensor) -> torch.Tensor:
        """[rows, keys, width] and [rows or 1, queries, width] to [rows, keys, queries * heads]: a token is a key."""
        keys, queries = _heads(keys), _heads(queries)
        scores = keys @ queries.transpose(2, 3) / math.sqrt(keys.shape[-1])  # [rows, heads, keys, queries]
        return scores.permute(0, 2, 3, 1).flatten(2)


class Attention(nn.Module):
    """Multi-head attention in parts that can be counted; queries come projected."""

    def __init__(self, width: int, queries: int) -> None:
        super().__init__()
        self.keys, self.values = nn.Linear(width, width), nn.Linear(width, width)
        self.scores, self.output = Scores(width, queries), nn.Linear(width, width)

    def forward(self, queries: torch.Tensor, states: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Answers [rows, queries, width] from states [rows, keys, width]; ``mask`` [rows, keys] is false at padding."""
        scores = self.scores(self.keys(states), queries).reshape(
            *states.shape[:2], -1, HEADS
        )  # [rows, keys, queries, heads]
        if mask is not None:
            scores = scores.masked_fill(~mask[:, :, None, None], -math.inf)
        attended = scores.softmax(1).permute(0, 3, 2, 1) @ _heads(
            self.values(states)
        )  # [rows, heads, queries, width / heads]
        answers: torch.Tensor = self.output(attended.transpose(1, 2).flatten(2))
        return answers


class _Exchange(nn.Module):
    """One layer of the transformer across layers, normalised before each part."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.queries, self.attention = nn.Linear(width, width), Attention(width, layers)
        self.widen, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.dropout = nn.Dropout(0.1)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        normed = self.first(states)
        states = states + self.dropout(self.attention(self.queries(normed), normed))
        added: torch.Tensor = self.dropout(self.narrow(torch.relu(self.widen(self.second(states)))))
        return states + added


class Predictor(nn.Module):
    """Logits of a segment's beginning, [rows, layers], and of what is done with it, [rows, layers, 3]."""

    def __init__(self, channels: int, width: int, layers: int) -> None:
        super().__init__()
        self.project = nn.Linear(channels, width)
        self.queries = nn.Parameter(torch.randn(1, layers, width) / math.sqrt(width))
        self.read = Attention(width, layers)
        self.exchange = nn.Sequential(_Exchange(width, layers), _Exchange(width, layers))
        self.normal = nn.LayerNorm(width)
        self.begins, self.does = nn.Linear(width, 1), nn.Linear(width, CLASSES)

    def forward(self, states: torch.Tensor, mask: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """From token states [rows, tokens, channels], ``mask`` [rows, tokens] is false at padding."""
        scale = states.square().mean(-1, keepdim=True).clamp_min(1e-12).sqrt()
        read = self.queries + self.read(self.queries, self.project(states / scale), mask)
        states = self.normal(self.exchange(read))  # [rows, layers, width]
        return self.begins(states)[..., 0], self.does(states)


def best_path(begins: torch.Tensor, does: torch.Tensor) -> "LayerPath":
    """The likeliest path of one prompt over all ways to cut it into segments of at most four layers.

    A segment from i to j has log b_i, for each layer inside it log (1 - b), and the log-probability of its best
    operation; b_0 is 1. Found exactly, by dynamic programming.

    Args:
        begins: [layers]; the first is not read.
        does: [layers, 3].
    """
    starts, inside = logsigmoid(begins).tolist(), logsigmoid(-begins).tolist()
    worth, operation = (part.tolist() for part in does.log_softmax(-1).max(-1))
    best: list[tuple[float, LayerPath]] = [(0.0, ())]
    for end in range(1, len(worth) + 1):
        options = []
        for begin in range(max(0, end - LONGEST_SEGMENT), end):
            before, path = best[begin]
            score = before + (starts[begin] if begin else 0.0) + worth[begin] + sum(inside[begin + 1 : end])
            options.append((score, (*path, *(operation[begin],) * (end - begin))))
        best.append(max(options))
    return best[-1][1]


def segments(path: "LayerPath") -> tuple[list[float], list[int]]:
    """Where the path's segments begin, 1 or 0 for each layer, and what is done: the predictor's labels."""
    begins: list[float] = []
    for layer, count in enumerate(path):
        full = all(begin == 0.0 for begin in begins[-LONGEST_SEGMENT + 1 :])
        continues = layer > 0 and count == path[layer - 1] and not full
        begins.append(float(not continues))
    return begins, list(path)


class ProgramController(Controller):
    """Decides the whole path from the embeddings."""

    def __init__(self, model: "Decoder", predictor: Predictor, skip_bias: float) -> None:
        self._model, self._bias = model, torch.tensor([skip_bias, 0.0, 0.0])
        self.predictor = predictor.float().to(model.device).eval()

    @property
    def auxiliaries(self) -> list[Auxiliary]:
        """The predictor's parts, each with as many tokens as it sees."""
        counted = (part for part in self.predictor.modules() if isinstance(part, nn.Linear | Scores))
        return [Auxiliary(part, "router") for part in counted]

    @torch.no_grad()
    def decide(self, layer: int, hidden: torch.Tensor, prompts: Prompts) -> Sequence["LayerPath"]:
        """Every row's whole path; rows are read one by one, without padding."""
        predicted = []
        for row, states in enumerate(prompts.states(hidden)):
            with only(self._model, (row,)):
                begins, does = self.predictor(states[None, -LONGEST_PROMPT:].float())
            predicted.append(torch.cat((begins[..., None], does), -1))  # [1, layers, 1 + classes]
        logits = torch.cat(predicted).cpu()  # [rows, layers, 1 + classes]: the one transfer to the host
        return [best_path(row[:, 0], row[:, 1:] + self._bias) for row in logits]


def _heads(states: torch.Tensor) -> torch.Tensor:
    """[rows, tokens, width] to [rows, heads, tokens, width / heads]."""
    rows, tokens, width = states.shape
    return states.reshape(rows, tokens, HEADS, width // HEADS).transpose(1, 2)
