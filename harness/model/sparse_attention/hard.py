"""Hard attention: each query reads the keys of its highest scores alone.

Source: AxFormer (arXiv:2010.03688).
"""

import math
from collections.abc import Collection
from contextlib import AbstractContextManager

import torch

from harness.contract.decoder import Decoder
from harness.model.attention import attending
from harness.model.sparse_attention.masked import BLOCK
from harness.model.sparse_attention.places import grouped, readable_by


def hardened(
    model: Decoder, layers: Collection[int], *, count: int, share: float, name: str
) -> AbstractContextManager[None]:
    """Let each query read its best keys alone, in some layers: ``count``, or a share of those that it may read."""

    def attend(
        layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, scale: float
    ) -> tuple[torch.Tensor, int] | None:
        if k.shape[2] <= count or share == 1:
            return None
        return hard(q, k, v, readable_by(mask, q, k), scale, count=count, share=share)

    return attending(model, attend, layers, name=name)


def hard(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, readable: torch.Tensor, scale: float, *, count: int, share: float
) -> tuple[torch.Tensor, int]:
    """The product of each query with its best keys, and the pairs: all of them, since all scores are computed.

    Keys whose scores are alike to the last bit are read together or not at all, where that makes more of them.

    Args:
        readable: bool [rows, 1, queries, keys].
        count: keys that a query reads at least.
        share: of the keys that a query may read, rounded up.
    """
    rows, heads, queries, _ = q.shape
    kv_heads, keys = k.shape[1:3]
    group, outputs = heads // kv_heads, []
    for start in range(0, queries, BLOCK):
        block = slice(start, min(start + BLOCK, queries))
        allowed = readable[:, :, block]  # [rows, 1, queries of the block, keys]
        most = (allowed.sum(-1) * share).ceil().long().clamp(min=count, max=keys)  # [rows, 1, queries]
        scores = grouped(q[:, :, block], kv_heads) @ k.mT * scale  # [rows, kv heads, group * queries, keys]
        scores = scores.masked_fill(~allowed.repeat(1, 1, group, 1), -torch.inf)
        best = scores.topk(int(most.max()), -1).values
        last = best.gather(-1, most.repeat(1, 1, group)[..., None].expand(-1, kv_heads, -1, -1) - 1)
        p = scores.masked_fill(scores < last, -math.inf).softmax(-1).nan_to_num()  # a row of padding reads nothing
        outputs.append((p.to(v.dtype) @ v).view(rows, heads, -1, v.shape[-1]))
    return torch.cat(outputs, 2), rows * heads * queries * keys
