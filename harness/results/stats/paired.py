"""A method against dense on the same documents: difference, interval, test, and what could have been seen.

Sources: Miller, "Adding Error Bars to Evals", arXiv:2411.00640 (paired differences, power); McNemar's test in its
exact form for right-or-wrong scores; non-inferiority instead of "no significant difference".
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

RESAMPLES: Final = 2000
SEED: Final = 20240611
Z_95: Final = 1.959963984540054
Z_POWER: Final = 0.8416212335729143
"""The 80 % point of the normal distribution: the power at which a difference counts as detectable."""

Floats = NDArray[np.float64]
Statistic = Callable[[Floats], Floats]
"""From documents' values [..., documents, parts] to the score [...]."""


@dataclass(frozen=True)
class Difference:
    """Method minus dense over n documents.

    Attributes:
        value: difference of the scores; ``low`` and ``high`` bound it at 95 %.
        p: two-sided probability of a difference as large if there were none.
        test: that gave ``p``.
        gained, lost: documents on which the method scored higher, and lower.
        detectable: smallest difference that this many documents show in four of five tries at the 5 % level.
    """

    value: float
    low: float
    high: float
    p: float
    test: Literal["mcnemar-exact", "sign-flip", "bootstrap"]
    n: int
    gained: int
    lost: int
    detectable: float | None

    def noninferior(self, margin: float, *, higher_is_better: bool = True) -> bool:
        """Whether the interval leaves no room for a loss of ``margin`` or more."""
        return self.low > -margin if higher_is_better else self.high < margin


def difference(dense: Floats, method: Floats) -> Difference:
    """Difference of two means over the same documents.

    Args:
        dense: each document's score, [documents].
        method: the same documents' scores, in the same order.

    Raises:
        ValueError: fewer than two documents, or different numbers of them.
    """
    if len(dense) != len(method) or len(dense) < 2:
        raise ValueError(f"cannot pair {len(dense)} with {len(method)} documents: at least 2 of the same are needed")
    change = method - dense
    gained, lost = int((change > 0).sum()), int((change < 0).sum())
    error = float(change.std(ddof=1)) / math.sqrt(len(change))
    value = float(change.mean())
    binary = set(np.unique(np.concatenate([dense, method]))) <= {0.0, 1.0}
    return Difference(
        value=value,
        low=value - Z_95 * error,
        high=value + Z_95 * error,
        p=mcnemar(lost, gained) if binary else sign_flip(change),
        test="mcnemar-exact" if binary else "sign-flip",
        n=len(change),
        gained=gained,
        lost=lost,
        detectable=detectable_difference(change),
    )


def statistic_difference(dense: Floats, method: Floats, statistic: Statistic) -> Difference:
    """Difference of a score that is no mean, such as perplexity, by resampling documents in pairs.

    Args:
        dense: what each document adds to the score, [documents, parts].
        method: the same for the same documents.
        statistic: the score of values [..., documents, parts].
    """
    rng, n = np.random.default_rng(SEED), len(dense)
    draws = rng.integers(0, n, (RESAMPLES, n))  # [resamples, documents]
    # in twenty parts: values[draws] is [resamples, documents, parts]
    spread = np.concatenate([statistic(method[part]) - statistic(dense[part]) for part in np.array_split(draws, 20)])
    low, high = np.quantile(spread, [0.025, 0.975])
    beyond = min((spread <= 0).mean(), (spread >= 0).mean())
    change = method[:, 0] - dense[:, 0]
    return Difference(
        value=float(statistic(method) - statistic(dense)),
        low=float(low),
        high=float(high),
        p=min(1.0, 2 * max(float(beyond), 1 / RESAMPLES)),
        test="bootstrap",
        n=n,
        gained=int((change > 0).sum()),
        lost=int((change < 0).sum()),
        detectable=float((Z_95 + Z_POWER) * spread.std()),
    )


def mcnemar(lost: int, gained: int) -> float:
    """Exact two-sided p of McNemar's test.

    Args:
        lost: documents that dense alone got right.
        gained: documents that the method alone got right.
    """
    from scipy.stats import binom

    changed, fewer = lost + gained, min(lost, gained)
    if not changed:
        return 1.0
    return min(1.0, 2 * float(binom.cdf(fewer, changed, 0.5)))


def sign_flip(change: Floats) -> float:
    """Two-sided p of a mean change, [documents], by flipping signs at random."""
    observed = abs(change.sum())
    if observed == 0:
        return 1.0
    signs = np.random.default_rng(SEED).integers(0, 2, (RESAMPLES, len(change))) * 2 - 1  # [resamples, documents]
    beyond = int((np.abs(signs @ change) >= observed * (1 - 1e-12)).sum())
    return (beyond + 1) / (RESAMPLES + 1)


def detectable_difference(change: Floats) -> float | None:
    """Smallest mean difference found in 80 % of tries at the 5 % level; None if no document changed.

    From n = (z_0.975 + z_0.8)^2 (psi - d^2) / d^2 with psi the mean squared change, which for right-or-wrong scores is
    the discordant rate.
    """
    psi = float((change**2).mean())
    if not psi:
        return None
    factor = (Z_95 + Z_POWER) ** 2
    return math.sqrt(factor * psi / (len(change) + factor))


def wilson(right: int, n: int) -> tuple[float, float]:
    """95 % interval of a share, by Wilson's score."""
    from scipy.stats import binomtest

    interval = binomtest(right, n).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def holm(values: Sequence[float]) -> list[float]:
    """p-values of several tests, adjusted by Holm's step-down method, in the order given."""
    adjusted, largest = [0.0] * len(values), 0.0
    for rank, index in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        largest = max(largest, min(1.0, (len(values) - rank) * values[index]))
        adjusted[index] = largest
    return adjusted
