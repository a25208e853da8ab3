"""A sample of timings in a few numbers, with percentiles only where the sample is large enough for them.

Source of the sizes: MLPerf Inference's early stopping (loadgen, confidence 0.99, tolerance 0): a percentile p can be
stated with t larger queries set aside once n queries satisfy BinomCDF(t; n, 1 - p) <= 0.01.
"""

from functools import cache
from itertools import count
from typing import Final

import numpy as np

from harness.results.costs import Summary
from harness.results.stats.conventions import Floats

CONFIDENCE: Final = 0.99
RESAMPLES: Final = 2000
SEED: Final = 20240611


def summarize(values: Floats) -> Summary:
    """The summary of measurements in the order in which they were made.

    Raises:
        ValueError: there are none.
    """
    if not len(values):
        raise ValueError("no measurements")
    median = float(np.median(values))
    lower, upper = np.quantile(values, [0.25, 0.75])
    draws = np.random.default_rng(SEED).integers(0, len(values), (RESAMPLES, len(values)))
    low, high = np.quantile(np.median(values[draws], axis=1), [0.025, 0.975])
    return Summary(
        n=len(values),
        min=float(values.min()),
        median=median,
        median_low=float(low),
        median_high=float(high),
        mad=float(np.median(np.abs(values - median))),
        relative_iqr=float(upper - lower) / median if median else 0.0,
        p90=percentile(values, 0.90),
        p95=percentile(values, 0.95),
        p99=percentile(values, 0.99),
        drift=_drift(values),
    )


@cache
def queries_needed(share: float, set_aside: int = 0) -> int:
    """Smallest sample that may state the percentile with so many larger measurements set aside."""
    from scipy.stats import binom

    # no smaller n can do with t set aside than with none
    start = set_aside + 1 if set_aside == 0 else queries_needed(share)
    return next(n for n in count(start) if binom.cdf(set_aside, n, 1 - share) <= 1 - CONFIDENCE)


def percentile(values: Floats, share: float) -> float | None:
    """The percentile as MLPerf estimates it, from above; None if the sample is too small."""
    if len(values) < queries_needed(share):
        return None
    set_aside = 0
    while len(values) >= queries_needed(share, set_aside + 1):
        set_aside += 1
    return float(np.sort(values)[-1 - set_aside])


def _drift(values: Floats) -> float | None:
    from scipy.stats import spearmanr

    if len(values) < 3 or values.min() == values.max():
        return None
    return float(spearmanr(np.arange(len(values)), values).statistic)
