"""A search with its controls: candidates are chosen on some documents and reported on others."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Final

from harness.results.record import RunRecord
from harness.results.saving import saving
from harness.sweep.tuning.documents import Dealt, Samples
from harness.sweep.tuning.front import Point, hypervolume
from harness.sweep.tuning.linas import Linas, excess, front_within
from harness.sweep.tuning.metrics import LOSS, Metrics, Number
from harness.sweep.tuning.predictor import Candidate
from harness.sweep.tuning.space import Space
from harness.sweep.tuning.trials import Trials

Measured = dict[Candidate, Point | None]
_ROUNDS: Final = 4
_MOST: Final = 50
"""Candidates of a round, as in LINAS."""


@dataclass(frozen=True)
class Chosen:
    """A candidate of a front of the documents that choose.

    Attributes:
        text: its methods.
        ways: by which of "search", "random" and "uniform" it was chosen.
        validation: its metrics on the documents that chose it.
        test: on the others; a sentence where that run has none.
        record: of the run on the others.
    """

    text: str
    ways: tuple[str, ...]
    validation: Point
    test: tuple[Number, ...] | str
    record: RunRecord | None

    @property
    def saving(self) -> str:
        """What that run saved: "real", "simulated" or "none"; empty without a run."""
        return saving(self.record.model_dump(mode="json")) if self.record else ""

    def beyond(self, limits: Sequence[float]) -> bool:
        """Whether it keeps its budgets on the documents that chose it alone."""
        return not isinstance(self.test, str) and any(
            number.value > most for number, most in zip(self.test, limits, strict=True)
        )


@dataclass(frozen=True)
class Way:
    """One way to choose: the search, random draws, or all layers alike.

    Attributes:
        evaluations: candidates that it measured.
        validation: hypervolume of what it measured, on the documents that choose.
        test: hypervolume of its front on the others.
    """

    name: str
    evaluations: int
    validation: float
    test: float


@dataclass(frozen=True)
class Tuned:
    """What came of a search.

    Attributes:
        reference: the point within which hypervolumes are taken, objective by objective.
        chosen: the fronts' candidates, by rising loss on the documents that chose them.
        correlations: for every metric, rank correlation of predicted with measured values, of ``predicted`` candidates.
        failures: by methods, why a candidate has no metrics.
    """

    metrics: Metrics
    reference: Point
    ways: list[Way]
    chosen: list[Chosen]
    correlations: list[float | None]
    predicted: int
    failures: dict[str, str]


@dataclass
class Tuning:
    """A search to be made.

    Attributes:
        evaluations: candidates that each way measures, at most.
        population: candidates of a round; None for a quarter of the evaluations, at most 50.
        controls: random draws and the uniform candidates are measured too.
    """

    space: Space
    metrics: Metrics
    documents: Dealt
    trials: Trials
    evaluations: int
    seed: int = 0
    population: int | None = None
    controls: bool = True
    _points: Measured = field(default_factory=dict, init=False)
    _failures: dict[str, str] = field(default_factory=dict, init=False)

    @property
    def most_runs(self) -> int:
        """Runs to make at most, without those of the documents to report on."""
        first = min(self._population, self.evaluations)
        drawn = 2 * self.evaluations - first if self.controls else self.evaluations
        uniform = len(self.space.uniform(self.evaluations)) if self.controls else 0
        return 1 + min(drawn + uniform, self.space.count)

    @property
    def expected_s(self) -> float | None:
        """Seconds of those runs by earlier records; None where they do not tell."""
        each = self.trials.pace(self.documents.validation)
        return None if each is None else each * self.most_runs

    @property
    def _population(self) -> int:
        return self.population or min(_MOST, -(-self.evaluations // _ROUNDS))

    def run(self) -> Tuned:
        """Search, measure the controls, and measure the fronts on the documents to report on.

        Raises:
            HarnessError: no candidate can run.
        """
        self.trials.expected = self.most_runs
        ways: dict[str, Measured] = {}
        uniform = self.space.uniform(self.evaluations)
        if self.controls:  # before the search, which shares its first candidates: all of them side by side
            drawn = list(islice(self.space.draws(self.seed), self.evaluations))
            self._measure([*drawn, *uniform])
            ways = {"random": self._of(drawn), "uniform": self._of(uniform)}
        search = Linas(self.space.sizes, self.metrics.objectives, self.metrics.limits, self.seed)
        first = uniform[:: -(-len(uniform) // max(self._population // 2, 1))]  # half of a round, evenly spread
        draws = chain(first, self.space.draws(self.seed))
        search.run(draws, self._measure, self.evaluations, self._population)
        ways = {"search": search.measured, **ways}
        reference = self._reference()
        chosen = self._chosen(ways)
        return Tuned(
            metrics=self.metrics,
            reference=reference,
            ways=[self._way(name, measured, chosen, reference) for name, measured in ways.items()],
            chosen=chosen,
            correlations=[search.correlation(metric) for metric in range(len(self.metrics.costs))],
            predicted=search.predicted,
            failures=self._failures,
        )

    def _of(self, candidates: Iterable[Candidate]) -> Measured:
        return {candidate: self._points[candidate] for candidate in candidates}

    def _measure(self, candidates: Sequence[Candidate]) -> list[Point | None]:
        """What candidates measure on the documents that choose."""
        new = {c: self.space.text(c) for c in dict.fromkeys(candidates) if c not in self._points}
        results = self._results(list(new.values()), self.documents.validation)
        for candidate, text in new.items():
            result, _ = results[text]
            if isinstance(result, str):
                self._failures[text] = result
            self._points[candidate] = None if isinstance(result, str) else tuple(number.value for number in result)
        return [self._points[candidate] for candidate in candidates]

    def _results(
        self, texts: Sequence[str], samples: Samples
    ) -> dict[str, tuple[tuple[Number, ...] | str, RunRecord | None]]:
        """The metrics and the record of each text; a sentence in place of metrics that it lacks."""
        records = self.trials.records(texts, samples) if texts else {}
        return {
            text: (record, None) if isinstance(record, str) else (self.metrics.of(record), record)
            for text, record in records.items()
        }

    def _reference(self) -> Point:
        """The point within which hypervolumes are taken: dense's costs, or a budget below, and the worst loss seen."""
        losses = [point[self._loss] for point in self._points.values() if point is not None]
        most = [min(limit, 1.0) for limit in self.metrics.limits[: self.metrics.objectives]]
        most[self._loss] = min(self.metrics.limits[self._loss], max([*losses, 0.0]) or 1.0)
        return tuple(most)

    @property
    def _loss(self) -> int:
        return self.metrics.costs.index(LOSS)

    def _chosen(self, ways: dict[str, Measured]) -> list[Chosen]:
        """Every way's front, each candidate once, on the documents to report on."""
        by: dict[Candidate, list[str]] = {}
        for name, measured in ways.items():
            for candidate in front_within(measured, self.metrics.objectives, self.metrics.limits):
                by.setdefault(candidate, []).append(name)
        self.trials.expected = len(by) + 1
        results = self._results([self.space.text(candidate) for candidate in by], self.documents.test)
        chosen = list[Chosen]()
        for candidate, names in by.items():
            point, text = self._points[candidate], self.space.text(candidate)
            assert point is not None
            test, record = results[text]
            chosen.append(Chosen(text, tuple(names), point, test, record))
        return sorted(chosen, key=lambda each: (each.validation[self._loss], each.validation))

    def _way(self, name: str, measured: Measured, chosen: Sequence[Chosen], reference: Point) -> Way:
        width, limits = self.metrics.objectives, self.metrics.limits
        within = [point[:width] for point in measured.values() if point is not None and excess(point, limits) <= 0]
        reported = [
            tuple(number.value for number in each.test)
            for each in chosen
            if name in each.ways and not isinstance(each.test, str)
        ]
        kept = [point[:width] for point in reported if excess(point, limits) <= 0]
        return Way(name, len(measured), hypervolume(within, reference), hypervolume(kept, reference))
