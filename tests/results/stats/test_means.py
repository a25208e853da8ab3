"""Student's interval: as scipy has it where nothing is skewed, wider where something is, none where it would guess."""

import numpy as np
import pytest
from scipy import stats

from harness.results.documents import weighted_perplexity
from harness.results.stats.means import bounds, varied
from harness.results.stats.paired import difference, statistic_difference

SYMMETRIC = np.array([1.0, -1.0, 2.5, -2.5, 0.3, -0.3, 4.0, -4.0, 0.7, -0.7, 1.9, -1.9])


def test_it_is_the_t_test_where_values_are_symmetric() -> None:
    values = SYMMETRIC + 1.0
    found, reference = bounds(float(values.mean()), values), stats.ttest_1samp(values, 0)
    assert found.p == pytest.approx(reference.pvalue)
    assert (found.low, found.high) == pytest.approx(tuple(reference.confidence_interval()))


def test_the_side_of_the_long_tail_is_wider() -> None:
    values = np.random.default_rng(0).exponential(size=30)
    found, reference = bounds(float(values.mean()), values), stats.ttest_1samp(values, 0).confidence_interval()
    assert found.high > reference.high
    assert found.low == pytest.approx(reference.low)


@pytest.mark.parametrize("clustered", [False, True])
def test_the_interval_contains_zero_exactly_where_the_test_finds_nothing(clustered: bool) -> None:
    rng = np.random.default_rng(1)
    decisions = []
    for index in range(400):
        n = int(rng.integers(30, 80))
        values = (rng.normal(size=n), rng.exponential(size=n), rng.lognormal(0, 1.5, n))[index % 3]
        values = values - values.mean() + rng.normal(0, 3) * values.std() / n**0.5
        found = bounds(float(values.mean()), values, rng.permutation(n) % (n // 2) if clustered else None)
        assert found.low < values.mean() < found.high
        assert (found.low <= 0 <= found.high) == (found.p > 0.05)
        decisions.append(found.p > 0.05)
    assert 100 < sum(decisions) < 300


def test_copies_of_a_document_are_no_more_documents() -> None:
    once = bounds(float((SYMMETRIC + 1).mean()), SYMMETRIC + 1)
    copies = np.repeat(SYMMETRIC + 1, 10)
    tenfold = bounds(float(copies.mean()), copies, np.repeat(np.arange(12), 10))
    assert (tenfold.low, tenfold.high, tenfold.p) == pytest.approx((once.low, once.high, once.p))


def test_clusters_of_several_sizes() -> None:
    """Cameron and Miller, "A practitioner's guide to cluster-robust inference": CR1 of a mean, by hand."""
    sizes = np.array([3, 4, 5, 3, 4, 5] * 4)
    own = np.repeat(np.arange(24), sizes)
    values = np.random.default_rng(2).normal(size=24)[own] + np.random.default_rng(3).normal(size=len(own))
    values = np.concatenate([values, -values])  # symmetric
    own = np.concatenate([own, own + 24])
    totals = np.array([(values[own == index] - values.mean()).sum() for index in range(48)])
    error = np.sqrt(48 / 47 * (totals**2).sum()) / len(values)
    found = bounds(0.0, values, own)
    assert found.high == pytest.approx(stats.t.ppf(0.975, 47) * error)


def test_nothing_is_said_where_too_little_is_known() -> None:
    assert bounds(0.0, SYMMETRIC[:8]).reason == "8 documents: an interval needs at least 10"
    assert bounds(0.0, np.repeat(SYMMETRIC, 9), np.repeat(np.arange(12), 9) // 2).reason.startswith("6 documents")
    assert (
        bounds(0.0, np.zeros(1000)).reason == "all of 1000 documents are alike: how often others are not cannot be told"
    )
    assert bounds(0.5, np.full(50, 0.5)).reason.startswith("all of 50")
    rare = np.zeros(100)
    rare[:4] = -1
    assert bounds(-0.04, rare).reason.startswith("all but 4 of 100 documents are alike")
    weights = np.ones(12)
    weights[0] = 50
    assert bounds(0.0, SYMMETRIC, weights=weights).reason.startswith("12 documents that count like 1.5 of one size")
    for found in (bounds(0.0, SYMMETRIC[:8]), bounds(0.0, np.zeros(1000))):
        assert (found.low, found.high, found.p, found.detectable) == (None,) * 4


def test_what_is_detectable_is_found_in_four_of_five_tries() -> None:
    rng = np.random.default_rng(4)
    least = np.mean([bounds(0.0, rng.normal(size=40)).detectable for _ in range(100)])
    shown = [bounds(float(values.mean()), values).p < 0.05 for values in rng.normal(least, 1, (400, 40))]
    assert 0.75 < np.mean(shown) < 0.87


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6, 1e12])
def test_documents_that_differ_by_rounding_are_alike(scale: float) -> None:
    """Whatever the scale of the scores, no interval is as narrow as rounding."""
    before = scale * (np.random.default_rng(0).random(20) + 0.1)
    found = difference(before, before + 0.3 * scale)
    assert (found.low, found.high, found.p) == (None, None, None)
    assert found.reason.startswith("all of 20 documents are alike")
    genuine = difference(before, before + 0.3 * scale * (1 + 1e-3 * np.arange(20)))
    assert genuine.low is not None


def test_texts_of_one_perplexity_and_several_lengths_are_alike() -> None:
    words = np.arange(50.0, 70.0)
    found = statistic_difference(np.c_[-words * 7, words], np.c_[-words * 7.7, words], weighted_perplexity)
    assert (found.low, found.high, found.p) == (None, None, None)
    assert found.reason.startswith("all of 20 documents are alike")


def test_values_on_both_sides_of_a_rounded_number_are_alike() -> None:
    assert varied(0.5 + 1e-13 * np.array([-3.0, -1.0, 1.0, 3.0])) == 0
    assert varied(np.array([1.0, 1.0, 1.0 + 1e-6])) == 1
