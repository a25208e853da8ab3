"""Weights in a number format as a method's state keeps them: packed codes, scales and zero points, by name."""

from collections.abc import Mapping

import torch

from harness.model.weights.formats import NumberFormat, Quantized


def stored(name: str, weight: Quantized) -> dict[str, torch.Tensor]:
    """The tensors of a weight, under names that begin with the linear layer's own."""
    tensors = {"codes": weight.packed(), "scale": weight.scale, "zero": weight.zero}
    return {f"{name}.{part}": tensor.cpu() for part, tensor in tensors.items() if tensor is not None}


def restored(name: str, number: NumberFormat, inputs: int, tensors: Mapping[str, torch.Tensor]) -> Quantized:
    """The weight [out, in] that was stored under a name."""
    codes, scale = tensors[f"{name}.codes"], tensors[f"{name}.scale"]
    return Quantized.of_packed(number, codes, inputs, scale, tensors.get(f"{name}.zero"))
