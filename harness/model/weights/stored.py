"""Linear layers as they are written: a weight that becomes codes when a file asks for them, one layer at a time."""

from collections.abc import Callable
from functools import partial

import torch

from harness.contract.facts import Savings
from harness.model.weights.computations import STORED, Computation
from harness.model.weights.formats import NumberFormat, Quantized, quantize
from harness.model.weights.linear import ReplacementLayer


class Stored(ReplacementLayer):
    """A linear layer in a number format, which is written and not run. It keeps no weight beside the model's own.

    Attributes:
        number: the format of its weight.
        quantized: gives its weight [out, in] in codes.
        activations: the format that activations are rounded to as they come, with a scale for each token; else None.
        bias: of shape [out], which a method may have changed with the weight; None: there is none.
    """

    kernel, savings = STORED, Savings.SIMULATED

    def __init__(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        number: NumberFormat,
        quantized: Callable[[], Quantized],
        activations: NumberFormat | None,
    ) -> None:
        super().__init__()
        self.macs_per_token = self.weight_count = weight.numel()
        self.shape = tuple(weight.shape)
        self.number, self.quantized, self.activations = number, quantized, activations
        self.bias = None if bias is None else bias.detach()  # a plain attribute: it is written by the module's name


def stored(
    number: NumberFormat, activations: NumberFormat | None = None, codes: Callable[[], Quantized] | None = None
) -> Computation:
    """What is written of a linear layer in a number format.

    Args:
        codes: gives the weight in codes, where a method chose them otherwise than by rounding to nearest.
    """

    def make(weight: torch.Tensor, bias: torch.Tensor | None) -> ReplacementLayer:
        return Stored(weight, bias, number, codes or partial(quantize, weight, number), activations)

    return Computation(STORED, make)
