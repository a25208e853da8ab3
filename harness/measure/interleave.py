"""Participants take turns over the same requests, so that machine noise affects all of them equally."""

import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeVar

import torch

from harness.measure.serve import Served

if TYPE_CHECKING:
    from harness.core.progress import Bar

_Item = TypeVar("_Item")

ATTACH_SHARE: Final = 0.3
"""Turns are so long that attaching takes no more than this share of serving, as far as ``TURNS`` allows."""
TURNS: Final = 4
"""Turns of a participant in a round, at the least: in a single one, a slowing machine looks like the method."""


@dataclass(frozen=True, eq=False)
class Participant:
    """What takes turns: a method, or dense, which may take part twice.

    Attributes:
        label: for messages.
        attach: applies its methods to the model for the length of a ``with`` block.
    """

    label: str
    attach: Callable[[], AbstractContextManager[object]]

    @contextmanager
    def attached(self) -> Iterator[None]:
        """The model with its methods, for what is asked of others too.

        Raises:
            ParticipantError: something raised meanwhile, which is the cause; running out of memory passes through.
        """
        try:
            with self.attach():
                yield
        except (torch.OutOfMemoryError, MemoryError):
            raise
        except (Exception, SystemExit) as error:
            raise ParticipantError(self) from error


class ParticipantError(Exception):
    """A participant raised, and the others did not."""

    def __init__(self, participant: Participant) -> None:
        super().__init__(participant.label)
        self.participant = participant


@dataclass(frozen=True)
class Turns:
    """What interleaving measured.

    Attributes:
        served: of each participant, [items][rounds].
        chunk: items that were served before the turn changed.
    """

    served: dict[Participant, list[list[Served]]]
    chunk: int


def interleave(
    serve: Callable[[_Item], Served],
    participants: Sequence[Participant],
    items: Sequence[_Item],
    *,
    rounds: int,
    warmup: int,
    seed: int,
    bar: "Bar",
) -> Turns:
    """Serve every item, a request or a batch of them, once a round by every participant, in fresh random orders.

    Every item is served ``warmup`` times first by each, as the first forward of a shape pays for kernels and
    memory that later ones find.
    """
    draw = random.Random(seed)
    bar.expect((rounds + warmup) * len(participants) * len(items))
    chunk = _warm_up(serve, participants, items, warmup, bar)
    served: dict[Participant, list[list[Served]]] = {each: [[] for _ in items] for each in participants}
    for _ in range(rounds):
        order = draw.sample(range(len(items)), len(items))
        for start in range(0, len(order), chunk):
            for participant in draw.sample(list(participants), len(participants)):
                with participant.attached():
                    for index in order[start : start + chunk]:
                        served[participant][index].append(serve(items[index]))
                        bar.advance(1)
    return Turns(served, chunk)


def _warm_up(
    serve: Callable[[_Item], Served],
    participants: Sequence[Participant],
    items: Sequence[_Item],
    warmup: int,
    bar: "Bar",
) -> int:
    """Serve every item unmeasured, once at the least; the items that a turn should hold.

    So many that the slowest attaching and detaching takes ``ATTACH_SHARE`` of the slowest serving of a turn, but a part
    of the round alone.
    """
    attaching_s = serving_s = 0.0
    times = max(warmup, 1)
    for participant in participants:
        began = time.perf_counter()
        with participant.attached():
            attached = time.perf_counter()
            for item in items:
                for _ in range(times):
                    serve(item)
                    bar.advance(1 if warmup else 0)
            ended = time.perf_counter()
        attaching_s = max(attaching_s, attached - began + time.perf_counter() - ended)
        serving_s = max(serving_s, (ended - attached) / (times * len(items)))
    return min(max(len(items) // TURNS, 1), max(1, round(attaching_s / (ATTACH_SHARE * max(serving_s, 1e-9)))))
