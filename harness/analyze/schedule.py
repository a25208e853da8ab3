"""How a decode step's keys are dealt to workers: by whole heads, or by equal numbers of tiles (LeanAttention).

A worker is what computes by itself: a core, or a GPU's multiprocessor. Where heads are no multiple of the workers, some
of them wait for the last head; cut into tiles, each has as much to do as any other (arXiv:2405.10480).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True)
class Piece:
    """Keys ``start`` to ``stop`` of a head."""

    head: int
    start: int
    stop: int


Schedule = Sequence[Sequence[Piece]]
"""The pieces of each worker."""


def whole_heads(heads: int, keys: int, workers: int) -> Schedule:
    """Every head to one worker, as many to each as can be."""
    bounds = [worker * heads // workers for worker in range(workers + 1)]
    return [[Piece(head, 0, keys) for head in range(first, last)] for first, last in pairwise(bounds)]


def stream_k(heads: int, keys: int, tile: int, workers: int) -> Schedule:
    """The tiles of all heads in a row, equally many to each worker; tiles of a head that stay together are one piece.

    Args:
        tile: keys of a tile; the last one of a head may have fewer.
    """
    per_head = -(-keys // tile)
    bounds = [worker * heads * per_head // workers for worker in range(workers + 1)]
    schedule = []
    for first, last in pairwise(bounds):
        pieces, place = list[Piece](), first
        while place < last:
            head, begin = divmod(place, per_head)
            end = min(per_head, begin + last - place)
            pieces.append(Piece(head, begin * tile, min(end * tile, keys)))
            place += end - begin
        schedule.append(pieces)
    return schedule


def work(schedule: Schedule) -> list[int]:
    """Keys that each worker reads."""
    return [sum(piece.stop - piece.start for piece in pieces) for pieces in schedule]


def idle(schedule: Schedule) -> float:
    """Share of the workers' time until the last is done in which they wait, if a key takes as long as any other."""
    loads = work(schedule)
    return 1 - sum(loads) / (len(loads) * max(loads))
