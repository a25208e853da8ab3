"""The cells of a cost profile: prompts, decode steps and parts, over depths, tokens and contexts."""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self, cast

from torch import nn

from harness.core.errors import MethodError, UnsupportedModelError
from harness.measure.probe import Depths, Prober
from harness.measure.profile import Work
from harness.measure.rounds import Cell
from harness.measure.shape import ModelShape

if TYPE_CHECKING:
    import torch

LENGTHS: Final = (1, 8, 16, 32, 64, 128, 256, 512)
CONTEXTS: Final = (16, 64, 256, 512)
REQUIRED_LENGTHS: Final = (1, 16)
"""Tokens of prompts that are timed whatever the budget, at a few depths; ``REQUIRED_CONTEXTS`` of decode steps."""
REQUIRED_CONTEXTS: Final = (16, 64)
FILL_CONTEXT: Final = 16
FILL_TOKENS: Final = (1, 4, 16)
"""Positions in the cache that keys and values are added to, and tokens that they are added for."""
SCHEDULE_CONTEXTS: Final = (40, 160)
"""Contexts of the held-out generations: none of the grid's."""
SCHEDULES: Final = 4
STEPS: Final = 8
"""Held-out generations of changing depth at each context, and the decode steps of each."""


@dataclass
class Schedule:
    """A generation whose depth changes from token to token; with ``is_full``, one at full depth to compare with."""

    context: int
    works: list[Work]
    is_full: bool
    cell: Cell


@dataclass
class Grid:
    """Everything that is timed for a profile.

    Attributes:
        prefill, decode: forwards, and what ran in them.
        parts: calls of the head ("head"), of filling a layer's keys and values ("fill") and of small linear layers
            ("router"), by tokens, or multiplications for the last.
        schedules: held out from every fit.
    """

    prefill: list[tuple[Work, Cell]]
    decode: list[tuple[Work, Cell]]
    parts: dict[str, list[tuple[int, Cell]]]
    schedules: list[Schedule]

    @classmethod
    def of(cls, prober: Prober, longest: int, seed: int) -> Self:
        """The grid of a model that takes at most ``longest`` positions."""
        depths = _depths(prober)
        return cls(
            prefill=list(_prefill(prober, depths, longest)),
            decode=list(_decode(prober, depths, longest)),
            parts=_parts(prober, longest),
            schedules=list(_schedules(prober, random.Random(seed), longest)),
        )

    @property
    def timed_prefill(self) -> list[tuple[Work, Cell]]:
        """Prompts of the lengths that the budget left time for at every depth, and of the required ones."""
        left_out = {work.n for work, cell in self.prefill if not cell.samples} - set(REQUIRED_LENGTHS)
        return [(work, cell) for work, cell in self.prefill if cell.samples and work.n not in left_out]

    @property
    def cells(self) -> list[Cell]:
        """All of them."""
        forwards = [cell for _, cell in [*self.prefill, *self.decode]]
        parts = [cell for group in self.parts.values() for _, cell in group]
        return [*forwards, *parts, *(schedule.cell for schedule in self.schedules)]


def _depths(prober: Prober) -> list[Depths]:
    """One layer, a third, two thirds and all of them; then all, half of them without a branch."""
    live = prober.live
    sizes = sorted({max(1, round(len(live) * share)) for share in (0, 1 / 3, 2 / 3, 1)})
    evenly = [tuple(live[round(i * (len(live) - 1) / max(size - 1, 1))] for i in range(size)) for size in sizes]
    half = live[1::2]
    branches = [Depths(live, no_attention=half), Depths(live, no_mlp=half)] if half else []
    return [depths for depths in [*map(Depths, evenly), *branches] if _is_possible(prober, depths)]


def _is_possible(prober: Prober, depths: Depths) -> bool:
    """Whether the model can be run so: a cache needs an attention of each kind."""
    if len(depths.blocks) == len(prober.live) and not depths.no_attention and not depths.no_mlp:
        return True
    try:
        with prober.at(depths):
            return True
    except MethodError:
        return False


def _work(prober: Prober, n: int, c: int, depths: Depths, head_rows: int = 1) -> Work:
    attention = sorted(set(depths.blocks) - set(depths.no_attention))
    mlp = len(set(depths.blocks) - set(depths.no_mlp))
    windows = tuple(window for index in attention if (window := prober.windows[index]) is not None)
    return Work(n, c, len(attention), mlp, prober.rows(n, head_rows), windows)


