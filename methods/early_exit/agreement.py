"""What the whole model predicts on calibration text, and what predicts early that nothing will change."""

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from harness.contract.decoder import Row
from harness.core.errors import MethodError
from harness.model.head import FinalHead
from harness.model.tokens.exits import layer_inputs

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from harness.contract.decoder import Decoder

BATCH = 8
L2 = 1e-3


@dataclass(frozen=True)
class Batch:
    """Calibration windows and what the whole model predicts in them.

    Attributes:
        ids: shape [windows, tokens]; the first half of each window is prompt.
        predicted: the likeliest token after each, of the same shape.
    """

    ids: torch.Tensor
    predicted: torch.Tensor


@torch.no_grad()
def observed(model: "Decoder", windows: "Sequence[torch.Tensor]") -> list[Batch]:
    """Run the whole model over windows of one length."""
    joined = [torch.cat(list(windows[start : start + BATCH])) for start in range(0, len(windows), BATCH)]
    return [Batch(ids, _logits(model, ids).argmax(-1)) for ids in joined]


@torch.no_grad()
def inconsistency(model: "Decoder", batches: "Iterable[Batch]", *, with_text: bool) -> list[float]:
    """How far the attached model departs from the whole one in the second half of each window, from 0 to 1.

    Args:
        with_text: measure the drop in the share of the text's own tokens that are predicted, 0 where it rises; else
            the share of tokens that are predicted differently.
    """
    risks: list[float] = []
    for batch in batches:
        rows, length = batch.ids.shape
        prompt = length // 2
        with model.serving([Row("calibration", row, (0,), prompt, length) for row in range(rows)], "score"):
            predicted = _logits(model, batch.ids).argmax(-1)[:, prompt - 1 : -1]  # [windows, length - prompt]
        whole, text = batch.predicted[:, prompt - 1 : -1], batch.ids[:, prompt:]  # each [windows, length - prompt]
        if with_text:
            risk = ((whole == text).float().mean(1) - (predicted == text).float().mean(1)).clamp(min=0)
        else:
            risk = (predicted != whole).float().mean(1)
        risks += risk.tolist()
    return risks


def frequent(model: "Decoder", batches: "Iterable[Batch]", count: int) -> torch.Tensor:
    """The tokens that the model predicts most often, ties broken by the smaller id; ids in order, shape [count]."""
    predicted = torch.cat([batch.predicted.flatten() for batch in batches])
    counts = torch.bincount(predicted, minlength=model.module.get_output_embeddings().weight.shape[0])
    return counts.sort(descending=True, stable=True).indices[:count].sort().values


@torch.no_grad()
def train_classifiers(
    model: "Decoder", batches: "Sequence[Batch]", layers: "Sequence[int]"
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """For each of the layers, weight [width] and bias of a logistic regression on its output.

    Its target is whether the model's prediction from that output is the one that it ends with. Trained in double
    precision by L-BFGS from zero, on standardised states, with a small L2 penalty: the same text gives the same.

    Raises:
        MethodError: states are not finite.
    """
    head = FinalHead(model)
    outputs: dict[int, list[torch.Tensor]] = {layer: [] for layer in layers}
    targets: dict[int, list[torch.Tensor]] = {layer: [] for layer in layers}
    for batch in batches:
        entering = layer_inputs(model, batch.ids)
        for (layer, _), (_, after) in pairwise(entering.items()):
            if layer in outputs:
                outputs[layer].append(after.flatten(0, 1))  # [windows * tokens, width]
                targets[layer].append((head(after).argmax(-1) == batch.predicted).flatten())
    return [
        _logistic(torch.cat(outputs[layer]).double(), torch.cat(targets[layer]).double(), layer) for layer in layers
    ]


@torch.enable_grad()
def _logistic(states: torch.Tensor, target: torch.Tensor, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
    if not states.isfinite().all():
        raise MethodError(f"the states after layer {layer} are not finite, so no classifier can be trained on them")
    mean, scale = states.mean(0), states.std(0).clamp(min=1e-6)
    inputs = (states - mean) / scale  # [tokens, width]
    parameters = torch.zeros(states.shape[1] + 1, dtype=torch.double, device=states.device, requires_grad=True)
    optimizer = torch.optim.LBFGS([parameters], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = binary_cross_entropy_with_logits(inputs @ parameters[:-1] + parameters[-1], target)
        value = value + L2 * parameters.square().sum()
        value.backward()  # type: ignore[no-untyped-call] # torch's own annotations
        return value

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    weight = parameters.detach()[:-1] / scale  # of the states as they are: standardising folded in
    return weight.float(), (parameters.detach()[-1] - weight @ mean).float()


def _logits(model: "Decoder", ids: torch.Tensor) -> torch.Tensor:
    logits: torch.Tensor = model.module(input_ids=ids, use_cache=False).logits
    return logits
