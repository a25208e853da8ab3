"""Tensors in the bits that their values need: eight truths to a byte, small numbers in small types. Nothing is lost."""

from typing import Any

import numpy as np
import torch

_SMALLER = {
    torch.float64: (torch.bfloat16, torch.float16, torch.float32),
    torch.float32: (torch.bfloat16, torch.float16),
    torch.int64: (torch.uint8, torch.int8, torch.int16, torch.int32),
    torch.int32: (torch.uint8, torch.int8, torch.int16),
}
_BITS = {torch.float64: torch.int64, torch.float32: torch.int32}


def packed(tensor: torch.Tensor) -> tuple[torch.Tensor, dict[str, Any] | None]:
    """The tensor as it is stored, and how to get it back; None where it is stored as it is."""
    if tensor.dtype is torch.bool:
        bits = torch.from_numpy(np.packbits(tensor.cpu().numpy()))
        return bits, {"dtype": "bool", "shape": list(tensor.shape)}
    for dtype in _SMALLER.get(tensor.dtype, ()):
        small = tensor.to(dtype)
        if _same(small.to(tensor.dtype), tensor):
            return small, {"dtype": str(tensor.dtype).removeprefix("torch.")}
    return tensor, None


def unpacked(tensor: torch.Tensor, how: dict[str, Any] | None) -> torch.Tensor:
    """What was packed, in memory of its own.

    A file's tensors begin wherever they lie in it; products of unaligned memory take other kernels, with other bits.
    """
    if how is None:
        return tensor.clone()
    if how["dtype"] == "bool":
        shape = torch.Size(how["shape"])
        return torch.from_numpy(np.unpackbits(tensor.numpy(), count=shape.numel()).astype(bool)).reshape(shape)
    dtype = getattr(torch, how["dtype"])
    if dtype not in _SMALLER:
        raise ValueError(f"a tensor of type {how['dtype']!r} is never packed")
    return tensor.to(dtype)


def _same(one: torch.Tensor, another: torch.Tensor) -> bool:
    """Bit for bit: zeros have signs, and NaN is NaN."""
    bits = _BITS.get(one.dtype)
    return torch.equal(one, another) if bits is None else torch.equal(one.view(bits), another.view(bits))
