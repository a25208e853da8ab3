"""Which points are worth having: the Pareto front of quality against cost, and its hypervolume."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True)
class Point:
    """A method's cost (less is better) and quality (more is better), each with the 95 % interval around it."""

    cost: float
    quality: float
    cost_interval: tuple[float, float] | None = None
    quality_interval: tuple[float, float] | None = None


def dominates(first: Point, second: Point) -> bool:
    """Whether the first is no worse in both and surely better in one: an interval that leaves the other out."""
    if first.cost > second.cost or first.quality < second.quality:
        return False
    return _apart(first.cost, first.cost_interval, second.cost, second.cost_interval) or _apart(
        first.quality, first.quality_interval, second.quality, second.quality_interval
    )


def front(points: Sequence[Point]) -> list[int]:
    """Indices of the points that no other dominates, by rising cost. Points that are only tied all stay."""
    kept = [
        index
        for index, point in enumerate(points)
        if not any(dominates(other, point) for other in points if other is not point)
    ]
    return sorted(kept, key=lambda index: points[index].cost)


def hypervolume(points: Sequence[tuple[float, float]], reference: tuple[float, float]) -> float:
    """Area between the front of (cost, quality) points and a reference that is worse in both.

    Points at or beyond the reference add nothing. Use the logarithm of the cost where costs span more than 4 times.
    """
    worst_cost, worst_quality = reference
    steps: list[tuple[float, float]] = []
    for cost, quality in sorted(points, key=lambda point: (point[0], -point[1])):
        if cost < worst_cost and quality > (steps[-1][1] if steps else worst_quality):
            steps.append((cost, quality))
    corners = [*steps, (worst_cost, worst_quality)]
    return sum((after - cost) * (quality - worst_quality) for (cost, quality), (after, _) in pairwise(corners))


def _apart(a: float, around_a: tuple[float, float] | None, b: float, around_b: tuple[float, float] | None) -> bool:
    """Whether two values differ by more than chance; without intervals any difference counts."""
    if around_a is None or around_b is None:
        return a != b
    return (around_a[1] < b and a < around_b[0]) or (around_b[1] < a and b < around_a[0])
