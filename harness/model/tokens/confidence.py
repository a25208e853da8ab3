"""Confidence that the remaining layers would not change a token's prediction (CALM, arXiv:2207.07061).

All multiplications of a measure are the work of a module that the tracer sees: the language-model head itself, or a
module in ``auxiliaries``.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import nn
from torch.nn.functional import cosine_similarity

from harness.contract.decoder import Decoder
from harness.model.head import FinalHead, frozen_linear


class Confidence(ABC):
    """A measure of confidence; higher means more confident.

    Attributes:
        auxiliaries: the modules that it adds to the model and runs.
    """

    auxiliaries: tuple[nn.Module, ...] = ()

    @abstractmethod
    def __call__(self, layer: int, before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
        """The confidence of some tokens of some rows, [rows, tokens].

        Args:
            layer: index of the dense layer that has just run.
            before: its input, [rows, tokens, width].
            after: its output, of the same shape.
        """


class Saturation(Confidence):
    """The cosine of a layer's output with its input: near 1 where the layer hardly turned the state."""

    def __init__(self, width: int) -> None:
        self.auxiliaries = (_Cosine(width),)

    def __call__(self, layer: int, before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
        """The cosine, -1 to 1."""
        cosine: torch.Tensor = self.auxiliaries[0](before, after)  # [rows, tokens, 1]
        return cosine[..., 0]


class SoftmaxResponse(Confidence):
    """The probability of the most likely token minus that of the second, if the model ended at this layer.

    With a vocabulary, the probabilities are those among its tokens alone, from a head of their rows: cheaper by the
    ratio of the two, and higher than those of the whole vocabulary.

    Args:
        vocabulary: token ids, [tokens].

    Raises:
        UnsupportedModelError: the model projects states between its layers and its head.
    """

    def __init__(self, model: Decoder, vocabulary: torch.Tensor | None = None) -> None:
        self._head = FinalHead(model, vocabulary)
        if vocabulary is not None:
            self.auxiliaries = (self._head.projection,)

    def __call__(self, layer: int, before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
        """The margin, 0 to 1."""
        probabilities = self._head(after).softmax(-1)  # [rows, tokens, vocabulary]
        first, second = probabilities.topk(2, -1).values.unbind(-1)
        return first - second


class Classifier(Confidence):
    """A linear classifier for each layer, trained to tell whether the prediction would still change.

    Args:
        trained: weight [width] and bias [] by layer.
        device: where the states are; trained tensors may be elsewhere, as they are read from a file.
    """

    def __init__(
        self, trained: Mapping[int, tuple[torch.Tensor, torch.Tensor]], device: torch.device | None = None
    ) -> None:
        self._classifiers = {
            layer: frozen_linear(weight[None].to(device), bias[None].to(device))
            for layer, (weight, bias) in trained.items()
        }
        self.auxiliaries = tuple(self._classifiers.values())

    def __call__(self, layer: int, before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
        """The probability that the prediction would not change."""
        classifier = self._classifiers[layer]
        score: torch.Tensor = classifier(after.to(classifier.weight.dtype))  # [rows, tokens, 1]
        return score[..., 0].sigmoid()


class _Cosine(nn.Module):
    """Cosine of two states: three products over the width, a dot product and two norms.

    Attributes:
        is_elementwise: it multiplies without a matrix product, which PyTorch's counter does not see.
    """

    is_elementwise = True

    def __init__(self, width: int) -> None:
        super().__init__()
        self.macs_per_token = 3 * width

    def forward(self, before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
        return cosine_similarity(before.float(), after.float(), dim=-1)[..., None]
