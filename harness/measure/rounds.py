"""Timing many cells again and again until the timings are good enough or a budget of seconds is spent."""

import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from harness.core.progress import Bar

LEAST_ROUNDS: Final = 2
"""Rounds before timings may be called good: one has nothing to be checked against."""
REPEATS: Final = 3
SLOW_S: Final = 0.1
"""Cells that take longer are called once a visit, others are timed ``REPEATS`` times after a call that is not."""


@dataclass
class Cell:
    """Something timed again and again.

    Attributes:
        run: seconds of each of so many calls.
        size: what a call grows with, such as its tokens: the smallest cells are timed first.
        required: timed even if the budget is spent, as nothing can be fitted without it.
    """

    run: Callable[[int], list[float]]
    size: float
    required: bool = False
    samples: list[float] = field(default_factory=list)

    def visit(self) -> None:
        """One visit: its first call warms caches and is not counted, unless it is so long that they matter little."""
        (first,) = self.run(1)
        if first > SLOW_S:
            self.samples.append(first)
        else:
            self.samples += self.run(REPEATS if self.samples else 1)

    @property
    def best(self) -> float:
        """The least disturbed timing, in seconds."""
        return max(min(self.samples), 1e-9)


@dataclass(frozen=True)
class Timing:
    """How timing ended: seconds used, whole rounds, whether the budget ended it, whether each cell was timed."""

    seconds: float
    rounds: int
    cut_short: bool
    complete: bool


def time_cells(
    cells: Sequence[Cell],
    budget_s: float,
    good: Callable[[], bool],
    bar: "Bar",
    *,
    seed: int = 0,
    now: Callable[[], float] = time.perf_counter,
) -> Timing:
    """Visit every cell once, the smallest first, then all in fresh random orders, round after round.

    Args:
        budget_s: seconds after which only required cells are still visited, and only for their first time.
        good: whether the timings so far are good enough; asked after every round.
        bar: counts seconds of the budget.
    """
    began, draw = now(), random.Random(seed)
    bar.expect(math.ceil(budget_s))
    shown = rounds = 0

    def spent() -> bool:
        nonlocal shown
        elapsed = min(math.floor(now() - began), math.ceil(budget_s))
        bar.advance(elapsed - shown)
        shown = elapsed
        return now() - began >= budget_s

    for cell in sorted(cells, key=lambda cell: cell.size):
        if cell.required or not spent():
            cell.visit()
    complete = all(cell.samples for cell in cells)
    is_good, out_of_time = False, spent() or not complete
    while not is_good and not out_of_time:
        for cell in draw.sample(cells, len(cells)):
            if out_of_time := spent():
                break
            cell.visit()
        else:
            rounds += 1
            is_good = rounds + 1 >= LEAST_ROUNDS and good()
    bar.advance(math.ceil(budget_s) - shown)
    return Timing(round(now() - began, 1), rounds + complete, not is_good, complete)
