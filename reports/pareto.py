"""Which methods are worth their cost: dominance that respects uncertainty, and the hypervolume of a front."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Point:
    """A method's cost (less is better) and quality (more is better), each with a 95 % interval or None."""

    cost: float
    quality: float
    cost_interval: tuple[float, float] | None = None
    quality_interval: tuple[float, float] | None = None


def dominates(one: Point, other: Point) -> bool:
    """Whether one is at least as good in both and surely better in one: intervals that overlap leave a tie.

    A cost without an interval is a count and exact. Two intervals that do not overlap are a stricter test than an
    interval of the difference that excludes 0, so a front errs towards calling methods tied.
    """
    if one.cost > other.cost or one.quality < other.quality:
        return False
    cheaper = _top(one.cost, one.cost_interval) < _bottom(other.cost, other.cost_interval)
    better = _bottom(one.quality, one.quality_interval) > _top(other.quality, other.quality_interval)
    return cheaper or better


def front(points: Sequence[Point]) -> list[int]:
    """The points that no other surely dominates, by index, the cheapest first."""
    kept = [i for i, point in enumerate(points) if not any(dominates(other, point) for other in points)]
    return sorted(kept, key=lambda i: (points[i].cost, -points[i].quality))


def hypervolume(points: Sequence[Point], cost_reference: float, quality_reference: float) -> float:
    """Area that the points dominate up to a fixed reference, by their estimates alone.

    Sort by cost, keep strictly improving quality, and sum (next cost - cost) * (quality - reference); the last next
    cost is the reference. Points beyond the reference count nothing.
    """
    inside = [p for p in points if p.cost < cost_reference and p.quality > quality_reference]
    steps: list[Point] = []
    for point in sorted(inside, key=lambda p: (p.cost, -p.quality)):
        if not steps or point.quality > steps[-1].quality:
            steps.append(point)
    if not steps:
        return 0.0
    ends = [*(step.cost for step in steps[1:]), cost_reference]
    return sum((end - p.cost) * (p.quality - quality_reference) for p, end in zip(steps, ends, strict=True))


def _bottom(value: float, interval: tuple[float, float] | None) -> float:
    return interval[0] if interval else value


def _top(value: float, interval: tuple[float, float] | None) -> float:
    return interval[1] if interval else value
