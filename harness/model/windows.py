"""Attention within a window and to the first keys, of which nothing else is multiplied."""

from collections.abc import Collection
from contextlib import AbstractContextManager
from typing import Final

import torch
from torch.nn.functional import scaled_dot_product_attention

from harness.contract.decoder import Decoder
from harness.model.attention import attending

SHORTEST: Final = 64
"""Queries of the shortest block: in shorter ones, what is said about a block costs more than the keys that it leaves
out."""


def with_windows(
    model: Decoder, layers: Collection[int], *, window: int, sinks: int, name: str
) -> AbstractContextManager[None]:
    """Run the model with attention that looks back so far in some layers; see ``windowed``."""

    def attend(
        layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, scale: float
    ) -> tuple[torch.Tensor, int] | None:
        return windowed(q, k, v, mask, scale, window=window, sinks=sinks)

    return attending(model, attend, layers, name=name)


def windowed(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor | None,
    scale: float,
    *,
    window: int,
    sinks: int,
) -> tuple[torch.Tensor, int] | None:
    """The product of each query with the last ``window`` keys, its own included, and with a row's first ``sinks``.

    Queries are taken in blocks as long as the window, each of which reads a contiguous part of the keys. Arguments and
    what is returned are those of ``harness.model.attention.Attention``; None where window and sinks hide nothing.
    """
    rows, heads, queries, _ = q.shape
    keys = k.shape[2]
    if keys <= window + sinks:
        return None
    first = torch.zeros(rows, dtype=torch.long, device=k.device)  # the first key of each row, after its padding
    if mask is not None:
        first = mask[:, 0, -1].int().argmax(-1).expand(rows)
    outputs, pairs, length = [], 0, max(window, SHORTEST)
    for start in range(0, queries, length):
        block = slice(start, min(start + length, queries))
        own = torch.arange(
            keys - queries + start, keys - queries + block.stop, device=k.device
        )  # the queries' own keys
        low, high = max(int(own[0]) - window + 1, 0), int(own[-1]) + 1
        columns = torch.arange(low if low > sinks else 0, high, device=k.device).expand(rows, -1)
        key, value = (tensor[:, :, columns[0, 0] : high] for tensor in (k, v))
        apart = sinks if low > sinks else 0  # first keys that are not in the contiguous part
        if apart:
            sink = (first[:, None] + torch.arange(sinks, device=k.device)).clamp(max=keys - 1)  # [rows, sinks]
            columns = torch.cat([sink, columns], 1)  # [rows, sinks + part]
            key, value = (torch.cat([_of_rows(every, sink), part], 2) for every, part in ((k, key), (v, value)))
        readable = None
        if len(own) > 1 or mask is not None:
            query, column = own[:, None], columns[:, None]
            readable = (column <= query) & ((query - column < window) | (column < (first + sinks)[:, None, None]))
            readable[:, :, :apart] &= column[:, :, :apart] < low  # a first key within the part is read once
            readable = readable[:, None]  # [rows, 1, queries, columns]
        if mask is not None:
            part = mask[:, :, block].expand(rows, -1, -1, -1)
            assert readable is not None
            readable = readable & part.gather(-1, columns[:, None, None].expand(-1, *part.shape[1:3], -1))
        outputs.append(_product(q[:, :, block], key, value, readable, scale))
        pairs += rows * heads * len(own) * columns.shape[1]
    return torch.cat(outputs, 2), pairs


def _of_rows(tensor: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Of [rows, heads, keys, width] the keys of each row: [rows, heads, columns, width] of [rows, columns]."""
    return tensor.gather(2, columns[:, None, :, None].expand(-1, tensor.shape[1], -1, tensor.shape[-1]))


def _product(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, scale: float
) -> torch.Tensor:
    """Attention with fewer kv heads than heads, [rows, heads, queries, head width]."""
    groups = q.shape[1] // k.shape[1]
    if q.shape[2] == 1 and (mask is None or mask.shape[1] == 1):  # the heads of a group are queries of one head
        packed = q.reshape(len(q), -1, groups, q.shape[-1])
        return scaled_dot_product_attention(packed, k, v, mask, scale=scale).reshape(*q.shape[:3], -1)
    k, v = (tensor.repeat_interleave(groups, 1) for tensor in (k, v))
    return scaled_dot_product_attention(q, k, v, mask, scale=scale)
