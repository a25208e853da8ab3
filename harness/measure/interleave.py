"""Dense and methods taking turns over the same requests, so that whatever the machine does falls on all alike."""

import random
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from harness.measure.serve import CostRequest, Served, serve
from harness.results.stats.paired import Floats

if TYPE_CHECKING:
    from harness.contract.decoder import Decoder
    from harness.core.progress import Bar

Attach = Callable[[], AbstractContextManager[object]]
ATTACH_SHARE: Final = 0.3
"""Turns are so long that attaching takes no more than this share of serving."""


@dataclass(frozen=True)
class Turns:
    """What interleaving measured.

    Attributes:
        served: of each participant, [requests][rounds].
        chunk: requests that were served before the turn changed.
    """

    served: dict[str, list[list[Served]]]
    chunk: int

    def seconds(self, name: str, of: Callable[[Served], float | None]) -> Floats | None:
        """A time of every measurement, [requests, rounds]; None if some have none."""
        values = [[of(one) for one in rounds] for rounds in self.served[name]]
        return None if any(value is None for row in values for value in row) else np.array(values, dtype=float)


def interleave(
    model: "Decoder",
    participants: Mapping[str, Attach],
    requests: Sequence[CostRequest],
    *,
    rounds: int,
    warmup: int,
    seed: int,
    bar: "Bar",
) -> Turns:
    """Serve every request once a round by every participant, in fresh random orders.

    Every request is served ``warmup`` times first by each, as the first forward of a shape pays for kernels and
    memory that later ones find.
    """
    draw = random.Random(seed)
    bar.expect((rounds + warmup) * len(participants) * len(requests))
    chunk = _warm_up(model, participants, requests, warmup, bar)
    served: dict[str, list[list[Served]]] = {name: [[] for _ in requests] for name in participants}
    for _ in range(rounds):
        order = draw.sample(range(len(requests)), len(requests))
        for start in range(0, len(order), chunk):
            for name in draw.sample(list(participants), len(participants)):
                with participants[name]():
                    for index in order[start : start + chunk]:
                        served[name][index].append(serve(model, requests[index]))
                        bar.advance(1)
    return Turns(served, chunk)


def _warm_up(
    model: "Decoder", participants: Mapping[str, Attach], requests: Sequence[CostRequest], warmup: int, bar: "Bar"
) -> int:
    """Serve everything unmeasured; returns the requests of a turn."""
    attaching = serving = 0.0
    for attach in participants.values():
        began = time.perf_counter()
        context = attach()
        context.__enter__()
        attached = time.perf_counter()
        try:
            for request in requests:
                for _ in range(max(warmup, 1)):
                    serve(model, request)
                    bar.advance(1 if warmup else 0)
            ended = time.perf_counter()
        finally:
            context.__exit__(None, None, None)
        attaching = max(attaching, attached - began + time.perf_counter() - ended)
        serving = max(serving, (ended - attached) / (max(warmup, 1) * len(requests)))
    return min(len(requests), max(1, round(attaching / (ATTACH_SHARE * max(serving, 1e-9)))))
