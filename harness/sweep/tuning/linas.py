"""LINAS: rounds of measurements, each of the candidates that predictors, fitted on all before, put on the front.

Source: Cummings et al., "A Hardware-Aware Framework for Accelerating Neural Architecture Search Across Modalities",
arXiv:2205.10358; SimQ-NAS, arXiv:2312.13301.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

from harness.sweep.tuning.front import Point, front
from harness.sweep.tuning.genetic import GENERATIONS, proposals
from harness.sweep.tuning.predictor import Candidate, Ridge, rank_correlation

Measure = Callable[[Sequence[Candidate]], Sequence[Point | None]]
"""What candidates measure, metric by metric; None for one that failed."""


@dataclass
class Linas:
    """A search.

    Attributes:
        sizes: of each setting, how many choices it has.
        objectives: how many of the metrics, the first ones, are to be small.
        limits: the most that each metric may be; infinity where there is no budget.
        seed, generations: of the genetic search; the draws of the first round are given.
        measured: what came of every candidate, in the order in which they were measured.
    """

    sizes: tuple[int, ...]
    objectives: int
    limits: Point
    seed: int = 0
    generations: int = GENERATIONS
    measured: dict[Candidate, Point | None] = field(default_factory=dict, init=False)
    _predicted: dict[Candidate, Point] = field(default_factory=dict, init=False)

    def run(self, draws: Iterator[Candidate], measure: Measure, evaluations: int, population: int) -> None:
        """Measure so many candidates in rounds of ``population``, the first as they are drawn."""
        while (room := evaluations - len(self.measured)) > 0:
            number = min(population, room)
            batch = self._best(number) if self._known else []
            fresh = (candidate for candidate in draws if candidate not in {*self.measured, *batch})
            batch += islice(fresh, number - len(batch))
            if not batch:  # the space has no more
                return
            self.measured |= zip(batch, measure(batch), strict=True)

    @property
    def front(self) -> list[Candidate]:
        """The measured candidates within the budgets that no other of them dominates."""
        return front_within(self.measured, self.objectives, self.limits)

    @property
    def predicted(self) -> int:
        """How many candidates were measured after they were predicted."""
        return sum(self.measured.get(candidate) is not None for candidate in self._predicted)

    def correlation(self, metric: int) -> float | None:
        """Rank correlation of a metric as it was predicted with the metric as it was measured afterwards."""
        points = [(values, point) for c, values in self._predicted.items() if (point := self.measured[c])]
        predicted, measured = ([pair[side][metric] for pair in points] for side in (0, 1))
        return rank_correlation(predicted, measured)

    @property
    def _known(self) -> dict[Candidate, Point]:
        return {candidate: point for candidate, point in self.measured.items() if point is not None}

    def _best(self, number: int) -> list[Candidate]:
        """The candidates that are likeliest to be on the front, of those not measured."""
        known = self._known
        values = zip(*known.values(), strict=True)
        ridges = [Ridge.fitted(list(known), metric, self.sizes) for metric in values]

        # what is predicted to be beyond a budget by less than predictions are off may be within it
        limits = tuple(most + ridge.error for most, ridge in zip(self.limits, ridges, strict=True))

        def predict(candidate: Candidate) -> tuple[Point, float]:
            point = tuple(ridge(candidate) for ridge in ridges)
            return point[: self.objectives], excess(point, limits)

        start = self.front or list(known)
        seed = self.seed + len(self.measured)
        tried = proposals(self.sizes, predict, start=start, seed=seed, generations=self.generations)
        best = [candidate for candidate in tried if candidate not in self.measured and any(candidate)][:number]
        self._predicted |= {candidate: tuple(ridge(candidate) for ridge in ridges) for candidate in best}
        return best


def excess(point: Point, limits: Point) -> float:
    """By how much a point is beyond its limits, in sum; 0 for one within."""
    return sum(max(value - most, 0.0) for value, most in zip(point, limits, strict=True))


def front_within(measured: dict[Candidate, Point | None], objectives: int, limits: Point) -> list[Candidate]:
    """Of measured candidates those within the limits that no other of them dominates."""
    within = [c for c, point in measured.items() if point is not None and excess(point, limits) <= 0]
    points = [point[:objectives] for c in within if (point := measured[c])]
    return [within[index] for index in front(points)]
