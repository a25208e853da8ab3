"""Which methods to take under budgets: those on the front of one group of runs, what cannot be told, what is not known.

Nothing is named whose saving is simulated, or whose interval leaves room for no saving at all.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import ceil
from typing import Literal

from harness.core.errors import HarnessError
from harness.reports.columns import BY_KEY, Ratio, ratio, trust, value, why_missing, why_no_ratio
from harness.reports.rows import LIMITED, Record, Row, rows, score_interval
from harness.results.budgets import Budget
from harness.results.compare import compare
from harness.results.scores import PairedScore
from harness.results.stats.pareto import Point, dominates
from harness.results.store import RunFolder

State = Literal["within", "beyond", "none", "unknown", "apart"]


@dataclass(frozen=True)
class Verdict:
    """A run's cost beside a budget.

    Attributes:
        state: "within" the budget, and surely a saving; "beyond" it; "none", no saving can be excluded; or "unknown".
        reason: of what is not within, in words.
    """

    budget: Budget
    state: State
    against: Ratio | None = None
    reason: str = ""

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval of the ratio, where it has one."""
        against = self.against
        return None if against is None or against.low is None or against.high is None else (against.low, against.high)

    @property
    def reaches_beyond(self) -> bool:
        """Whether the interval of a cost within the budget leaves room for one beyond it."""
        return self.state == "within" and self.interval is not None and self.interval[1] > self.budget.most


@dataclass(frozen=True)
class Judged:
    """A run beside the budgets.

    Attributes:
        verdicts: in the order of the budgets.
        apart: why it is not named whatever it costs; empty where nothing keeps it.
    """

    row: Row
    verdicts: tuple[Verdict, ...]
    apart: str = ""

    @property
    def state(self) -> State:
        """What becomes of it: what keeps it from being named, if anything does."""
        states = [verdict.state for verdict in self.verdicts]
        order: tuple[State, ...] = ("none", "beyond", "unknown")
        return "apart" if self.apart else next((state for state in order if state in states), "within")

    @property
    def reason(self) -> str:
        """Why it is not named."""
        return self.apart or next((each.reason for each in self.verdicts if each.state == self.state), "")

    @property
    def quality(self) -> float:
        """Its main score, turned so that more is better."""
        score = self.row.score
        assert score is not None
        return float(score["value"]) * (-1 if score["higher_is_better"] is False else 1)

    @property
    def points(self) -> list[Point]:
        """Quality against the cost of each budget."""
        score, bounds = self.row.score, score_interval(self.row.score)
        if bounds and score and score["higher_is_better"] is False:
            bounds = (-bounds[1], -bounds[0])
        return [
            Point(each.against.value, self.quality, each.interval, bounds, each.budget.cost.kind)
            for each in self.verdicts
            if each.against is not None
        ]

    def beats(self, other: "Judged") -> bool:
        """Whether it is no worse in anything, and surely better in something."""
        pairs = list(zip(self.points, other.points, strict=True))
        no_worse = all(own.cost <= rival.cost and own.quality >= rival.quality for own, rival in pairs)
        return no_worse and any(dominates(own, rival) for own, rival in pairs)


@dataclass(frozen=True)
class Tie:
    """Two named methods whose scores cannot be told apart on the same documents.

    Attributes:
        change: the score of the second less that of the first; None where they cannot be compared, for the ``reason``.
        documents: about how many would tell a difference as large as the one seen; None where that cannot be said.
        costs: titles of the costs that cannot be told apart either.
    """

    first: Row
    second: Row
    change: PairedScore | None
    reason: str
    documents: int | None
    costs: tuple[str, ...]


@dataclass(frozen=True)
class Advice:
    """What one group of comparable runs says.

    Attributes:
        named: the methods on the front within all budgets, the best first.
        behind: within the budgets, where another is surely better at no more cost.
        others: not named, for a reason.
        ties: pairs of named methods.
    """

    dense: Row
    budgets: tuple[Budget, ...]
    named: list[Judged]
    behind: list[Judged]
    others: list[Judged]
    ties: list[Tie]

    @property
    def nearest(self) -> Judged | None:
        """Of the real savings beyond the budgets, the one with the least of the first cost."""
        beyond = [each for each in self.others if each.state == "beyond" and each.verdicts[0].against is not None]
        return min(beyond, key=lambda each: each.points[0].cost, default=None)

    @property
    def unknown(self) -> list[Judged]:
        """Runs of which a cost is not known well enough."""
        return [each for each in self.others if each.state == "unknown"]


