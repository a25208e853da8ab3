"""What a method's own function gives an engine, before anything is computed with it."""

import torch


def unusable(tensor: torch.Tensor, device: torch.device) -> str | None:
    """What a tensor is instead of a dense one on this device; None where it is that."""
    if tensor.is_nested:
        return "a nested tensor"
    if tensor.layout != torch.strided:
        return "a sparse tensor"
    return None if tensor.device == device else f"a tensor on {tensor.device}, where the model is on {device}"