def _forward(prober: Prober, work: Work, depths: Depths, *, required: bool) -> tuple[Work, Cell]:
    # by tokens, so that a short budget leaves out whole lengths
    return work, Cell(lambda times: prober.forward(work, depths, times), work.n, required)


def _prefill(prober: Prober, every: Sequence[Depths], longest: int) -> Iterator[tuple[Work, Cell]]:
    """Prompts of every length at every depth, the whole text scored at the least and the greatest depth."""
    whole = Depths(prober.live)
    for n in [length for length in LENGTHS if length <= longest]:
        for depths in every:
            # one layer, all, and all without some branches: as many depths as there are costs
            is_extreme = depths == every[0] or len(depths.blocks) == len(prober.live)
            yield _forward(prober, _work(prober, n, n, depths), depths, required=n in REQUIRED_LENGTHS and is_extreme)
        for depths in (every[0], whole) if n > 1 else ():
            required = n in REQUIRED_LENGTHS and depths == whole
            yield _forward(prober, _work(prober, n, n, depths, n), depths, required=required)


def _decode(prober: Prober, every: Sequence[Depths], longest: int) -> Iterator[tuple[Work, Cell]]:
    for c in [context for context in CONTEXTS if context < longest]:
        for depths in every:
            is_extreme = depths in (every[0], Depths(prober.live))
            yield _forward(prober, _work(prober, 1, c, depths), depths, required=c in REQUIRED_CONTEXTS and is_extreme)


def _parts(prober: Prober, longest: int) -> dict[str, list[tuple[int, Cell]]]:
    module, shape = prober.model.module, ModelShape.of(prober.model)
    head = cast("nn.Module", module.get_output_embeddings())
    width = cast("torch.Tensor", prober.model.anatomy.embedding.weight).shape[1]  # of [vocabulary, width]

    def linear(outputs: int) -> nn.Linear:
        return nn.Linear(width, outputs, bias=False).to(module.device, module.dtype)

    def cell(part: nn.Module, inputs: int, tokens: int) -> Cell:
        return Cell(lambda times: prober.module(part, inputs, tokens, times), 0, required=True)

    def decision(part: nn.Module) -> Cell:
        return Cell(lambda times: prober.decision(part, width, times), 0, required=True)

    projections = linear(shape.layers[0].cache_width)
    reads = getattr(head, "in_features", width)

    def fill(tokens: int) -> Cell:
        try:
            prober.fill(FILL_CONTEXT, tokens, 1)
        except (UnsupportedModelError, MethodError):  # no token skips a layer of it, so nothing is charged by this
            return cell(projections, width, tokens)
        return Cell(lambda times: prober.fill(FILL_CONTEXT, tokens, times), 0, required=True)

    return {
        "head": [(tokens, cell(head, reads, tokens)) for tokens in (1, 4, 16)],
        "fill": [(tokens, fill(tokens)) for tokens in FILL_TOKENS if tokens + FILL_CONTEXT <= longest],
        "router": [(width * outputs, decision(linear(outputs))) for outputs in (8, 64, 512)],
    }


def _schedules(prober: Prober, draw: random.Random, longest: int) -> Iterator[Schedule]:
    """Decode steps at full depth, and at random depths, at contexts that the grid does not have."""
    for number, context in enumerate([c for c in SCHEDULE_CONTEXTS if c < longest] or [2]):
        for place in range(1 + SCHEDULES):
            required = number == 0 and place < 2  # one speed-up over full depth, of half as many steps
            steps = range(STEPS // 2 if required else STEPS)
            plan = [Depths(prober.live) if place == 0 else _random_depths(prober, draw) for _ in steps]
            works = [_work(prober, 1, context, depths) for depths in plan]
            yield Schedule(context, works, place == 0, Cell(_steps(prober, context, plan), len(plan), required))


def _steps(prober: Prober, context: int, plan: list[Depths]) -> Callable[[int], list[float]]:
    return lambda times: [prober.steps(context, plan) for _ in range(times)]


def _random_depths(prober: Prober, draw: random.Random) -> Depths:
    kept = draw.sample(prober.live, draw.randint(max(1, len(prober.live) // 4), len(prober.live)))
    depths = Depths(tuple(sorted(kept)))
    return depths if _is_possible(prober, depths) else Depths(prober.live)
