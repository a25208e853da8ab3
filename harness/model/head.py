"""From the output of some layer to logits, as at the end of the model."""

from typing import Any

import torch
from torch import nn

from harness.contract.decoder import Decoder
from harness.core.errors import UnsupportedModelError


class FinalHead:
    """Final norm, language-model head, and the scale (Cohere, Granite) or soft cap (Gemma 2) of models that have one.

    Attributes:
        projection: the head: the model's own, or one of the rows of some tokens, cheaper by the ratio of the two.

    Args:
        vocabulary: ids of the tokens to give logits for, [tokens]; None for all of them.

    Raises:
        UnsupportedModelError: the model projects states between its layers and its head.
    """

    def __init__(self, model: Decoder, vocabulary: torch.Tensor | None = None) -> None:
        if getattr(model.anatomy.parent, "project_out", None) is not None:
            name = type(model.module).__name__
            raise UnsupportedModelError(f"{name}: it has a projection between its layers and its head (project_out)")
        self._norm = model.anatomy.final_norm
        self._scale = _scale(model.config)
        self._cap: float | None = getattr(model.config, "final_logit_softcapping", None)
        self.projection = model.anatomy.head
        if vocabulary is not None:
            self.projection = _rows_of(model.anatomy.head, vocabulary)

    def __call__(self, states: torch.Tensor) -> torch.Tensor:
        """Logits [..., vocabulary] in float32 of a layer's outputs [..., width]."""
        logits: torch.Tensor = self.projection(self._norm(states)).float() * self._scale
        return logits if self._cap is None else self._cap * torch.tanh(logits / self._cap)


def _scale(config: Any) -> float:
    """What the model multiplies its logits by; HyperCLOVA X calls so what Granite and MiniCPM divide by."""
    scaling = getattr(config, "logits_scaling", None) or 1.0
    factor = scaling if config.model_type == "hyperclovax" else 1 / scaling
    return float(factor * (getattr(config, "logit_scale", None) or 1.0))


def frozen_linear(weight: torch.Tensor, bias: torch.Tensor | None) -> nn.Linear:
    """A linear layer of these tensors, [out, in] and [out], which are shared and not trained."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    tensors = {"weight": weight.detach()} | ({} if bias is None else {"bias": bias.detach()})
    layer.load_state_dict(tensors, assign=True)
    return layer.requires_grad_(False)


def _rows_of(head: Any, vocabulary: torch.Tensor) -> nn.Linear:
    bias, vocabulary = getattr(head, "bias", None), vocabulary.to(head.weight.device)
    return frozen_linear(head.weight[vocabulary], None if bias is None else bias[vocabulary])
