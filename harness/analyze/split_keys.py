"""A decode step's attention by a schedule: softmax over parts of the keys, put together exactly, and what it saves.

With m the largest score of a part, l the sum of e^(score - m) and o the sum of e^(score - m) v, parts merge as
m = max m_c, l = sum l_c e^(m_c - m), o = sum o_c e^(m_c - m); the output is o / l (arXiv:2405.10480, equations 3-6).
"""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch

from harness.analyze.schedule import Piece, Schedule, idle, stream_k, whole_heads
from harness.core.progress import Progress


@dataclass(frozen=True)
class Heads:
    """What a decode step of one sequence multiplies in a layer: key-value heads, queries for each, and their width."""

    kv_heads: int
    group: int
    width: int


@dataclass(frozen=True)
class SplitTimes:
    """Milliseconds of a decode step's attention in one layer at a length, medians over rounds.

    Attributes:
        sdpa: by torch's own attention on as many threads.
        whole, split: by the schedules, with their idle shares.
        difference: largest absolute difference of the split's output to whole attention in float64.
    """

    keys: int
    sdpa: float
    whole: float
    split: float
    idle_whole: float
    idle_split: float
    difference: float

    @property
    def gain(self) -> float:
        """How many times faster the split is than whole heads."""
        return self.whole / self.split


Partial = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Of a part of the keys: largest score and sum of exponentials, [group, 1]; weighted values, [group, width]."""


def attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, schedule: Schedule, pool: ThreadPoolExecutor | None = None
) -> torch.Tensor:
    """Attention of one position over all keys, [kv heads, group, width].

    Args:
        q: queries, [kv heads, group, width]; k, v: [kv heads, keys, width].
        pool: a thread for each worker; None: one after the other.
    """
    compute = partial(_parts, q, k, v)
    done = [compute(pieces) for pieces in schedule] if pool is None else list(pool.map(compute, schedule))
    by_head: dict[int, list[Partial]] = {}
    for pieces, parts in zip(schedule, done, strict=True):
        for piece, part in zip(pieces, parts, strict=True):
            by_head.setdefault(piece.head, []).append(part)
    return torch.stack([_merged(by_head[head]) for head in range(len(q))])


def _parts(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, pieces: Sequence[Piece]) -> list[Partial]:
    parts = []
    for piece in pieces:
        scores = q[piece.head] @ k[piece.head, piece.start : piece.stop].T * q.shape[-1] ** -0.5  # [group, keys]
        largest = scores.amax(-1, keepdim=True)
        weights = torch.exp(scores - largest)
        parts.append((largest, weights.sum(-1, keepdim=True), weights @ v[piece.head, piece.start : piece.stop]))
    return parts


def _merged(parts: Sequence[Partial]) -> torch.Tensor:
    largest = torch.stack([part[0] for part in parts])  # [parts, group, 1]
    factors = torch.exp(largest - largest.amax(0))
    total = (torch.stack([part[1] for part in parts]) * factors).sum(0)  # [group, 1]
    return (torch.stack([part[2] for part in parts]) * factors).sum(0) / total


def measure(
    heads: Heads, lengths: Sequence[int], tile: int, workers: int, rounds: int, progress: Progress
) -> list[SplitTimes]:
    """Time whole heads, split keys and torch's own attention at every length, taking turns; on the processor."""
    results = []
    with progress.bar("attention of a decode step") as bar, ThreadPoolExecutor(workers) as pool:
        bar.expect(len(lengths) * rounds)
        for keys in lengths:
            draw = torch.Generator().manual_seed(keys)
            q = torch.randn(heads.kv_heads, heads.group, heads.width, generator=draw)
            k, v = (torch.randn(heads.kv_heads, keys, heads.width, generator=draw) for _ in range(2))
            whole, split = whole_heads(heads.kv_heads, keys, workers), stream_k(heads.kv_heads, keys, tile, workers)
            ways: dict[str, tuple[int, Callable[[], torch.Tensor]]] = {
                "sdpa": (workers, partial(_sdpa, q, k, v)),
                "whole": (1, partial(attend, q, k, v, whole, pool)),
                "split": (1, partial(attend, q, k, v, split, pool)),
            }
            times: dict[str, list[float]] = {name: [] for name in ways}
            for _ in range(rounds):
                for name, (threads, way) in ways.items():
                    times[name].append(_milliseconds(way, threads))
                bar.advance(1)
            exact = _sdpa(*(tensor.double() for tensor in (q, k, v)))
            typical = {name: statistics.median(each) for name, each in times.items()}
            difference = float((attend(q, k, v, split) - exact).abs().max())
            results.append(
                SplitTimes(keys, **typical, idle_whole=idle(whole), idle_split=idle(split), difference=difference)
            )
    return results


def _sdpa(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.scaled_dot_product_attention(q, k, v)


def _milliseconds(way: Callable[[], torch.Tensor], threads: int) -> float:
    """The least of a few calls in a row, of which the first finds caches and threads cold."""
    with _threads(threads):
        times = []
        for _ in range(4):
            began = time.perf_counter()
            way()
            times.append(time.perf_counter() - began)
    return min(times[1:]) * 1e3


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Threads within one operation of torch; workers that are threads themselves have one each."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
