"""Sets of points of which every coordinate is to be small: which are worth having, and how much they cover together."""

from collections.abc import Sequence
from typing import Final

import numpy as np

Point = tuple[float, ...]
_AT_AN_END: Final = float("inf")


def dominates(first: Point, second: Point) -> bool:
    """Whether the first is no worse in anything and better in something."""
    return first != second and all(a <= b for a, b in zip(first, second, strict=True))


def front(points: Sequence[Point]) -> list[int]:
    """Indices of the points that no other dominates, in their order; equal points all stay."""
    return [index for index, point in enumerate(points) if not any(dominates(rival, point) for rival in points)]


def ranked(points: Sequence[Point]) -> list[int]:
    """Indices of all points, the best first: front after front, in each those first that have most room around them.

    NSGA-II's order (Deb et al., 2002).
    """
    order, left = list[int](), list(range(len(points)))
    while left:
        members = [left[place] for place in front([points[index] for index in left])]
        room = _room([points[index] for index in members])
        order += [index for _, index in sorted(zip((-each for each in room), members, strict=True))]
        left = [index for index in left if index not in set(members)]
    return order


def _room(points: Sequence[Point]) -> list[float]:
    """The crowding distance of each point: the sides of the box between its neighbours, in shares of the whole."""
    values = np.array(points, dtype=float)  # [points, objectives]
    room = np.zeros(len(values))  # [points]
    for each in values.T:
        order = np.argsort(each, kind="stable")
        room[order[[0, -1]]] = _AT_AN_END
        if (width := each[order[-1]] - each[order[0]]) > 0:
            room[order[1:-1]] += (each[order[2:]] - each[order[:-2]]) / width
    return [float(each) for each in room]


def hypervolume(points: Sequence[Point], reference: Point) -> float:
    """The volume of what the points dominate within the reference point: exact, in any number of objectives.

    Slices along the first coordinate (Zitzler and Thiele, 1998; While et al., 2006).
    """
    within = sorted({point for point in points if all(x < most for x, most in zip(point, reference, strict=True))})
    if not within:
        return 0.0
    if len(reference) == 1:
        return reference[0] - within[0][0]
    ends = [point[0] for point in within[1:]] + [reference[0]]
    return sum(
        (end - point[0]) * hypervolume([each[1:] for each in within[: number + 1]], reference[1:])
        for number, (point, end) in enumerate(zip(within, ends, strict=True))
        if end > point[0]
    )
