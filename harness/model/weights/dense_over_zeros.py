"""The dense product over weights with zeros among them."""

import torch
from torch.nn.functional import linear

from harness.contract.facts import Savings
from harness.model.weights.linear import ReplacementLayer

DENSE_PRODUCT = "dense product over zeros"


class DenseOverZeros(ReplacementLayer):
    """The dense product over all weights, where no kernel can skip the zeros."""

    kernel, savings = DENSE_PRODUCT, Savings.SIMULATED
    weight: torch.Tensor
    bias: torch.Tensor | None

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__()
        self.register_buffer("weight", weight.contiguous())
        self.register_buffer("bias", bias)
        self.macs_per_token = self.weight_count = weight.numel()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """From [..., in] to [..., out]."""
        return linear(x, self.weight, self.bias)
