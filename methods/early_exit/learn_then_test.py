"""Learn then Test: the smallest threshold whose risk is proven, at some confidence, to stay below a limit.

Angelopoulos et al., arXiv:2110.01052, as CALM (Schuster et al., arXiv:2207.07061) uses it: p-values by Hoeffding and
Bentkus, and fixed-sequence testing from the strictest threshold on, which needs no correction for their number.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Tested:
    """A threshold and its test.

    Attributes:
        threshold: the candidate.
        risk: its mean risk over the samples.
        p_value: of the hypothesis that its true risk exceeds the limit.
    """

    threshold: float
    risk: float
    p_value: float


def hoeffding_bentkus(risk: float, samples: int, limit: float) -> float:
    """p-value of "the true risk exceeds the limit", from the mean of independent risks in [0, 1].

    min(exp(-n KL(min(r, d) || d)), e P[Binomial(n, d) <= ceil(n r)]) for a mean r of n samples and a limit d.
    """
    from scipy.special import bdtr

    least = min(risk, limit)
    divergence = (1 - least) * math.log((1 - least) / (1 - limit))
    if least > 0:
        divergence += least * math.log(least / limit)
    # rounded, because n times a mean of n whole numbers may exceed their sum by its last digit
    bentkus = math.e * float(bdtr(math.ceil(round(samples * risk, 6)), samples, limit))
    return min(math.exp(-samples * divergence), bentkus, 1.0)


def samples_needed(limit: float, error: float) -> int:
    """The fewest samples that can prove anything: as many, all without risk, have a p-value of at most the error."""
    return math.ceil(math.log(error) / math.log(1 - limit))


def fixed_sequence(
    thresholds: Iterable[float], risks: Callable[[float], Sequence[float]], limit: float, error: float
) -> list[Tested]:
    """Test thresholds in the given order until one fails.

    Args:
        thresholds: from strict to loose, chosen without looking at the samples.
        risks: the risk of each sample under a threshold, in [0, 1].
        limit: what the true risk must not exceed.
        error: the probability, at most, that an accepted threshold exceeds it.

    Returns:
        The tested ones in order; all but the last are accepted, and the last too if its p-value is at most ``error``.
    """
    tested = []
    for threshold in thresholds:
        samples = risks(threshold)
        mean = sum(samples) / len(samples)
        tested.append(Tested(threshold, mean, hoeffding_bentkus(mean, len(samples), limit)))
        if tested[-1].p_value > error:
            break
    return tested
