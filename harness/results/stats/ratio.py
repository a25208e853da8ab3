"""How many times more or less something costs, with an interval: ratios of paired measurements and of sums."""

import math
from dataclasses import dataclass
from typing import Final

import numpy as np

from harness.results.stats.conventions import LEVEL, Floats
from harness.results.stats.means import bounds, too_few, varied

LEAST_PROMPTS: Final = 6
LEAST_ALIKE: Final = 100
"""Documents that must have the same ratio before it counts as everybody's."""


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

    The interval is Student's, of one log ratio a prompt, as rounds of a prompt tell nothing of other prompts. Where
    rounds differ by more than prompts do, because noise lasts for a whole turn, it is as wide as that.

    Args:
        dense: positive measurements, [prompts, rounds].
        method: those of the method for the same prompts in the same rounds.

    Raises:
        ValueError: the two have different shapes, or nothing in them.
    """
    from scipy.special import stdtrit

    if dense.shape != method.shape or dense.ndim != 2 or not dense.size:
        raise ValueError(f"measurements of shapes {dense.shape} and {method.shape} are not those of the same prompts")
    change = np.log(method) - np.log(dense)  # [prompts, rounds]
    logs = np.median(change, axis=1)  # [prompts]
    value, k = float(logs.mean()), len(logs)
    if k < LEAST_PROMPTS:
        return Ratio(float(np.exp(value)), reason=f"{k} prompts: an interval needs at least {LEAST_PROMPTS}")
    if not varied(logs, scale=1.0):  # logs of ratios near 1
        return Ratio(float(np.exp(value)), reason=f"the same ratio for each of {k} prompts: no noise to estimate")
    errors = [_standard_error(side) for side in (logs, np.median(change, axis=0)) if len(side) > 1]
    width = float(stdtrit(k - 1, 1 - LEVEL / 2)) * max(errors)
    return Ratio(float(np.exp(value)), float(np.exp(value - width)), float(np.exp(value + width)))


def total_ratio(dense: Floats, method: Floats) -> Ratio:
    """Ratio of sums over the same documents, [documents] each; a point where it is the same for each of very many.

    The interval is that of the log ratio, to which a document adds (method - ratio x dense) / mean of the method's, and
    more the larger its share of dense's sum is, as it has drawn the ratio to itself (MacKinnon and White's HC3, 1985).
    """
    value = float(method.sum() / dense.sum())
    if len(dense) >= LEAST_ALIKE and not varied(method / dense):
        return Ratio(value, value, value)
    if (reason := too_few(method / dense, dense)) is not None:
        return Ratio(value, reason=reason)
    parts = (method - value * dense) / method.mean() / (1 - dense / dense.sum())  # [documents]
    interval = bounds(0.0, parts, weights=dense, scale=float((method / method.mean()).max()))
    if interval.low is None or interval.high is None:
        return Ratio(value, reason=interval.reason)
    return Ratio(value, value * float(np.exp(interval.low)), value * float(np.exp(interval.high)))


def _standard_error(values: Floats) -> float:
    return float(values.std(ddof=1)) / math.sqrt(len(values))