def groups(records: Sequence[Record], task: str) -> list[list[Row]]:
    """The rows of each group of comparable runs on a task that have a dense run, the largest group first."""
    by_group: dict[str, list[Row]] = {}
    for row in rows(records):
        if row.record["evaluation"]["task"] == task:
            by_group.setdefault(row.group, []).append(row)
    return sorted((each for each in by_group.values() if any(row.is_dense for row in each)), key=len, reverse=True)


def advise(folders: Mapping[str, RunFolder], group: Sequence[Row], budgets: tuple[Budget, ...]) -> Advice:
    """What a group of runs says, of one model, task, question and machine.

    Args:
        folders: of the runs, by id.
        group: its rows, a dense one among them.
    """
    judged = [_judged(row, budgets) for row in group if not row.is_dense]
    within = sorted((each for each in judged if each.state == "within"), key=lambda each: -each.quality)
    behind = [each for each in within if any(rival.beats(each) for rival in within)]
    named = [each for each in within if each not in behind]
    ties = (_tie(folders, *pair) for pair in combinations(named, 2))
    return Advice(
        dense=next(row for row in group if row.is_dense),
        budgets=budgets,
        named=named,
        behind=behind,
        others=[each for each in judged if each.state != "within"],
        ties=[tie for tie in ties if tie is not None],
    )


def _judged(row: Row, budgets: Sequence[Budget]) -> Judged:
    reasons = [reason for reason in row.apart if reason != LIMITED]
    if row.saving == "simulated":
        reasons.append("its saving is simulated: on paper, not where it ran")
    elif row.saving in ("none", "none here"):
        reasons.append("it saved nothing where it ran")
    return Judged(row, tuple(_verdict(row, budget) for budget in budgets), "; ".join(reasons))


def _verdict(row: Row, budget: Budget) -> Verdict:
    column = BY_KEY[budget.cost.name]
    against = ratio(row.record, row.dense, column)
    if against is None:
        why = why_missing if value(row.record, column) is None else why_no_ratio
        return Verdict(budget, "unknown", reason=why(row.record, column))
    words, is_ranked = trust(row.record, column)
    if not is_ranked:
        return Verdict(budget, "unknown", against, words)
    if against.high is None and column.kind in ("measured", "estimated"):
        return Verdict(budget, "unknown", against, f"no interval: {against.reason or 'no reason is kept'}")
    if (against.value if against.high is None else against.high) >= 1:
        return Verdict(budget, "none", against, "no saving can be excluded")
    if against.value > budget.most:
        return Verdict(budget, "beyond", against, "beyond the budget")
    return Verdict(budget, "within", against)


def _tie(folders: Mapping[str, RunFolder], first: Judged, second: Judged) -> Tie | None:
    """The two as a tie; None where their scores differ by more than chance."""
    costs = [
        own.budget.cost.title
        for own, a, b in zip(first.verdicts, first.points, second.points, strict=True)
        if not _costs_differ(a, b)
    ]
    change, reason = None, ""
    try:
        comparison = compare(folders[first.row.id], folders[second.row.id])
        task = first.row.record["evaluation"]["task"]
        change = next(score.vs_baseline for score in comparison.scores if score.task == task)
    except HarnessError as error:
        reason = str(error)
    if change is not None and change.low is not None and change.high is not None and not change.low <= 0 <= change.high:
        return None
    return Tie(first.row, second.row, change, reason, _documents(change), tuple(costs))


def _costs_differ(first: Point, second: Point) -> bool:
    """Whether two costs differ by more than chance, as the front has it."""
    low, high = (
        Point(point.cost, 0, point.cost_interval, None, point.cost_kind)
        for point in sorted((first, second), key=lambda point: point.cost)
    )
    return dominates(low, high)


def _documents(change: PairedScore | None) -> int | None:
    """Documents with which a difference as large as the one seen would be seen: errors fall with their root."""
    if change is None or not change.difference or change.detectable is None:
        return None
    return ceil(change.n * max(change.detectable / abs(change.difference), 1.0) ** 2)
