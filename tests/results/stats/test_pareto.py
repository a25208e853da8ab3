"""Fronts respect uncertainty."""

import pytest

from harness.results.stats.pareto import Point, dominates, front

POINTS = [(1.0, 0.70), (0.6, 0.68), (0.4, 0.60), (0.5, 0.55)]


def test_front():
    assert front([Point(*point) for point in POINTS]) == [2, 1, 0]


def test_points_that_differ_by_chance_are_tied():
    better = Point(0.5, 0.70, quality_interval=(0.66, 0.74))
    worse = Point(0.5, 0.69, quality_interval=(0.65, 0.73))
    assert not dominates(better, worse)
    assert front([better, worse]) == [0, 1]
    assert dominates(better, Point(0.5, 0.60, quality_interval=(0.56, 0.64)))
    assert dominates(Point(0.4, 0.70, (0.39, 0.41), (0.66, 0.74)), Point(0.5, 0.69, (0.49, 0.51), (0.65, 0.73)))
    assert not dominates(worse, better)


@pytest.mark.parametrize(
    ("kind", "kept"), [("counted", [0]), ("modelled", [0]), ("measured", [0, 1]), ("estimated", [0, 1])]
)
def test_what_is_measured_without_an_interval_separates_nothing(kind, kept):
    assert front([Point(0.4, 0.7, cost_kind=kind), Point(0.5, 0.7, cost_kind=kind)]) == kept
    around = (0.39, 0.41)
    assert front([Point(0.4, 0.7, around, cost_kind=kind), Point(0.5, 0.7, cost_kind=kind)]) == kept
    # dense over itself is exactly 1
    assert front([Point(0.4, 0.7, around, cost_kind=kind), Point(1.0, 0.7, (1.0, 1.0), cost_kind=kind)]) == [0]
    assert front([Point(0.5, 0.7, quality_kind=kind), Point(0.5, 0.6, quality_kind=kind)]) == kept
