"""Ratios find what is there and nothing else."""

import numpy as np
import pytest
from scipy import stats

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
    method = dense * np.linspace(0.49, 0.51, 6)[:, None]
    method[2, 3] = 50.0
    found = paired_ratio(dense, method)
    assert found.value == pytest.approx(0.5, rel=0.001)
    assert 0.48 < found.low < found.high < 0.52


def test_the_interval_is_student_s_of_the_prompts_log_ratios():
    """Rounds that agree add nothing to what prompts say."""
    ratios = np.array([0.8, 0.9, 0.85, 0.7, 0.95, 0.75, 0.88])
    found = paired_ratio(np.ones((7, 5)), np.repeat(ratios[:, None], 5, axis=1))
    reference = stats.ttest_1samp(np.log(ratios), 0).confidence_interval()
    assert (np.log(found.low), np.log(found.high)) == pytest.approx(tuple(reference))


def test_noise_that_all_prompts_of_a_round_share_widens_it():
    """As where a turn holds all prompts: what it differs by from the next one is one number, not twelve."""
    rng = np.random.default_rng(3)
    turns = np.exp([0.2, -0.1, 0.15, -0.2, 0.05])
    found = paired_ratio(np.ones((12, 5)), turns * rng.lognormal(0, 0.005, (12, 5)))
    assert not found.decided
    assert found.high / found.low > 1.2


@pytest.mark.parametrize("prompts", [1, 2, 5])
def test_a_few_prompts_have_no_interval(prompts):
    rng = np.random.default_rng(4)
    found = paired_ratio(*timings(rng, 0.5, prompts=prompts))
    assert found.value == pytest.approx(0.5, rel=0.2)
    assert (found.low, found.high, found.decided) == (None, None, False)
    assert found.reason == f"{prompts} prompts: an interval needs at least 6"


def test_measurements_without_noise_have_no_interval():
    found = paired_ratio(np.ones((8, 3)), np.full((8, 3), 0.5))
    assert (found.value, found.low) == (pytest.approx(0.5), None)
    assert found.reason == "the same ratio for each of 8 prompts: no noise to estimate"


def test_sums_over_documents():
    rng = np.random.default_rng(2)
    dense = rng.uniform(1, 3, 100)
    found = total_ratio(dense, dense * 0.8)
    assert (found.value, found.low, found.high) == (pytest.approx(0.8),) * 3


def test_a_ratio_that_a_few_documents_share_is_not_called_everybody_s():
    dense = np.random.default_rng(2).uniform(1, 3, 20)
    found = total_ratio(dense, dense * 0.8)
    assert (found.value, found.low) == (pytest.approx(0.8), None)
    assert found.reason.startswith("all of 20 documents are alike")
    paths = np.ones(200)
    paths[:3] = 0.5
    found = total_ratio(np.ones(200), paths)
    assert found.low is None
    assert found.reason.startswith("all but 3 of 200 documents are alike")
    assert total_ratio(dense[:4], dense[:4] * [0.8, 0.7, 0.9, 0.6]).reason.startswith("4 documents")


def test_sums_whose_ratio_changes_from_document_to_document():
    """About the delta method's interval, the wider the more a single document weighs."""
    rng = np.random.default_rng(6)
    dense = rng.uniform(1, 3, 300)
    method = dense * rng.choice([0.5, 1.0], 300)
    found = total_ratio(dense, method)
    residuals = method - found.value * dense
    error = residuals.std(ddof=1) / np.sqrt(300) / method.mean()
    assert np.log(found.high / found.low) / 2 / 1.968 == pytest.approx(error, rel=0.02)


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match="not those of the same prompts"):
        paired_ratio(np.ones((3, 2)), np.ones((2, 3)))
