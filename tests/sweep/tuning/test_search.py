"""The search against random draws and an exact optimum, on spaces whose values are known."""

import random
from collections.abc import Callable, Sequence
from itertools import islice
from math import inf

import pytest

from harness.sweep.tuning.front import Point, front, hypervolume, ranked
from harness.sweep.tuning.linas import Linas, excess, front_within
from harness.sweep.tuning.predictor import Candidate, Ridge, one_hot, rank_correlation
from harness.sweep.tuning.space import Part, Space

needs_optuna = pytest.mark.usefixtures("optuna")


def test_a_front_and_its_hypervolume_are_those_by_hand() -> None:
    points = [(1.0, 3.0), (2.0, 2.0), (3.0, 1.0), (3.0, 3.0), (2.0, 2.0), (5.0, 0.5)]
    assert front(points) == [0, 1, 2, 4, 5]
    assert hypervolume(points, (4.0, 4.0)) == 6.0  # 1 + 2 + 3 squares, and the last point lies outside
    assert hypervolume([(1.0, 3.0), (3.0, 1.0)], (4.0, 4.0)) == 5.0
    assert hypervolume([], (4.0, 4.0)) == hypervolume([(4.0, 0.0)], (4.0, 4.0)) == 0.0
    assert hypervolume([(0.25,), (0.75,)], (1.0,)) == 0.75
    # two unit cubes at the corners of a cube of side 2 and all that lies behind them
    assert hypervolume([(0.0, 1.0, 1.0), (1.0, 0.0, 0.0)], (2.0, 2.0, 2.0)) == 2.0 + 4.0 - 1.0


def test_the_best_of_a_front_have_room_around_them() -> None:
    points = [(0.0, 4.0), (1.0, 2.9), (1.1, 2.8), (4.0, 0.0), (5.0, 5.0)]
    assert ranked(points) == [0, 3, 2, 1, 4]


def test_a_ridge_finds_what_adds_up() -> None:
    sizes, rng = (3, 4, 2, 5), random.Random(1)
    added = [[rng.random() for _ in range(size)] for size in sizes]

    def value(candidate: Candidate) -> float:
        return 0.5 + sum(of[choice] for of, choice in zip(added, candidate, strict=True))

    known = [tuple(rng.randrange(size) for size in sizes) for _ in range(40)]
    ridge = Ridge.fitted(known, list(map(value, known)), sizes)
    fresh = [tuple(rng.randrange(size) for size in sizes) for _ in range(20)]
    assert [ridge(each) for each in fresh] == pytest.approx([value(each) for each in fresh], abs=0.01)
    assert one_hot([(2, 0)], (3, 2)).tolist() == [[0, 0, 1, 1, 0]]
    constant = Ridge.fitted(known[:2], [0.25, 0.25], sizes)
    assert constant(fresh[0]) == pytest.approx(0.25)


def test_a_rank_correlation_is_known_from_three_different_values_on() -> None:
    assert rank_correlation([1, 2, 3], [10, 20, 25]) == pytest.approx(1.0)
    assert rank_correlation([1, 2, 3], [3, 2, 1]) == pytest.approx(-1.0)
    assert rank_correlation([1, 2], [1, 2]) is None
    assert rank_correlation([1, 2, 3], [1, 1, 1]) is None


Measuring = Callable[[Sequence[Candidate]], list[Point]]


def additive(seed: int, settings: int = 8, choices: int = 3) -> tuple[Space, Measuring]:
    """Settings each of which costs less and loses more the higher its choice, all by other amounts."""
    rng = random.Random(seed)
    tables = [[sorted(rng.random() for _ in range(choices)) for _ in range(settings)] for _ in range(2)]

    def measure(candidates: Sequence[Candidate]) -> list[Point]:
        return [
            (
                sum(table[choice] for table, choice in zip(tables[0], candidate, strict=True)),
                sum(table[-1 - choice] for table, choice in zip(tables[1], candidate, strict=True)),
            )
            for candidate in candidates
        ]

    return Space(tuple(Part(("", *map(str, range(1, choices)))) for _ in range(settings)), 1), measure


