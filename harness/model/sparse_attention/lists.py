"""Products of queries with lists of keys: on a kernel in C, or under a mask, which saves nothing."""

import torch

from harness.core import cpu
from harness.model.sparse_attention import gather_kernels
from harness.model.sparse_attention.masked import masked


def over_lists(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, lists: torch.Tensor, scale: float
) -> tuple[torch.Tensor, int]:
    """The product of each query with the keys of its list, and the pairs: on a kernel in C where it runs, else masked.

    Args:
        lists: places of keys, int [rows, 1 or kv heads, queries, kept], each at most once; below 0 where there is none.
    """
    if unable(str(q.device), q.dtype) is None:
        level = gather_kernels.best()
        y: torch.Tensor = torch.ops.harness.gather_attention(q, k, v, lists.int(), scale, level)
        return y, q.shape[:3].numel() * lists.shape[-1]
    keys = k.shape[2]
    columns = torch.where(lists < 0, keys, lists).long()
    readable = torch.zeros(*lists.shape[:3], keys + 1, dtype=torch.bool, device=q.device)
    readable = readable.scatter_(-1, columns, value=True)[..., :keys]  # [rows, 1 or kv heads, queries, keys]
    return masked(q, k, v, lambda block: readable[:, :, block], scale)


def unable(device: str, dtype: torch.dtype) -> str | None:
    """Why lists of keys are not multiplied by the kernel in C, in words; None where they are."""
    if not device.startswith("cpu"):
        return f"its kernel is for a CPU, and the model is on {device}"
    if dtype != torch.float32:
        return f"its kernel is for float32, and the model is in {str(dtype).removeprefix('torch.')}"
    best = gather_kernels.best()
    return best if isinstance(best, str) else None


def kernel_name() -> str:
    """The kernel that is taken, as the record calls it."""
    best = gather_kernels.best()
    assert isinstance(best, int)
    name = cpu.KERNEL_SETS[best]
    return f"gather attention on {'plain C' if name == 'plain' else name}"
