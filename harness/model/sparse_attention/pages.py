"""Quest's pages: the least and the largest of each channel of a page's keys bound what a query can find there.

    score of a page = sum_d max(q_d least_d, q_d largest_d) >= q . k for each of its keys

Source: "Quest: Query-Aware Sparsity for Efficient Long-Context LLM Inference" (arXiv:2406.10774), and its
authors' code.
"""

from collections.abc import Collection, Iterator
from contextlib import contextmanager

import torch

from harness.contract.decoder import Decoder
from harness.model.attention import attending
from harness.model.sparse_attention.blocks import Blocks
from harness.model.sparse_attention.lists import over_lists, unable
from harness.model.sparse_attention.places import grouped, is_decoding, own, starts


@contextmanager
def paged(model: Decoder, layers: Collection[int], *, budget: int, size: int, name: str) -> Iterator[None]:
    """Let tokens that follow a prompt read ``budget`` keys in pages of ``size``, in some layers."""
    pages = Blocks(size, bounds)
    unable(str(model.device), model.module.dtype)  # compiled and checked now, and in no forward that is timed

    def attend(
        layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, scale: float
    ) -> tuple[torch.Tensor, int] | None:
        rows, heads, queries, width = q.shape
        keys = k.shape[2]
        if keys <= budget or not is_decoding(model, queries, keys):
            return None
        first = starts(mask, rows, q.device)
        least, largest = pages.of(layer, k, v, first)
        by_page = scores(q, least, largest)  # [rows, kv heads, queries, pages]
        macs = 2 * rows * heads * queries * least.shape[2] * width
        model.charge("selection", layer=layer, macs=macs, tokens=rows * queries)
        lists = chosen(by_page, first, own(queries, keys, q.device), size=size, count=budget // size)
        return over_lists(q, k, v, lists, scale)

    with pages.kept(model), attending(model, attend, layers, name=name):
        yield


def bounds(k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Of each page's keys, [rows, kv heads, pages, size, width], the least and the largest, twice [..., width]."""
    return k.amin(3), k.amax(3)


def scores(q: torch.Tensor, least: torch.Tensor, largest: torch.Tensor) -> torch.Tensor:
    """Scores of pages by kv head, [rows, kv heads, queries, pages]: the mean over the heads that share its keys.

    Args:
        q: queries, [rows, heads, queries, width].
        least, largest: ``bounds``, [rows, kv heads, pages, width].
    """
    packed = grouped(q, least.shape[1])  # [rows, kv heads, group * queries, width]
    by_head = packed.clamp(min=0) @ largest.mT + packed.clamp(max=0) @ least.mT
    rows, kv_heads, pages = least.shape[:3]
    return by_head.reshape(rows, kv_heads, q.shape[1] // kv_heads, q.shape[2], pages).mean(2)


def chosen(scores: torch.Tensor, first: torch.Tensor, own: torch.Tensor, *, size: int, count: int) -> torch.Tensor:
    """Places of the keys of the best pages and of the query's own page, up to the query: a list for each query.

    Args:
        scores: of full pages, [rows, kv heads, queries, pages].
        first: the column of each row's first token, [rows].
        own: the column of each query's own key, [queries].
        size: keys of a page.
        count: pages of a list, the query's own included.

    Returns:
        [rows, kv heads, queries, count * size], ascending but for gaps, -1 where there is no key.
    """
    place = (own - first[:, None])[:, None, :, None]  # of each query in its row, [rows, 1, queries, 1]
    page = torch.arange(scores.shape[-1], device=scores.device)
    before = page < place.clamp(min=0) // size  # [rows, 1, queries, pages]
    best = scores.masked_fill(~before, -torch.inf).topk(min(count - 1, len(page)), -1)
    pages = best.indices.masked_fill(best.values == -torch.inf, -1).sort(-1).values
    last = (place.clamp(min=0) // size).expand(-1, scores.shape[1], -1, -1)
    pages = torch.cat([pages, last], -1)  # [rows, kv heads, queries, count]
    places = (pages[..., None] * size + torch.arange(size, device=scores.device)).flatten(3)
    there = (pages >= 0).repeat_interleave(size, -1) & (places <= place)
    return torch.where(there, places + first[:, None, None, None], -1)
