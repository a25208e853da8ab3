"""What an entry of the cache is worth to those before it: scores of ``kv-evict``, each [rows, kv heads, entries].

Entries with the highest scores stay. Above every score of the rule itself are those of entries that always stay, the
later ones first, so that a budget smaller than these keeps the latest of them.
"""

from collections.abc import Callable
from typing import Final

import torch
from torch.nn.functional import avg_pool1d

from harness.model.cache.press import Entries
from harness.model.cache.product import Product

POOL: Final = 5
"""Neighbours over which SnapKV's scores are averaged, as in kvpress; the paper names 7 and 5."""
SINKS: Final = 4
"""First entries that expected attention keeps, as they receive attention whatever they say."""
HORIZON: Final = 512
"""Positions to come over which expected attention takes the mean."""

Score = Callable[[Entries, int, int], torch.Tensor]
"""``score(entries, count, window)``: of what will stay, ``count`` entries; ``window`` is the method's parameter."""


def knorm(entries: Entries, count: int, window: int) -> torch.Tensor:
    """Keys of small norm attract attention (Devoto et al., arXiv:2406.11430)."""
    norms: torch.Tensor = entries.keys.norm(dim=-1)
    return -norms


def snapkv(entries: Entries, count: int, window: int) -> torch.Tensor:
    """What the last queries attend to, with its neighbours, and these tokens (Li et al., arXiv:2404.14469)."""
    received = _received(entries, window)
    before = received[..., : max(len(entries) - window, 0)]  # [rows, kv heads, entries before the window]
    if before.shape[-1]:
        before = avg_pool1d(before.flatten(0, 1)[:, None], POOL, stride=1, padding=POOL // 2)
    return _with_last(received, before.view(*received.shape[:2], -1), window)


def h2o(entries: Entries, count: int, window: int) -> torch.Tensor:
    """What received most attention from all of the prompt, and as many last ones (Zhang et al., arXiv:2306.14048)."""
    received = _received(entries, len(entries))
    last = count // 2
    return _with_last(received, received[..., : len(entries) - last], last)


def tova(entries: Entries, count: int, window: int) -> torch.Tensor:
    """What the last query attends to, over all heads together, and its token (Oren et al., arXiv:2401.06104)."""
    received = _received(entries, 1).mean(1, keepdim=True).expand(*entries.keys.shape[:2], -1)
    return _with_last(received, received[..., :-1], 1)


def expected_attention(entries: Entries, count: int, window: int) -> torch.Tensor:
    """What queries to come are expected to take of a value, if they are Gaussian (Devoto et al., arXiv:2510.00636).

    E[exp(q k)] = exp(mean k + k' cov k / 2), normalised over the keys, times the norm of the value.
    """
    queries, product = _queries(entries)
    sinks = min(SINKS, len(entries) - 1)
    tokens = queries[:, :, sinks:] if queries.shape[2] > sinks else queries
    later = product.later(queries, HORIZON)[:, :, -tokens.shape[2] :].float()  # [rows, heads, tokens, width]
    keys = entries.keys[:, :, sinks:].float()  # [rows, kv heads, entries, width]
    heads, groups = later.shape[1], later.shape[1] // keys.shape[1]
    mean = later.mean(2, keepdim=True)
    spread = later - mean
    covariance = spread.mT @ spread / spread.shape[2]  # [rows, heads, width, width]
    keys = keys.repeat_interleave(groups, 1) * product.scale  # [rows, heads, entries, width]
    scores = (mean @ keys.mT)[:, :, 0] + ((keys @ covariance) * keys).sum(-1) / 2
    share = torch.unflatten(scores.softmax(-1), 1, (heads // groups, groups)).mean(2)  # [rows, kv heads, entries]
    share = share * entries.values[:, :, sinks:].float().norm(dim=-1)
    first = share.amax(-1, keepdim=True) + 1 + torch.arange(sinks, 0, -1, device=share.device)
    return torch.cat([first, share], -1)


SCORES: Final[dict[str, Score]] = {
    "snapkv": snapkv,
    "knorm": knorm,
    "h2o": h2o,
    "tova": tova,
    "expected-attention": expected_attention,
}
"""By the name of the scorer."""


def _queries(entries: Entries) -> tuple[torch.Tensor, Product]:
    assert entries.queries is not None
    assert entries.product is not None
    return entries.queries, entries.product


def _received(entries: Entries, last: int) -> torch.Tensor:
    """The mean over a key's heads of what it received from the last queries, [rows, kv heads, entries]."""
    queries, product = _queries(entries)
    received = product.received(queries, entries.keys, last)  # [rows, heads, entries]
    return torch.unflatten(received, 1, (entries.keys.shape[1], -1)).mean(2)


def _with_last(received: torch.Tensor, before: torch.Tensor, last: int) -> torch.Tensor:
    """Scores of all entries, of which the last always stay."""
    count = received.shape[-1] - before.shape[-1]
    top = before.amax(-1, keepdim=True) if before.shape[-1] else received.new_zeros(*received.shape[:2], 1)
    return torch.cat([before, top + 1 + torch.arange(count, device=received.device)], -1)
