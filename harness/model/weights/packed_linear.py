"""Linear layers whose weights alone are in a number format: the activations stay as they are.

A product over packed weights reads fewer bytes, which is what one token waits for; it multiplies no less. Without one,
the values that the codes stand for are multiplied as floats: the same answers, nothing saved.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch.nn.functional import linear

from harness.contract.facts import Savings
from harness.model.weights.computations import Layer
from harness.model.weights.formats import NumberFormat, Quantized
from harness.model.weights.linear import ReplacementLayer

Packed = tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class PackedProduct:
    """A product of activations with packed weights.

    Attributes:
        name: what it is called in the record, beside the format.
        device: the kind of device that it is for.
        takes: whether it is for a format.
        refuses: why it cannot take the inputs and outputs, the type or the groups of a layer; None where it can.
        pack: from a weight in a format, and the type of the activations, to the tensors that ``product`` takes.
        product: from activations [tokens, in], these tensors and the inputs of a group to [tokens, out], all in the
            type of the activations.
        capability: the compute capability that a card needs.
        multiplies_floats: the codes become floats, part by part, whenever it runs.
    """

    name: str
    device: Literal["cpu", "cuda"]
    takes: Callable[[NumberFormat], bool]
    refuses: Callable[[NumberFormat, Layer], str | None]
    pack: Callable[[Quantized, torch.dtype], Packed]
    product: Callable[[torch.Tensor, Packed, int], torch.Tensor]
    capability: tuple[int, int] = (0, 0)
    multiplies_floats: bool = False

    def label(self, number: NumberFormat) -> str:
        """What the product over weights in a format is called in the record."""
        return f"{self.name}, {number.label}"


class PackedLinear(ReplacementLayer):
    """A linear layer over packed weights; its bias is of shape [out]."""

    bias: torch.Tensor | None

    def __init__(
        self, weight: Quantized, bias: torch.Tensor | None, dtype: torch.dtype, product: PackedProduct
    ) -> None:
        super().__init__()
        out, inputs = weight.codes.shape
        self._product, self._group = product.product, inputs // weight.scale.shape[1]
        packed = product.pack(weight, dtype)
        self._names = [f"packed_{index}" for index in range(len(packed))]
        for name, tensor in zip(self._names, packed, strict=True):
            self.register_buffer(name, tensor)
        self.register_buffer("bias", bias)
        self.kernel, self.savings = product.label(weight.format), Savings.REAL
        self.macs_per_token = self.weight_count = out * inputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """From [..., in] to [..., out], in the type of the input."""
        tokens = x.reshape(-1, x.shape[-1])  # [tokens, in]
        y = self._product(tokens, tuple(getattr(self, name) for name in self._names), self._group)  # [tokens, out]
        if self.bias is not None:
            y = y + self.bias
        return y.reshape(*x.shape[:-1], y.shape[-1])


class DenseOverValues(ReplacementLayer):
    """The dense product over the values that codes stand for, in the type of the model."""

    savings = Savings.SIMULATED
    weight: torch.Tensor
    bias: torch.Tensor | None

    def __init__(self, weight: Quantized, bias: torch.Tensor | None, dtype: torch.dtype) -> None:
        super().__init__()
        self.register_buffer("weight", weight.dequantized().to(dtype))
        self.register_buffer("bias", bias)
        self.kernel, self.format_bytes = dense_label(weight.format), weight.nbytes
        self.macs_per_token = self.weight_count = weight.codes.numel()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """From [..., in] to [..., out]."""
        return linear(x, self.weight, self.bias)


def dense_label(number: NumberFormat) -> str:
    """What the dense product over a format's values is called in the record."""
    return f"dense product over {number.label} weights"
