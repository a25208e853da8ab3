"""Combiner's fixed pattern: a token reads its own block key by key, and each block before it as one key and value.

    logit of a block = q . mean(k) + log r,    value = mean(v)

Without log r, a block of r keys would weigh no more than one key. Blocks are counted from a row's first token. Queries
are taken a few blocks at a time, and multiplied with the summaries before them and their own keys, which lie together.

Source: "Combiner: Full Attention Transformer with Sparse Computation Cost" (arXiv:2107.05768), and its
authors' code, approx_attention.py, sqrt_fixed_full.
"""

import math
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Final

import torch
from torch.nn.functional import scaled_dot_product_attention

from harness.contract.decoder import Decoder
from harness.model.attention import attending
from harness.model.sparse_attention.blocks import Blocks
from harness.model.sparse_attention.places import starts

SHORTEST: Final = 64
"""Queries that are taken together at least: in fewer, what is said about them costs more than the keys left out."""


def means(k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Means of keys and values by block, [rows, kv heads, blocks, width], of [rows, kv heads, blocks, size, width]."""
    return k.mean(3), v.mean(3)


@contextmanager
def summarized(model: Decoder, layers: Collection[int], *, size: int, name: str) -> Iterator[None]:
    """Read blocks of ``size`` keys before a token's own as one key each, in some layers."""
    blocks = Blocks(size, means)

    def attend(
        layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, scale: float
    ) -> tuple[torch.Tensor, int] | None:
        rows, heads, queries, _ = q.shape
        keys = k.shape[2]
        if keys <= size or size == 1:
            return None
        first = starts(mask, rows, q.device)
        summaries = blocks.of(layer, k, v, first)
        output, pairs = q.new_zeros(rows, heads, queries, v.shape[-1]), 0
        begins = sorted(set(first.tolist()))
        for start in begins:
            group = (first == start).nonzero()[:, 0] if len(begins) > 1 else slice(None)
            real = slice(max(start - keys + queries, 0), None)  # queries that are none of padding
            whole = tuple(each[group] for each in summaries)
            parts = q[group][:, :, real], k[group][:, :, start:], v[group][:, :, start:]
            output[group, :, real], multiplied = product(*parts, whole, size, scale)
            pairs += multiplied
        return output, pairs

    with blocks.kept(model), attending(model, attend, layers, name=name):
        yield


def product(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, summaries: tuple[torch.Tensor, ...], size: int, scale: float
) -> tuple[torch.Tensor, int]:
    """Queries with their own block's keys and with the summaries of the blocks before it, and the pairs.

    Args:
        q, k, v: of rows without padding, [rows, heads, queries, width] and [rows, kv heads, keys, width].
        summaries: of all full blocks at least, [rows, kv heads, blocks, width] of keys and of values.
    """
    rows, heads, queries, width = q.shape
    kv_heads, keys = k.shape[1:3]
    # a few blocks in one product multiply more than each for itself, which is worth it in a long text alone
    step = -(-SHORTEST // size) * size if keys >= 4 * SHORTEST else size
    outputs, pairs, low = [], 0, keys - queries
    while low < keys:  # places of queries that are multiplied together
        high = min(low // step * step + step, keys)
        begin, before = low // size * size, (high - 1) // size  # the first key of these blocks; blocks before the last
        key, value = (
            torch.cat([mean[:, :, :before], each[:, :, begin:high]], 2)
            for mean, each in zip(summaries, (k, v), strict=True)
        )
        place = torch.arange(low, high, device=q.device)[:, None]
        single = torch.arange(begin, high, device=q.device)
        whole = torch.arange(before, device=q.device) < place // size  # [queries, before]
        own = (single // size == place // size) & (single <= place)  # [queries, keys of these blocks]
        bias = torch.where(torch.cat([whole, own], 1), 0.0, -torch.inf).to(q.dtype)
        bias[:, :before] += math.log(size)
        packed = q[:, :, low - keys + queries : high - keys + queries].reshape(rows, kv_heads, -1, width)
        bias = bias.repeat(heads // kv_heads, 1)  # [group * queries, before + keys of these blocks]
        output = scaled_dot_product_attention(packed, key, value, bias, scale=scale)
        outputs.append(output.view(rows, heads, high - low, -1))
        pairs += rows * heads * (high - low) * key.shape[2]
        low = high
    return torch.cat(outputs, 2), pairs
