"""How sure a token is after a layer that the layers behind it would change nothing (CALM, arXiv:2207.07061).

Whatever a measure multiplies is the work of a module that the tracer sees: the language-model head itself, or a
module in ``auxiliaries``.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cosine_similarity

from harness.contract.decoder import Decoder
from harness.core.errors import UnsupportedModelError


class Confidence(ABC):
    """A measure of confidence, larger where a token is surer.

    Attributes:
        auxiliaries: the modules that it adds to the model and runs.
    """

    auxiliaries: tuple[nn.Module, ...] = ()

    @abstractmethod
    def __call__(self, layer: int, before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
        """The confidence of some tokens of some rows, shape [rows, tokens].

        Args:
            layer: index of the dense layer that has just run.
            before: its input, shape [rows, tokens, width].
            after: its output, of the same shape.
        """


class Saturation(Confidence):
    """The cosine of a layer's output with its input: near 1 where the layer turned the state little."""

    def __init__(self, width: int) -> None:
        self.auxiliaries = (_Cosine(width),)

    def __call__(self, layer: int, before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
        """The cosine."""
        cosine: torch.Tensor = self.auxiliaries[0](before, after)
        return cosine[..., 0]


class SoftmaxResponse(Confidence):
    """The probability of the likeliest token less that of the next, were the model to end here.

    With a vocabulary the probabilities are those among its tokens alone, from a head of their rows: cheaper by the
    ratio of the two, and larger than those of the whole vocabulary.
    """

    def __init__(self, model: Decoder, vocabulary: torch.Tensor | None = None) -> None:
        if getattr(model.anatomy.parent, "project_out", None) is not None:
            name = type(model.module).__name__
            raise UnsupportedModelError(f"{name}: it has a projection between its layers and its head (project_out)")
        self._norm: nn.Module = model.anatomy.final_norm
        self._head: nn.Module = model.anatomy.head
        self._cap: float | None = getattr(model.config, "final_logit_softcapping", None)
        if vocabulary is not None:
            self._head = _rows_of(model.anatomy.head, vocabulary.to(model.device))
            self.auxiliaries = (self._head,)

    def __call__(self, layer: int, before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
        """The margin."""
        first, second = self.logits(after).softmax(-1).topk(2, -1).values.unbind(-1)
        return first - second

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        """The head's logits of some layer's output, in float32."""
        logits: torch.Tensor = self._head(self._norm(states)).float()
        return logits if self._cap is None else self._cap * torch.tanh(logits / self._cap)


class Classifier(Confidence):
    """A linear classifier for each layer, trained to tell whether the prediction would still change.

    It is made from the weight [width] and the bias of each layer.
    """

    def __init__(self, trained: Mapping[int, tuple[torch.Tensor, torch.Tensor]]) -> None:
        self._classifiers = {layer: _linear(weight[None], bias[None]) for layer, (weight, bias) in trained.items()}
        self.auxiliaries = tuple(self._classifiers.values())

    def __call__(self, layer: int, before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
        """The probability that the prediction would not change."""
        classifier = self._classifiers[layer]
        score: torch.Tensor = classifier(after.to(classifier.weight.dtype))
        return score[..., 0].sigmoid()


class _Cosine(nn.Module):
    """Cosine of two states: three products over the width, a dot product and two norms."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.macs_per_token = 3 * width

    def forward(self, before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
        return cosine_similarity(before.float(), after.float(), dim=-1)[..., None]


def _rows_of(head: Any, vocabulary: torch.Tensor) -> nn.Linear:
    bias = getattr(head, "bias", None)
    return _linear(head.weight[vocabulary], None if bias is None else bias[vocabulary])


def _linear(weight: torch.Tensor, bias: torch.Tensor | None) -> nn.Linear:
    made = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    tensors = {"weight": weight.detach()} | ({} if bias is None else {"bias": bias.detach()})
    made.load_state_dict(tensors, assign=True)
    return made.requires_grad_(False)
