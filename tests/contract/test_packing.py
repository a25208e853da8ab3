"""Stored tensors take the bits that their values need, and come back bit for bit."""

import math
from pathlib import Path

import pytest
import torch

from harness.contract.prepared import Prepared

NAN_WITH_PAYLOAD = torch.tensor([0x7FC00001], dtype=torch.int32).view(torch.float32)
CASES = {
    "mask": (torch.rand(13, 7) > 0.5, 1 / 8),
    "no values": (torch.zeros(0, 4, dtype=torch.bool), 0),
    "one truth": (torch.tensor(True), 1),
    "bfloat16 in float32": (torch.randn(64).bfloat16().float(), 2),
    "float16 in float32": (torch.tensor([0.1, 1e-7, 60000.0]).half().float(), 2),
    "float32": (torch.randn(64), 4),
    "float32 in float64": (torch.randn(64).double(), 4),
    "signed zeros and infinities": (torch.tensor([0.0, -0.0, math.inf, -math.inf]), 2),
    "a NaN of its own": (NAN_WITH_PAYLOAD, 4),
    "small counts": (torch.arange(200), 1),
    "small numbers of both signs": (torch.arange(-100, 100), 1),
    "indices": (torch.tensor([0, 70_000]), 4),
    "large indices": (torch.tensor([0, 1 << 40]), 8),
    "bfloat16": (torch.randn(8).bfloat16(), 2),
}


@pytest.mark.parametrize("name", CASES)
def test_a_tensor_comes_back_bit_for_bit_from_few_bits(name: str, tmp_path: Path) -> None:
    tensor, size = CASES[name]
    Prepared({"x": tensor, "y": torch.zeros(3, dtype=torch.int8)}).save(tmp_path / "state", {})
    found = Prepared.load(tmp_path / "state", {}).tensors["x"]
    assert (found.dtype, found.shape) == (tensor.dtype, tensor.shape)
    assert torch.equal(found.reshape(-1).view(torch.uint8), tensor.contiguous().reshape(-1).view(torch.uint8))
    overhead = (tmp_path / "state" / "state.safetensors").stat().st_size
    Prepared({"x": tensor[:0] if tensor.dim() else tensor, "y": torch.zeros(3, dtype=torch.int8)}).save(
        tmp_path / "empty", {}
    )
    assert overhead - (tmp_path / "empty" / "state.safetensors").stat().st_size <= size * tensor.numel() + 16


def test_a_loaded_tensor_is_aligned_as_a_made_one_is(tmp_path: Path) -> None:
    """Products of unaligned memory take other kernels, with other bits."""
    Prepared({f"x{index}": torch.randn(index + 1) for index in range(9)}).save(tmp_path / "state", {})
    assert all(x.data_ptr() % 64 == 0 for x in Prepared.load(tmp_path / "state", {}).tensors.values())
