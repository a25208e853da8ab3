"""What a search makes small or keeps within a budget: the loss of the score, and costs over dense's."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import inf
from typing import Final

from harness.core.errors import SpecError
from harness.results.baseline import COSTS, Cost
from harness.results.budgets import Budget, cost_named, measures
from harness.results.record import RunRecord
from harness.results.scores import Score

LOSS: Final = Cost("loss", "loss of the score", "", "", "counted")
PACKED: Final = Cost("packed", "packed size of the weights, not measured", "B", "memory.packed_weights", "counted")
KNOWN: Final = (LOSS, *COSTS, PACKED)


@dataclass(frozen=True)
class Number:
    """A metric of a run with its 95 % interval, or the reason why it has none."""

    value: float
    low: float | None = None
    high: float | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Metrics:
    """The metrics of a search: its objectives, then the costs that only a budget is about.

    Attributes:
        objectives: how many of them are to be small.
        limits: the most that each may be; infinity without a budget.
    """

    costs: tuple[Cost, ...]
    objectives: int
    limits: tuple[float, ...]

    @classmethod
    def asked(cls, objectives: Sequence[str], budgets: Iterable[Budget]) -> "Metrics":
        """The metrics of a request.

        Raises:
            UnknownNameError: an objective that there is not.
            SpecError: one that is given twice, or nothing that keeps the cheapest from being the best.
        """
        costs = [cost_named(name, "objective", KNOWN) for name in objectives]
        for cost in costs:
            if costs.count(cost) > 1:
                raise SpecError(f"--objectives: {cost.name} is given twice: give each once")
        if LOSS not in costs:
            raise SpecError("--objectives: without loss the most that can be left out is best: add loss")
        most = {budget.cost: budget.most for budget in budgets}
        if len(costs) == 1 and not most:
            raise SpecError("--objectives loss: the dense model loses nothing: add a cost, or give a --budget")
        every = (*costs, *(cost for cost in most if cost not in costs))
        return cls(every, len(costs), tuple(most.get(cost, inf) for cost in every))

    @property
    def measured(self) -> list[str]:
        """What the runs must measure beside the scores, as ``--measure`` names it."""
        return measures(self.costs)

    def of(self, record: RunRecord) -> tuple[Number, ...] | str:
        """A run's metrics; a sentence where it lacks one."""
        numbers = list[Number]()
        for cost in self.costs:
            number = _loss(record) if cost is LOSS else _ratio(record, cost)
            if isinstance(number, str):
                return f"{cost.title}: {number}"
            numbers.append(number)
        return tuple(numbers)


def main_score(record: RunRecord) -> Score | None:
    """The first score of the run's own task or group."""
    return next((score for score in record.scores if score.task == record.evaluation.task), None)


def _loss(record: RunRecord) -> Number | str:
    """How much lower the run's main score is than dense's on the same documents, or higher, where less is better."""
    score = main_score(record)
    change = None if score is None else score.vs_baseline
    if score is None or change is None:
        return "the run has no score that is compared with dense's"
    if score.higher_is_better is False:
        return Number(change.difference, change.low, change.high, change.reason)
    low, high = (None if bound is None else -bound for bound in (change.high, change.low))
    return Number(0.0 - change.difference, low, high, change.reason)


def _ratio(record: RunRecord, cost: Cost) -> Number | str:
    if cost is PACKED:
        memory = record.memory
        packed, dense = memory.packed_weights or memory.weights, memory.dense_weights
        return Number(packed / dense) if packed and dense else "the bytes of its weights are not known"
    ratio = record.baseline.ratios.get(cost.name) if record.baseline else None
    if ratio is None:
        places = [path for path in record.missing if f"{cost.path}.".startswith(f"{path}.")]
        return record.missing[max(places, key=len)] if places else "the record has no ratio to dense"
    return Number(ratio.value, ratio.low, ratio.high, ratio.reason)
