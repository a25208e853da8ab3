"""A method against dense on the same documents: difference, interval, test, and what could have been seen.

Every interval is that of the test beside it: it contains 0 exactly when p is above .05.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from harness.results.stats.conventions import Floats, Integers
from harness.results.stats.mcnemar import detectable, interval, mcnemar
from harness.results.stats.means import Bounds, bounds

Statistic = Callable[[Floats], Floats]
"""From documents' values [..., documents, parts] to the score [...]."""


@dataclass(frozen=True)
class Difference:
    """Method minus dense over n documents.

    Attributes:
        value: difference of the scores; ``low`` and ``high`` bound it at 95 %.
        p: two-sided probability of a difference as large if there were none, by the ``test``.
        gained, lost: documents on which the method scored higher, and lower.
        detectable: smallest difference that the test finds in four of five tries with this many documents.
        reason: why there is no interval, or nothing detectable.
    """

    value: float
    low: float | None
    high: float | None
    p: float | None
    test: Literal["mcnemar-exact", "t", "jackknife-t"]
    n: int
    gained: int
    lost: int
    detectable: float | None
    reason: str | None = None

    def noninferior(self, margin: float, *, higher_is_better: bool = True) -> bool | None:
        """Whether the interval leaves no room for a loss of ``margin`` or more; None without an interval."""
        if self.low is None or self.high is None:
            return None
        return self.low > -margin if higher_is_better else self.high < margin


def difference(dense: Floats, method: Floats, clusters: Integers | None = None) -> Difference:
    """Difference of two means over the same documents.

    Args:
        dense: each document's score, [documents].
        method: the same documents' scores, in the same order.
        clusters: numbers, from 0, of what each document is a copy of, [documents]; None where all are independent.

    Raises:
        ValueError: fewer than two documents, or different numbers of them.
    """
    if len(dense) != len(method) or len(dense) < 2:
        raise ValueError(f"cannot pair {len(dense)} with {len(method)} documents: at least 2 of the same are needed")
    change = method - dense
    gained, lost, n = int((change > 0).sum()), int((change < 0).sum()), len(change)
    value = float(change.mean())
    if clusters is None and are_binary(dense, method):
        least = detectable(n, lost + gained)
        reason = f"{n} documents: the exact test finds no difference of any size" if least is None else None
        low, high = interval(lost, gained, n)
        exact = Bounds(low, high, mcnemar(lost, gained), least, reason)
        return _difference(value, exact, "mcnemar-exact", change)
    limits = bounds(value, change, clusters, scale=_largest(dense, method))
    return _difference(value, limits.within(-1, 1) if are_shares(dense, method) else limits, "t", change)


def statistic_difference(
    dense: Floats, method: Floats, statistic: Statistic, clusters: Integers | None = None
) -> Difference:
    """Difference of a score that is no mean, such as perplexity.

    Args:
        dense: what each document adds to the score, [documents, parts].
        method: the same for the same documents.
        statistic: the score of values [..., documents, parts]; that of their mean is the same.
    """
    value = float(statistic(method) - statistic(dense))
    after, before = pseudo_values(method, statistic), pseudo_values(dense, statistic)
    limits = bounds(value, after - before, clusters, sizes_of(dense), _largest(after, before))
    return _difference(value, limits, "jackknife-t", method[:, 0] - dense[:, 0])


def pseudo_values(values: Floats, statistic: Statistic) -> Floats:
    """Tukey's pseudo-values of the documents, [documents]: what each adds to a score of values [documents, parts]."""
    n = len(values)
    without = (values.sum(axis=0) - values) / (n - 1)  # [documents, parts], the mean of all others
    pseudo: Floats = n * statistic(values) - (n - 1) * statistic(without[:, None, :])
    return pseudo


def sizes_of(values: Floats) -> Floats | None:
    """How much documents count in a score of values [documents, parts]: words or bytes, its second part, if any."""
    return values[:, 1] if values.shape[1] > 1 else None


def _difference(
    value: float, limits: Bounds, test: Literal["mcnemar-exact", "t", "jackknife-t"], change: Floats
) -> Difference:
    return Difference(
        value=value,
        low=limits.low,
        high=limits.high,
        p=limits.p,
        test=test,
        n=len(change),
        gained=int((change > 0).sum()),
        lost=int((change < 0).sum()),
        detectable=limits.detectable,
        reason=limits.reason,
    )


def _largest(*values: Floats) -> float:
    """The largest magnitude, to which the rounding of differences is relative."""
    return max(float(np.abs(each).max()) for each in values)


def are_binary(*scores: Floats) -> bool:
    """Whether all documents are right or wrong."""
    return set(np.unique(np.concatenate(scores))) <= {0.0, 1.0}


def are_shares(*scores: Floats) -> bool:
    """Whether all documents' scores lie between 0 and 1."""
    return all(score.min() >= 0 and score.max() <= 1 for score in scores)


def wilson(right: int, n: int) -> tuple[float, float]:
    """95 % interval of a share, by Wilson's score."""
    from scipy.stats import binomtest

    limits = binomtest(right, n).proportion_ci(method="wilson")
    return float(limits.low), float(limits.high)


def holm(values: Sequence[float]) -> list[float]:
    """p-values of several tests, adjusted by Holm's step-down method, in the order given."""
    adjusted, largest = [0.0] * len(values), 0.0
    for rank, index in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        largest = max(largest, min(1.0, (len(values) - rank) * values[index]))
        adjusted[index] = largest
    return adjusted
