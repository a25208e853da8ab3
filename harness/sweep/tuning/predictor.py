"""What a candidate will measure, by those that were measured: a ridge regression on which choice each setting has."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

Candidate = tuple[int, ...]
"""For each setting, which of its choices."""
Floats = NDArray[np.float64]
_PENALTIES: Final = tuple(10.0**power for power in range(-3, 4))


def one_hot(candidates: Sequence[Candidate], sizes: Sequence[int]) -> Floats:
    """A column for each choice of each setting, [candidates, choices]."""
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(int)  # [settings]
    columns = np.asarray(candidates, dtype=int) + starts  # [candidates, settings]
    encoded = np.zeros((len(candidates), int(sum(sizes))))
    np.put_along_axis(encoded, columns, 1.0, axis=1)
    return encoded


@dataclass(frozen=True)
class Ridge:
    """Measured value = ``base`` + the sum of what each choice adds; the penalty by leaving one out at a time.

    After the predictors of LINAS (arXiv:2205.10358), of one objective each.

    Attributes:
        error: root mean square of how far off each measured candidate is as the others predict it.
    """

    base: float
    added: Floats  # [choices]
    sizes: tuple[int, ...]
    error: float

    @classmethod
    def fitted(cls, candidates: Sequence[Candidate], values: Sequence[float], sizes: Sequence[int]) -> Self:
        """The regression on measured candidates.

        The penalty is the one of least squared error of each candidate as the others predict it, which has a closed
        form: the residual over 1 - the candidate's own leverage (Hastie et al., 2009, 7.10).
        """
        encoded, measured = one_hot(candidates, sizes), np.asarray(values, dtype=float)
        centre, base = encoded.mean(axis=0), float(measured.mean())
        left, scales, right = np.linalg.svd(encoded - centre, full_matrices=False)
        turned = left.T @ (measured - base)  # [components]

        def error(penalty: float) -> float:
            kept = scales**2 / (scales**2 + penalty)  # [components]
            leverage = (left**2) @ kept + 1 / len(measured)  # [candidates]
            residual = measured - base - left @ (kept * turned)
            return float(((residual / np.maximum(1 - leverage, 1e-9)) ** 2).sum())

        penalty = min(_PENALTIES, key=error)
        added = right.T @ (scales / (scales**2 + penalty) * turned)  # [choices]
        off = (error(penalty) / len(measured)) ** 0.5
        return cls(base - float(centre @ added), added, tuple(sizes), off)

    def __call__(self, candidate: Candidate) -> float:
        """The predicted value."""
        starts = np.cumsum((0, *self.sizes[:-1]))
        return self.base + float(self.added[starts + np.asarray(candidate)].sum())


def rank_correlation(predicted: Sequence[float], measured: Sequence[float]) -> float | None:
    """Spearman's; None where there are fewer than three, or all of a side are alike."""
    from scipy.stats import spearmanr

    if len(predicted) < 3 or min(len(set(predicted)), len(set(measured))) < 2:
        return None
    statistic: Any = spearmanr(predicted, measured).statistic
    return float(statistic)
