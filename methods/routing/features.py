"""Training examples of routers: the prompt's pooled states along each label's path, and the path itself."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch
from torch import nn

from harness.contract.study import Workbench
from harness.methods.routing.labels import Label, groups
from harness.methods.routing.router import pool
from harness.model.paths.path_evaluator import PathEvaluator

if TYPE_CHECKING:
    from harness.contract.decoder import Decoder

NOWHERE: Final = Workbench()
"""The workbench of work that is neither kept nor reported."""


@dataclass(frozen=True)
class Examples:
    """Training examples for every layer.

    Attributes:
        features: of each layer, [samples, W, width], padded with zeros; in the model's own precision.
        windows: how many windows each sample has, [samples].
        labels: how often each layer runs, [samples, layers].
    """

    features: list[torch.Tensor]
    windows: torch.Tensor
    labels: torch.Tensor

    @torch.no_grad()
    def predicted(self, routers: Sequence[nn.Module], chosen: torch.Tensor) -> torch.Tensor:
        """The routers' choices on the chosen samples, [samples, layers]."""
        pairs = zip(routers, self.features, strict=True)
        logits = [logits_of(router, layer[chosen], self.windows[chosen]) for router, layer in pairs]
        return torch.stack(logits, 1).argmax(-1)  # [samples, layers, classes] to [samples, layers]


def logits_of(router: nn.Module, features: torch.Tensor, windows: torch.Tensor) -> torch.Tensor:
    """The mean over each sample's own windows of the router's logits, [samples, classes].

    Args:
        features: [samples, W, width].
        windows: how many of its W windows each sample has, [samples].
    """
    present = (torch.arange(features.shape[1])[None] < windows[:, None]).float()[..., None]  # [samples, W, 1]
    summed: torch.Tensor = (router(features.float()) * present).sum(1)  # [samples, classes]
    return summed / windows[:, None]


def collect(model: "Decoder", labels: Sequence[Label], windows: int, workbench: Workbench = NOWHERE) -> Examples:
    """The input of each router, with every question run along its label's path (teacher forcing)."""
    layers, width = len(model.anatomy.blocks), model.config.hidden_size
    features = [torch.zeros(len(labels), windows, width, dtype=model.module.dtype) for _ in range(layers)]
    counts = torch.zeros(len(labels), dtype=torch.long)
    with workbench.bar("reading what routers see") as bar:
        if bar is not None:
            bar.expect(len(labels))
        for number, label, evaluator, place in _evaluated(model, labels):
            for layer, states in enumerate(evaluator.states(place, label.path)[:layers]):
                pooled = pool(states.float(), windows)
                features[layer][number, : len(pooled)] = pooled.cpu()
                counts[number] = len(pooled)
            if bar is not None:
                bar.advance(1)
    return Examples(features, counts, torch.tensor([label.path for label in labels]))


def first_states(model: "Decoder", labels: Sequence[Label]) -> list[torch.Tensor]:
    """The embeddings of every kept question's prompt, [prompt, width], in single precision on the CPU."""
    states: dict[int, torch.Tensor] = {}
    for number, _, evaluator, place in _evaluated(model, labels):
        states[number] = evaluator.states(place, ())[0].float().cpu()
    return [states[number] for number in range(len(labels))]


def _evaluated(model: "Decoder", labels: Sequence[Label]) -> Iterator[tuple[int, Label, PathEvaluator, int]]:
    """Each label with its number, an evaluator of its group, and its place in it."""
    numbers = {label.asked.question.digest: number for number, label in enumerate(labels)}
    for group in groups([label.asked for label in labels]):
        evaluator = PathEvaluator(model, [asked.texts for asked in group])
        for place, asked in enumerate(group):
            number = numbers[asked.question.digest]
            yield number, labels[number], evaluator, place
