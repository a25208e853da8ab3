"""ChunkLLM's chunks, chosen by the model's own queries and keys: a token reads the chunks whose last keys it looks at.

Source: "ChunkLLM: A Lightweight Pluggable Framework for Accelerating LLMs Inference" (arXiv:2510.02361), whose adapters
are trained; here nothing is.
"""

from collections.abc import Collection
from contextlib import AbstractContextManager

import torch

from harness.contract.decoder import Decoder
from harness.model.attention import attending
from harness.model.sparse_attention.masked import masked
from harness.model.sparse_attention.places import at, grouped, own, readable_by, starts


def chunked(
    model: Decoder, layers: Collection[int], *, size: int, count: int, sinks: int, window: int, name: str
) -> AbstractContextManager[None]:
    """Read ``count`` chunks of ``size`` keys, the first keys, the last ones and a token's own chunk, in some layers."""

    def attend(
        layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, scale: float
    ) -> tuple[torch.Tensor, int] | None:
        rows, heads, queries, width = q.shape
        keys = k.shape[2]
        chunks = keys // size
        if chunks <= count:
            return None
        first = starts(mask, rows, q.device)
        last = first[:, None] + torch.arange(1, chunks + 1, device=q.device) * size - 1  # columns, [rows, chunks]
        ends = at(k, last.clamp(max=keys - 1))  # [rows, kv heads, chunks, width]
        products = grouped(q, k.shape[1]) @ ends.mT
        scores = products.view(rows, k.shape[1], -1, queries, chunks).mean(2)  # [rows, kv heads, queries, chunks]
        model.charge("selection", layer=layer, macs=rows * heads * queries * chunks * width, tokens=rows * queries)
        columns = own(queries, keys, q.device)
        place = (columns - first[:, None])[:, None, :, None]  # of each query in its row, [rows, 1, queries, 1]
        read = chosen(scores, place, size=size, count=count, window=window)
        key_place = (torch.arange(keys, device=q.device) - first[:, None])[:, None, None]  # [rows, 1, 1, keys]
        allowed = readable_by(mask, q, k)

        def readable(block: slice) -> torch.Tensor:
            query, chunk = place[:, :, block], key_place.clamp(min=0) // size
            always = (key_place < sinks) | (query - key_place < window) | (chunk == query // size)
            index = chunk.clamp(max=chunks - 1).expand(*read[:, :, block].shape[:3], -1)
            return allowed[:, :, block] & (always | read[:, :, block].gather(-1, index))

        return masked(q, k, v, readable, scale)

    return attending(model, attend, layers, name=name)


def chosen(scores: torch.Tensor, place: torch.Tensor, *, size: int, count: int, window: int) -> torch.Tensor:
    """The best chunks of each query among those that end before its window: bool [rows, kv heads, queries, chunks].

    Args:
        scores: [rows, kv heads, queries, chunks].
        place: of each query in its row, [rows, 1, queries, 1].
    """
    ends = torch.arange(1, scores.shape[-1] + 1, device=scores.device) * size - 1
    before = ends <= place - window
    best = scores.masked_fill(~before, -torch.inf).topk(count, -1)
    there = best.values > -torch.inf
    return torch.zeros_like(scores, dtype=torch.bool).scatter(-1, best.indices, there)
