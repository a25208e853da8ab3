"""How many times more or less something costs, with an interval: ratios of paired measurements and of sums."""

from dataclasses import dataclass

import numpy as np

from harness.results.stats.paired import RESAMPLES, SEED, Floats


@dataclass(frozen=True)
class Ratio:
    """Method over dense, below 1 where the method costs less; ``low`` and ``high`` bound it at 95 %."""

    value: float
    low: float
    high: float

    @property
    def decided(self) -> bool:
        """Whether the interval leaves out 1."""
        return self.low > 1 or self.high < 1


def paired_ratio(dense: Floats, method: Floats) -> Ratio:
    """Ratio of measurements that were interleaved: the geometric mean over prompts of the median over rounds.

    Two-level bootstrap: prompts are drawn, and for each of them rounds, independently of one prompt to the next.

    Args:
        dense: positive measurements, [prompts, rounds].
        method: those of the method for the same prompts in the same rounds.

    Raises:
        ValueError: the two have different shapes, or nothing in them.
    """
    if dense.shape != method.shape or dense.ndim != 2 or not dense.size:
        raise ValueError(f"measurements of shapes {dense.shape} and {method.shape} are not those of the same prompts")
    change = np.log(method) - np.log(dense)
    rng = np.random.default_rng(SEED)
    prompts, rounds = change.shape
    spread = np.empty(RESAMPLES)
    for index in range(RESAMPLES):
        drawn = change[rng.integers(0, prompts, prompts)]
        chosen = np.take_along_axis(drawn, rng.integers(0, rounds, (prompts, rounds)), axis=1)
        spread[index] = np.median(chosen, axis=1).mean()
    return _ratio(float(np.median(change, axis=1).mean()), spread)


def total_ratio(dense: Floats, method: Floats) -> Ratio:
    """Ratio of sums over the same documents, [documents] each, documents drawn in pairs."""
    rng = np.random.default_rng(SEED)
    draws = rng.integers(0, len(dense), (RESAMPLES, len(dense)))
    spread = np.log(method[draws].sum(axis=1)) - np.log(dense[draws].sum(axis=1))
    return _ratio(float(np.log(method.sum()) - np.log(dense.sum())), spread)


def _ratio(value: float, spread: Floats) -> Ratio:
    low, high = np.quantile(spread, [0.025, 0.975])
    return Ratio(float(np.exp(value)), float(np.exp(low)), float(np.exp(high)))
