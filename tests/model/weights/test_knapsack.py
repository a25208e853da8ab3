"""The knapsack's choices beside exact dynamic programming."""

import random
from statistics import fmean

import pytest

from harness.model.weights.knapsack import Option, choose, size


def exact(items: list[list[Option]], budget: int) -> float:
    """The least sum of losses within a budget, over all choices."""
    best = {0: 0.0}  # by bytes
    for options in items:
        new: dict[int, float] = {}
        for taken, loss in best.items():
            for option in options:
                total = taken + option.size
                if total <= budget:
                    new[total] = min(new.get(total, float("inf")), loss + option.loss)
        best = new
    return min(best.values())


def loss(items: list[list[Option]], chosen: list[int]) -> float:
    return sum(options[index].loss for options, index in zip(items, chosen, strict=True))


def drawn(seed: int, *, convex: bool) -> list[list[Option]]:
    """Twelve items of two, three, four or eight bits, of which more cost less, each step by a factor or as drawn."""
    rng, items = random.Random(seed), []
    for _ in range(12):
        weights, worst = rng.choice([1, 3, 4, 12]), rng.lognormvariate(0, 2)
        factors = [1, 0.25, 0.06, 0.0003] if convex else sorted([rng.random() for _ in range(4)], reverse=True)
        bits = zip((2, 3, 4, 8), factors, strict=True)
        items.append([Option(count * weights, worst * factor) for count, factor in bits])
    return items


@pytest.mark.parametrize("convex", [True, False])
@pytest.mark.parametrize("seed", range(20))
def test_it_is_within_a_few_percent_of_the_optimum(seed: int, convex: bool) -> None:
    """In parts of the way from the smallest options to the optimum."""
    items = drawn(seed, convex=convex)
    weights, gaps = sum(options[0].size for options in items) / 2, []
    for bits in (2, 2.5, 3, 4, 6, 8):
        budget = int(bits * weights)
        chosen = choose(items, budget)
        assert chosen is not None
        assert size(items, chosen) <= budget
        best, worst = exact(items, budget), loss(items, [0] * 12)
        gaps.append((loss(items, chosen) - best) / (worst - best) if worst > best else 0.0)
    assert min(gaps) > -1e-9
    assert max(gaps) < 0.08
    assert fmean(gaps) < 0.03


def test_the_ends_of_the_budget() -> None:
    items = drawn(0, convex=True)
    least, most = size(items, [0] * 12), size(items, [3] * 12)
    assert choose(items, least) == [0] * 12
    assert choose(items, most) == [3] * 12
    assert choose(items, least - 1) is None
    assert choose([], 0) == []


def test_a_budget_is_not_spent_where_more_bits_cost_more() -> None:
    assert choose([[Option(2, -1.0), Option(4, 0.5)], [Option(2, 1.0), Option(4, 0.0)]], 100) == [0, 1]
