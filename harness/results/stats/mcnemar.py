"""Right-or-wrong answers of two runs on the same documents: one exact test, the interval that goes with it, its power.

Only documents that one of the two alone got right, ``lost`` and ``gained`` of n, say which is better. The interval is
the exact test turned round: it contains 0 exactly when McNemar's p is above .05, stays within [-1, 1], and reaches
about 3.7 / n to both sides where nothing changed.

Sources: Gaffke, "Three test statistics for a nonparametric one-sided hypothesis on the mean of a nonnegative variable",
2005 (the bound; no case of less than the stated coverage is known, and ``tests/results/stats`` looks for one); Fay and
Lumbard, "Confidence intervals for difference in proportions for matched pairs compatible with exact McNemar's or sign
tests", 2021 (why it fits the test).
"""

from functools import cache
from typing import Final

import numpy as np

from harness.results.stats.conventions import LEVEL, POWER, Floats

FEWEST_CHANGES: Final = 6
"""So many changes, all in one direction, are the fewest with p < .05."""
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(64)
_NEGLIGIBLE: Final = 1e-12  # of a probability


def mcnemar(lost: int, gained: int) -> float:
    """Exact two-sided p of McNemar's test.

    Args:
        lost: documents that dense alone got right.
        gained: documents that the method alone got right.
    """
    return min(1.0, 2 * _tail(min(lost, gained), lost + gained))


def _tail(count: int, changed: int) -> float:
    from scipy.stats import binom

    return float(binom.cdf(count, changed, 0.5))


def interval(lost: int, gained: int, n: int) -> tuple[float, float]:
    """95 % interval of the difference of two shares of right answers, gained - lost over n documents."""
    return -_upper(gained, lost, n), _upper(lost, gained, n)


@cache
def detectable(n: int, changed: int) -> float | None:
    """Smallest difference that the exact test finds in 80 % of tries; None if n documents cannot show any.

    Answers change at the observed rate, ``changed`` of n; where too few do for that, at the least rate that is seen in
    80 % of tries if all changes go in one direction.
    """
    from scipy.optimize import brentq
    from scipy.special import betaincinv
    from scipy.stats import binom

    if n < FEWEST_CHANGES:
        return None
    rate = changed / n
    in_one_direction = float(betaincinv(FEWEST_CHANGES, n - FEWEST_CHANGES + 1, POWER))
    if rate <= in_one_direction:
        return in_one_direction
    counts = np.arange(binom.ppf(_NEGLIGIBLE, n, rate), binom.isf(_NEGLIGIBLE, n, rate) + 1)  # [counts], of changes
    weights = binom.pmf(counts, n, rate)  # [counts]
    most = binom.ppf(LEVEL / 2, counts, 0.5) - 1  # [counts], changes in the rarer direction for p < .05

    def power(difference: float) -> float:
        share = (1 + difference / rate) / 2
        return float(weights @ (binom.cdf(most, counts, share) + binom.cdf(most, counts, 1 - share)))

    return float(brentq(lambda difference: power(difference) - POWER, 0.0, rate, xtol=1e-9))


@cache
def _upper(lost: int, gained: int, n: int) -> float:
    """The upper limit: the 97.5 % point of w_gained - w_lost.

    The weights w are those of the documents and of one more, which the method alone got right: (w_gained, w_lost, rest)
    is Dirichlet(gained + 1, lost, n - lost - gained). So rate = w_gained + w_lost is Beta(changed + 1, n - changed)
    and, independently, share = w_gained / rate is Beta(gained + 1, lost), and w_gained - w_lost = rate (2 share - 1).
    """
    from scipy.optimize import brentq
    from scipy.special import betainc, betaincinv, betaln, xlog1py, xlogy

    if gained == n:
        return 1.0
    changed = lost + gained

    def share_above(bound: Floats) -> Floats:
        inside = np.clip(bound, 0, 1)
        above: Floats = 1 - betainc(gained + 1, lost, inside) if lost else (inside < 1).astype(float)
        return above

    def quantiles(a: int, b: int) -> tuple[float, float]:
        """Outside of which a Beta variable practically never is."""
        return (betaincinv(a, b, _NEGLIGIBLE), 1 - betaincinv(b, a, _NEGLIGIBLE)) if b else (1.0, 1.0)

    least, most = quantiles(changed + 1, n - changed)
    shares = [share for share in quantiles(gained + 1, lost) if share != 0.5]

    def above(limit: float) -> float:
        """P(w_gained - w_lost > limit)."""
        if changed == n:
            return float(share_above(np.array((1 + limit) / 2)))
        # over the rate, in pieces between which the share's probability begins and ends to be 0 or 1
        edges = np.unique(np.clip([least, most, *(limit / (2 * share - 1) for share in shares)], least, most))
        half = np.diff(edges)[:, None] / 2  # [pieces, 1]
        rates = edges[:-1, None] + half * (1 + _NODES)  # [pieces, nodes]
        logs = xlogy(changed, rates) + xlog1py(n - changed - 1, -rates) - betaln(changed + 1, n - changed)
        return float((half * _WEIGHTS * np.exp(logs) * share_above((1 + limit / rates) / 2)).sum())

    # at 0 this is the test's own probability, so the sign of the limit is the test's decision
    between = (0.0, 1.0) if _tail(gained, changed) > LEVEL / 2 else (-1.0, 0.0)
    return float(brentq(lambda limit: above(limit) - LEVEL / 2, *between, xtol=1e-13))
