"""The efficiency length of CAB (arXiv:2210.07661): the shortest context from which a method costs less than dense."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from math import comb
from statistics import median
from typing import TYPE_CHECKING, Final

from harness.contract.decoder import Decoder
from harness.core.progress import Progress
from harness.measure.interleave import Participant, interleave
from harness.measure.serve import CostRequest, Served, serve
from harness.measure.shape import ModelShape
from harness.measure.traffic import kv_cache_bytes

if TYPE_CHECKING:
    from harness.measure.segment import Segment

LEAST_ROUNDS: Final = 6
"""Rounds below which even the whole range of ratios is no 95 % interval of their median."""


@dataclass(frozen=True)
class LengthRatio:
    """A cost over dense's at one length.

    Attributes:
        length: tokens of the context.
        value: median over rounds, in each of which both served the same context.
        low, high: 95 % interval of the median, from order statistics; the value itself where it was counted.
        own, dense: medians of the cost, in seconds or bytes.
    """

    length: int
    value: float
    low: float
    high: float
    own: float
    dense: float


@dataclass(frozen=True)
class Crossing:
    """A method's costs over dense's by length.

    Attributes:
        cost: "first token", "each token after it" or "KV cache".
        ratios: from the shortest context to the longest.
    """

    method: str
    cost: str
    ratios: tuple[LengthRatio, ...]

    @property
    def efficiency_length(self) -> int | None:
        """The shortest length from which on every interval lies below 1; None where the longest one's does not."""
        shortest = None
        for ratio in reversed(self.ratios):
            if ratio.high >= 1:
                break
            shortest = ratio.length
        return shortest


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """95 % interval of the median of a continuous distribution: the narrowest pair of order statistics that covers it.

    Raises:
        ValueError: fewer than ``LEAST_ROUNDS`` values, which no pair of covers it for.
    """
    count, ordered = len(values), sorted(values)
    if count < LEAST_ROUNDS:
        raise ValueError(f"{count} values have no 95 % interval of their median: at least {LEAST_ROUNDS}")
    outside, place = 0.0, 0
    while outside + comb(count, place) / 2**count <= 0.025:  # of one side
        outside += comb(count, place) / 2**count
        place += 1
    return ordered[place - 1], ordered[count - place]


def measure(
    model: Decoder,
    dense: Participant,
    methods: Sequence[Participant],
    text: Sequence[int],
    lengths: Sequence[int],
    *,
    new_tokens: int,
    rounds: int,
    progress: Progress,
) -> list[Crossing]:
    """Serve a context of each length with dense and every method in turns, and count what their caches hold.

    Args:
        text: token ids, at least as many as the longest context.
        lengths: ascending.
        new_tokens: written after a context.
    """
    requests = [
        CostRequest("analyze", index, tuple(text[:length]), length, new_tokens) for index, length in enumerate(lengths)
    ]
    everybody = [dense, *methods]
    with progress.bar("contexts of every length") as bar:
        turns = interleave(partial(serve, model), everybody, requests, rounds=rounds, warmup=1, seed=0, bar=bar)
    held = {each: _held(model, each, requests) for each in everybody}
    crossings = []
    for method in methods:
        pairs = list(zip(turns.served[method], turns.served[dense], strict=True))
        for cost, seconds in (("first token", _first), ("each token after it", _each)):
            ratios = [
                _ratio(length, [seconds(each) for each in own], [seconds(each) for each in base])
                for length, (own, base) in zip(lengths, pairs, strict=True)
            ]
            crossings.append(Crossing(method.label, cost, tuple(ratios)))
        counted = zip(lengths, held[method], held[dense], strict=True)
        shares = [LengthRatio(length, own / base, own / base, own / base, own, base) for length, own, base in counted]
        crossings.append(Crossing(method.label, "KV cache", tuple(shares)))
    return crossings


def _first(served: Served) -> float:
    return served.ttft


def _each(served: Served) -> float:
    assert served.tpot is not None, "a context is followed by two tokens at the least"
    return served.tpot


def _ratio(length: int, own: Sequence[float], dense: Sequence[float]) -> LengthRatio:
    ratios = [a / b for a, b in zip(own, dense, strict=True)]
    return LengthRatio(length, median(ratios), *median_interval(ratios), own=median(own), dense=median(dense))


def _held(model: Decoder, participant: Participant, requests: Sequence[CostRequest]) -> list[int]:
    """Bytes of the largest cache that each request left, as it was held."""
    from harness.measure.trace import Tracer

    held = []
    with participant.attached(), Tracer(model) as tracer:
        shape = ModelShape.of(model)
        for request in requests:
            serve(model, request)
            segments: list[Segment] = list(chain(*tracer.collect()))
            held.append(kv_cache_bytes(shape, segments))
    return held
