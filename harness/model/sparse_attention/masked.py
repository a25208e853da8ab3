"""The product of queries with all keys under a mask of each query's own: it saves nothing."""

from collections.abc import Callable
from typing import Final

import torch
from torch.nn.functional import scaled_dot_product_attention

BLOCK: Final = 256
"""Queries that are multiplied at a time where each head has a mask of its own, which is as large as its scores."""


def masked(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    readable: Callable[[slice], torch.Tensor],
    scale: float,
) -> tuple[torch.Tensor, int]:
    """The product of all queries with all keys, of which each query's own are read: nothing is saved.

    Heads that share keys are queries of one head, so that keys and values are never repeated.

    Args:
        readable: for some of the queries, what they read: bool [rows, 1 or kv heads or heads, queries, keys].

    Returns:
        The output, [rows, heads, queries, head width], and the pairs: all of them.
    """
    rows, heads, queries, width = q.shape
    kv_heads, keys = k.shape[1:3]
    group, outputs = heads // kv_heads, []
    for start in range(0, queries, BLOCK):
        block = slice(start, min(start + BLOCK, queries))
        mask = readable(block)
        by_head = mask.shape[1] == heads
        mask = mask.reshape(rows, kv_heads, -1, keys) if by_head else mask.repeat(1, 1, group, 1)
        packed = q[:, :, block].reshape(rows, kv_heads, -1, width)  # [rows, kv heads, group * queries, width]
        output = scaled_dot_product_attention(packed, k, v, mask, scale=scale)
        outputs.append(output.view(rows, heads, -1, v.shape[-1]))
    return torch.cat(outputs, 2), rows * heads * queries * keys
