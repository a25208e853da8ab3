"""Which points are worth having: the Pareto front of quality against cost."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

_NOISY: Final = ("measured", "estimated")


@dataclass(frozen=True)
class Point:
    """A method's cost (less is better) and quality (more is better), each with the 95 % interval around it.

    Attributes:
        cost_kind, quality_kind: how the numbers came about, such as "counted" or "measured" (see
            ``harness.results.baseline.Kind``); all points have the same. What is measured or estimated and has no
            interval is not exact: how much of it is chance is not known.
    """

    cost: float
    quality: float
    cost_interval: tuple[float, float] | None = None
    quality_interval: tuple[float, float] | None = None
    cost_kind: str = "counted"
    quality_kind: str = "scored"


def dominates(first: Point, second: Point) -> bool:
    """Whether the first is no worse in both and surely better in one: an interval that leaves the other out."""
    if first.cost > second.cost or first.quality < second.quality:
        return False
    return _apart(first.cost, first.cost_interval, second.cost, second.cost_interval, first.cost_kind) or _apart(
        first.quality, first.quality_interval, second.quality, second.quality_interval, first.quality_kind
    )


def front(points: Sequence[Point]) -> list[int]:
    """Indices of the points that no other dominates, by rising cost. Points that are only tied all stay."""
    kept = [
        index
        for index, point in enumerate(points)
        if not any(dominates(rival, point) for rival in points if rival is not point)
    ]
    return sorted(kept, key=lambda index: points[index].cost)


def _apart(
    a: float, around_a: tuple[float, float] | None, b: float, around_b: tuple[float, float] | None, kind: str
) -> bool:
    """Whether two values differ by more than chance; without intervals any difference of exact values counts."""
    if around_a is None or around_b is None:
        return a != b and kind not in _NOISY
    return (around_a[1] < b and a < around_b[0]) or (around_b[1] < a and b < around_a[0])
