"""Paired tests against numbers worked out elsewhere, and against what must hold."""

import numpy as np
import pytest
from scipy import stats

from harness.results.documents import perplexity, weighted_perplexity
from harness.results.stats import paired


def right_or_wrong(lost, gained, n, right=100):
    dense = np.zeros(n)
    method = np.zeros(n)
    dense[:lost] = 1
    method[lost : lost + gained] = 1
    dense[lost + gained : lost + gained + right] = method[lost + gained : lost + gained + right] = 1
    return dense, method


def test_a_difference_of_right_or_wrong_answers():
    found = paired.difference(*right_or_wrong(12, 25, 500))
    assert found.value == pytest.approx(0.026)
    assert (found.low, found.high) == (pytest.approx(0.0022, abs=0.002), pytest.approx(0.0498, abs=0.003))  # normal
    assert (found.test, found.gained, found.lost, found.n) == ("mcnemar-exact", 25, 12, 500)
    assert found.p == pytest.approx(0.047031, abs=5e-7)
    assert found.low > 0


def test_an_interval_never_contradicts_the_test_beside_it():
    found = paired.difference(*right_or_wrong(4, 0, 10, right=4))
    assert found.p == 0.125
    assert -1 <= found.low < -0.4 < 0 < found.high


@pytest.mark.parametrize("n", [2, 3, 50])
def test_documents_that_did_not_change_exclude_no_loss_of_a_point(n):
    found = paired.difference(*right_or_wrong(0, 0, n, right=n // 2))
    assert (found.value, found.p) == (0, 1)
    assert found.low == -found.high < -3 / n / 2
    assert not found.noninferior(0.01)


def test_many_that_did_not_change_exclude_it():
    found = paired.difference(*right_or_wrong(0, 0, 10_000))
    assert found.noninferior(0.01)
    assert found.low == pytest.approx(-3.7e-4, rel=0.01)
    assert found.detectable == pytest.approx(7.9e-4, rel=0.01)


def test_a_few_documents_can_show_no_difference_and_the_reason_says_so():
    found = paired.difference(*right_or_wrong(1, 1, 5, right=1))
    assert found.detectable is None
    assert found.reason == "5 documents: the exact test finds no difference of any size"
    assert paired.difference(*right_or_wrong(1, 1, 6, right=1)).reason is None


def test_wilson():
    assert paired.wilson(430, 500) == (pytest.approx(0.8268, abs=5e-5), pytest.approx(0.8877, abs=5e-5))


def test_holm():
    assert paired.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert paired.holm([0.9, 0.8]) == [1.0, 1.0]
    assert paired.holm([]) == []


def test_other_means_have_the_t_test_and_its_interval():
    rng = np.random.default_rng(1)
    dense = rng.normal(size=60)
    method = dense + rng.normal(0.3, 1.0, size=60)
    found = paired.difference(dense, method)
    assert found.test == "t"
    assert found.p == pytest.approx(stats.ttest_rel(method, dense).pvalue, abs=0.02)
    assert (found.low <= 0 <= found.high) == (found.p > 0.05)


@pytest.mark.parametrize("n", [2, 30, 5000])
def test_other_means_that_did_not_change_have_no_interval(n):
    dense = np.random.default_rng(1).uniform(size=n)
    for found in (
        paired.difference(dense, dense.copy()),
        paired.statistic_difference(dense[:, None], dense[:, None].copy(), perplexity),
    ):
        assert (found.value, found.low, found.high, found.p, found.detectable) == (0, None, None, None, None)
        assert found.noninferior(0.01) is None
        assert found.reason


def test_a_difference_of_shares_stays_within_what_shares_can_be():
    dense = np.linspace(0.9, 1.0, 12)
    method = np.append(np.linspace(0.0, 0.2, 11), 1.0)
    found = paired.difference(dense, method)
    assert -1 <= found.low < found.value < found.high < 0


def test_copies_of_documents_are_clusters_of_right_or_wrong_scores_too():
    dense, method = right_or_wrong(20, 10, 60, right=10)
    copied = paired.difference(np.repeat(dense, 5), np.repeat(method, 5), np.repeat(np.arange(60), 5))
    assert (copied.test, copied.n) == ("t", 300)
    once = paired.difference(dense, method)
    assert copied.value == pytest.approx(once.value)
    assert copied.high - copied.low == pytest.approx(once.high - once.low, rel=0.1)


def test_noninferiority_needs_the_whole_interval():
    found = paired.difference(*right_or_wrong(12, 25, 500))
    assert found.noninferior(0.01)
    worse = paired.difference(*right_or_wrong(25, 12, 500))
    assert not worse.noninferior(0.01)
    assert worse.noninferior(0.06)
    assert worse.noninferior(0.001, higher_is_better=False)


def lengths(n, seed=3):
    """Log-likelihoods and words of documents under two models, of which the second is 5 % worse."""
    rng = np.random.default_rng(seed)
    words = rng.integers(5, 50, n).astype(float)
    dense = np.stack([-2.0 * words + rng.normal(size=n), words], axis=1)
    return dense, dense + np.stack([-0.1 * words + rng.normal(0, 0.5, n), np.zeros(n)], axis=1)


def test_a_score_that_is_no_mean():
    found = paired.statistic_difference(*lengths(200), weighted_perplexity)
    assert found.low < found.value < found.high
    assert found.value == pytest.approx(np.exp(2) * (np.exp(0.1) - 1), rel=0.02)
    assert found.test == "jackknife-t"
    assert found.p < 0.05
    assert not found.noninferior(0.01, higher_is_better=False)


def test_its_interval_is_that_of_leaving_out_each_document():
    dense, method = lengths(40)
    without = np.array([
        weighted_perplexity(np.delete(method, index, 0)) - weighted_perplexity(np.delete(dense, index, 0))
        for index in range(40)
    ])  # fmt: skip
    error = np.sqrt(39 / 40 * ((without - without.mean()) ** 2).sum())
    found = paired.statistic_difference(dense, method, weighted_perplexity)
    assert min(found.high - found.value, found.value - found.low) == pytest.approx(stats.t.ppf(0.975, 39) * error)


def test_a_score_of_a_few_texts_has_no_interval():
    found = paired.statistic_difference(*lengths(6), weighted_perplexity)
    assert (found.low, found.p, found.reason) == (None, None, "6 documents: an interval needs at least 10")


def test_too_few_documents_are_refused():
    with pytest.raises(ValueError, match="at least 2"):
        paired.difference(np.ones(1), np.ones(1))
