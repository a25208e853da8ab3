"""An estimate from independent documents with its interval and test: Student's t, corrected for skewness.

The interval is the wider of two at each side, Student's and that of Hall's transformed t, and p the larger of theirs,
so that the interval contains 0 exactly when p is above .05. Of 20 log-normal values Student's alone covers 87 %.

Sources: Hall, "On the removal of skewness by transformation", 1992; Bobée and Robitaille, "Correction of bias in the
estimation of the coefficient of skewness", 1975 (Hazen's factor for small samples); Miller, "Adding Error Bars to
Evals", arXiv:2411.00640 (clusters), with the factor k/(k - 1) and t of k - 1 degrees of freedom for k clusters; Kish,
"Survey Sampling", 1965 (how many documents of one size those of several sizes are worth).
"""

import math
from dataclasses import dataclass
from typing import Final, Self

import numpy as np

from harness.results.stats.conventions import LEVEL, POWER, Floats, Integers

LEAST_UNITS: Final = 10
LEAST_VARIED: Final = 5
"""Documents that must differ from the most common value: samples with fewer often miss what is rare."""
_EQUAL_TO: Final = 1e-9
"""Values are alike that differ by no more than this part of what they were computed from: that much is rounding."""


@dataclass(frozen=True)
class Bounds:
    """A 95 % interval around an estimate, or the ``reason`` why there is none.

    Attributes:
        p: two-sided probability of an estimate as far from 0 if the truth were 0.
        detectable: smallest truth that this test finds in 80 % of tries.
    """

    low: float | None = None
    high: float | None = None
    p: float | None = None
    detectable: float | None = None
    reason: str | None = None

    def within(self, least: float, most: float) -> Self:
        """The same, no further than a score can be."""
        if self.low is None or self.high is None:
            return self
        return type(self)(max(self.low, least), min(self.high, most), self.p, self.detectable, self.reason)


def bounds(
    estimate: float,
    values: Floats,
    clusters: Integers | None = None,
    weights: Floats | None = None,
    scale: float | None = None,
) -> Bounds:
    """The interval of an estimate whose error is the mean error of ``values``.

    Args:
        values: what each document contributes, [documents]: its own value for a mean, a pseudo-value for others.
        clusters: the number of the cluster that each belongs to, from 0; None where all are independent.
        weights: how much each counts in the estimate, [documents]; None where all count the same.
        scale: the largest number that the values are differences of; None where they are none (see ``varied``).
    """
    from scipy.special import stdtr, stdtrit

    own = np.arange(len(values)) if clusters is None else clusters  # [documents]
    counts = np.ones(len(values)) if weights is None else weights  # [documents]
    sizes = np.bincount(own).astype(float)  # [units]
    means = np.bincount(own, weights=values) / sizes  # [units]
    if (reason := too_few(means, np.bincount(own, weights=counts).astype(float), scale)) is not None:
        return Bounds(reason=reason)
    k, units = len(means), sizes * (means - values.mean())  # [units], what each adds to the sum's error
    error = math.sqrt(k / (k - 1) * float((units**2).sum())) / len(values)
    skewness = _skewness(units) / math.sqrt(k)
    point = float(stdtrit(k - 1, 1 - LEVEL / 2))
    t = estimate / error
    transformed = t + skewness * t**2 / 3 + skewness**2 * t**3 / 27 + skewness / 6
    below, above = (max(stdtr(k - 1, sign * t), stdtr(k - 1, sign * transformed)) for sign in (1, -1))
    low = estimate - error * max(point, _untransformed(point, skewness))
    high = estimate - error * min(-point, _untransformed(-point, skewness))
    return Bounds(
        low=low,
        high=high,
        p=min(1.0, 2 * float(min(below, above))),
        detectable=max(estimate - low, high - estimate) + float(stdtrit(k - 1, POWER)) * error,
    )


def too_few(values: Floats, weights: Floats, scale: float | None = None) -> str | None:
    """Why independent units, of values and weights [units], say too little of what others are like; None if enough."""
    k, effective = len(values), float(weights.sum() ** 2 / (weights**2).sum())
    if k < LEAST_UNITS:
        return f"{k} documents: an interval needs at least {LEAST_UNITS}"
    if effective < LEAST_UNITS:
        return f"{k} documents that count like {effective:.1f} of one size: an interval needs at least {LEAST_UNITS}"
    if (others := varied(values, scale)) < LEAST_VARIED:
        alike = "all" if others == 0 else f"all but {others}"
        return f"{alike} of {k} documents are alike: how often others are not cannot be told"
    return None


def varied(values: Floats, scale: float | None = None) -> int:
    """How many values, [units], are not the most common one, up to rounding.

    Args:
        scale: the largest number that the values are differences of, to which rounding is relative; None takes theirs.
    """
    ordered = np.sort(values)
    tolerance = _EQUAL_TO * (np.abs(values).max() if scale is None else scale)
    alike = np.searchsorted(ordered, ordered + tolerance, side="right") - np.arange(len(ordered))  # [units]
    return len(values) - int(alike.max())


def _untransformed(point: float, skewness: float) -> float:
    """The t whose transform is the point."""
    if abs(skewness) < 1e-9:
        return point
    return float(3 / skewness * (np.cbrt(1 + skewness * (point - skewness / 6)) - 1))


def _skewness(units: Floats) -> float:
    """Skewness of units with mean 0, [units], without the bias that small samples have."""
    k = len(units)
    raw = float((units**3).mean() / (units**2).mean() ** 1.5)
    return raw * math.sqrt(k * (k - 1)) / (k - 2) * (1 + 8.5 / k)
