"""The scores of a run with their own intervals."""

from collections.abc import Sequence

import numpy as np

from harness.results.documents import mean, statistic_of, values_of
from harness.results.samples import SampleLine
from harness.results.scores import Score
from harness.results.stats.paired import Z_95, Floats, wilson


def with_intervals(scores: Sequence[Score], lines: Sequence[SampleLine]) -> list[Score]:
    """The scores with their 95 % intervals: Wilson's for shares of right answers, else from the standard error."""
    return [_with_interval(score, values_of(score, lines)) for score in scores]


def _with_interval(score: Score, values: Floats | None) -> Score:
    low = high = None
    if score.value is not None and values is not None and statistic_of(score, values) is mean:
        right = values[:, 0]  # [documents]
        if set(np.unique(right)) <= {0.0, 1.0}:
            low, high = wilson(int(right.sum()), len(right))
    if low is None and score.value is not None and score.stderr is not None:
        low, high = score.value - Z_95 * score.stderr, score.value + Z_95 * score.stderr
    return score.model_copy(update={"low": low, "high": high})
