"""The scores of a run with their own intervals."""

import math
from collections.abc import Sequence
from typing import Final

from harness.results.documents import clusters_of, mean, statistic_of, values_of
from harness.results.samples import SampleLine
from harness.results.scores import Score
from harness.results.stats.means import LEAST_UNITS, Bounds, bounds
from harness.results.stats.paired import are_binary, are_shares, pseudo_values, sizes_of, wilson

_SHARES: Final = ("acc", "exact_match", "f1")
"""How the names of scores begin that lie between 0 and 1 whatever they are made of."""


def with_intervals(scores: Sequence[Score], lines: Sequence[SampleLine]) -> list[Score]:
    """The scores with their 95 % intervals: Wilson's for shares of right answers, else Student's."""
    intervals = [_interval(score, lines) for score in scores]
    return [
        score.model_copy(update={"low": interval.low, "high": interval.high})
        for score, interval in zip(scores, intervals, strict=True)
    ]


def _interval(score: Score, lines: Sequence[SampleLine]) -> Bounds:
    values = values_of(score, lines)  # [documents, parts]
    statistic = None if values is None else statistic_of(score, values)
    if score.value is None:
        return Bounds()
    if values is None or statistic is None:
        return _from_error(score)
    if len(values) < 2:
        return Bounds()
    clusters = clusters_of(score, lines)
    if statistic is not mean:
        return bounds(score.value, pseudo_values(values, statistic), clusters, sizes_of(values)).within(0, math.inf)
    each = values[:, 0]  # [documents]
    if clusters is None and are_binary(each):
        return Bounds(*wilson(int(each.sum()), len(each)))
    found = bounds(score.value, each, clusters)
    return found.within(0, 1) if are_shares(each) else found


def _from_error(score: Score) -> Bounds:
    """By lm-eval's standard error, of a score that its documents do not reproduce."""
    from scipy.special import stdtrit

    if score.value is None or not score.stderr or score.n < LEAST_UNITS:
        return Bounds()
    width = float(stdtrit(score.n - 1, 0.975)) * score.stderr
    found = Bounds(score.value - width, score.value + width)
    is_share = score.metric.startswith(_SHARES) and 0 <= score.value <= 1
    return found.within(0, 1) if is_share else found
