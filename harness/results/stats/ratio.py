"""How many times more or less something costs, with an interval: ratios of paired measurements and of sums."""

from dataclasses import dataclass
from typing import Final

import numpy as np

from harness.results.stats.conventions import LEVEL, Floats
from harness.results.stats.means import LEAST_UNITS, bounds, varied

LEAST_PROMPTS: Final = 6


@dataclass(frozen=True)
class Ratio:
    """Method over dense, below 1 where the method costs less; ``low`` and ``high`` bound it at 95 %.

    Attributes:
        reason: why there is no interval.
    """

    value: float
    low: float | None = None
    high: float | None = None
    reason: str | None = None

    @property
    def decided(self) -> bool:
        """Whether an interval leaves out 1."""
        return self.low is not None and self.high is not None and (self.low > 1 or self.high < 1)


def paired_ratio(dense: Floats, method: Floats) -> Ratio:
    """Ratio of measurements that were interleaved: the geometric mean over prompts of the median over rounds.

    The interval is Student's, of one log ratio a prompt: rounds of a prompt tell nothing of other prompts.

    Args:
        dense: positive measurements, [prompts, rounds].
        method: those of the method for the same prompts in the same rounds.

    Raises:
        ValueError: the two have different shapes, or nothing in them.
    """
    from scipy.special import stdtrit

    if dense.shape != method.shape or dense.ndim != 2 or not dense.size:
        raise ValueError(f"measurements of shapes {dense.shape} and {method.shape} are not those of the same prompts")
    logs = np.median(np.log(method) - np.log(dense), axis=1)  # [prompts]
    value, k = float(logs.mean()), len(logs)
    if k < LEAST_PROMPTS:
        return Ratio(float(np.exp(value)), reason=f"{k} prompts: an interval needs at least {LEAST_PROMPTS}")
    if not varied(logs):
        return Ratio(float(np.exp(value)), reason=f"the same ratio for each of {k} prompts: no noise to estimate")
    width = float(stdtrit(k - 1, 1 - LEVEL / 2)) * float(logs.std(ddof=1)) / np.sqrt(k)
    return Ratio(float(np.exp(value)), float(np.exp(value - width)), float(np.exp(value + width)))


def total_ratio(dense: Floats, method: Floats) -> Ratio:
    """Ratio of sums over the same documents, [documents] each; a point where it is the same for every document.

    The interval is that of the log ratio, to which a document adds (method - ratio x dense) / mean of the method's.
    """
    value = float(method.sum() / dense.sum())
    parts = (method - value * dense) / method.mean()  # [documents]
    if len(parts) >= LEAST_UNITS and not varied(method / dense):
        return Ratio(value, value, value)
    found = bounds(0.0, parts)
    if found.low is None or found.high is None:
        return Ratio(value, reason=found.reason)
    return Ratio(value, value * float(np.exp(found.low)), value * float(np.exp(found.high)))
