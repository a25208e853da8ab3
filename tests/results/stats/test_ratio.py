"""Ratios find what is there and nothing else."""

import numpy as np
import pytest

from harness.results.stats.ratio import paired_ratio, total_ratio


def timings(rng, factor, prompts=12, rounds=5, noise=0.05):
    """Two participants whose rounds drift together, as on a real machine."""
    base = rng.uniform(0.5, 2.0, (prompts, 1)) * rng.lognormal(0, 0.05, (1, rounds))
    return (base * rng.lognormal(0, noise, (prompts, rounds)) * f for f in (1.0, factor))


def test_the_interval_of_equal_costs_contains_one():
    rng = np.random.default_rng(0)
    hits = sum(not paired_ratio(*timings(rng, 1.0)).decided for _ in range(40))
    assert hits >= 36


def test_a_tenth_more_is_found():
    rng = np.random.default_rng(1)
    found = [paired_ratio(*timings(rng, 1.1)) for _ in range(20)]
    assert sum(one.low > 1 for one in found) >= 18
    assert np.mean([one.value for one in found]) == pytest.approx(1.1, rel=0.02)


def test_an_outlier_in_one_round_is_shrugged_off():
    dense = np.ones((6, 5))
    method = dense * 0.5
    method[2, 3] = 50.0
    assert paired_ratio(dense, method).value == pytest.approx(0.5)


def test_sums_over_documents():
    rng = np.random.default_rng(2)
    dense = rng.uniform(1, 3, 100)
    found = total_ratio(dense, dense * 0.8)
    assert (found.value, found.low, found.high) == (pytest.approx(0.8),) * 3


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match="not those of the same prompts"):
        paired_ratio(np.ones((3, 2)), np.ones((2, 3)))