@needs_optuna
def test_the_search_covers_more_than_random_draws_in_19_of_20_seeds() -> None:
    better, correlations = 0, []
    for seed in range(20):
        space, measure = additive(seed)
        search = Linas(space.sizes, 2, (inf, inf), seed, generations=6)
        search.run(space.draws(seed), measure, 30, 15)
        drawn = measure(list(islice(space.draws(seed), 30)))
        covered = [point for point in search.measured.values() if point]
        assert len(covered) == 30
        reference = tuple(max(point[axis] for point in [*drawn, *covered]) for axis in (0, 1))
        better += hypervolume(covered, reference) >= hypervolume(drawn, reference)
        correlations.append(search.correlation(0))
    assert better >= 19
    assert min(each for each in correlations if each is not None) > 0.5


@needs_optuna
def test_within_a_budget_it_finds_the_optimum_of_a_knapsack() -> None:
    """6 items of 3 choices under a budget: dynamic programming over whole costs is exact."""
    rng = random.Random(7)
    losses = [sorted(rng.random() for _ in range(3)) for _ in range(6)]
    costs = [sorted((rng.randrange(1, 20) for _ in range(3)), reverse=True) for _ in range(6)]
    budget = sum(item[1] for item in costs)
    best = {0: 0.0}  # least loss by cost
    for loss, cost in zip(losses, costs, strict=True):
        sums: dict[int, float] = {}
        for spent, lost in best.items():
            for choice in range(3):
                place = spent + cost[choice]
                sums[place] = min(sums.get(place, inf), lost + loss[choice])
        best = sums
    optimum = min(lost for spent, lost in best.items() if spent <= budget)

    def measure(candidates: Sequence[Candidate]) -> list[Point]:
        return [
            tuple(float(sum(of[choice] for of, choice in zip(table, each, strict=True))) for table in (losses, costs))
            for each in candidates
        ]

    space = Space(tuple(Part(("", "1", "2")) for _ in range(6)), 1)
    search = Linas(space.sizes, 1, (inf, float(budget)), 0)
    search.run(space.draws(0), measure, 60, 20)
    (chosen, *_) = search.front
    point = search.measured[chosen]
    assert point is not None
    assert point[1] <= budget
    assert point[0] <= optimum * 1.05
    assert point[0] >= optimum - 1e-9


@needs_optuna
def test_a_search_measures_each_once_and_goes_on_past_failures() -> None:
    space, measure = additive(3, settings=3)
    asked: list[Candidate] = []

    def failing(candidates: Sequence[Candidate]) -> list[Point | None]:
        asked.extend(candidates)
        return [None if each[0] == 1 else point for each, point in zip(candidates, measure(candidates), strict=True)]

    search = Linas(space.sizes, 2, (inf, inf), 0)
    search.run(space.draws(0), failing, 100, 6)
    assert len(asked) == len(set(asked)) == space.count == 26
    assert (0, 0, 0) not in asked  # dense
    assert all(candidate[0] != 1 for candidate in search.front)
    nothing = Linas(space.sizes, 2, (inf, inf), 0)
    nothing.run(space.draws(0), lambda candidates: [None] * len(candidates), 8, 3)
    assert nothing.front == []


def test_budgets_bound_the_front() -> None:
    measured: dict[Candidate, Point | None] = {(1,): (0.1, 0.9, 0.5), (2,): (0.2, 0.5, 0.9), (3,): None}
    assert front_within(measured, 2, (inf, inf, inf)) == [(1,), (2,)]
    assert front_within(measured, 2, (inf, 0.7, inf)) == [(2,)]
    assert front_within(measured, 2, (inf, inf, 0.7)) == [(1,)]
    assert excess((0.1, 0.9, 0.5), (inf, 0.7, 0.4)) == pytest.approx(0.3)
