"""Paired tests against numbers worked out elsewhere, and against what must hold."""

import numpy as np
import pytest
from scipy import stats

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
    assert (found.high - found.low) / 2 / paired.Z_95 == pytest.approx(0.012122, abs=5e-7)
    assert (found.low, found.high) == (pytest.approx(0.0022, abs=5e-5), pytest.approx(0.0498, abs=5e-5))
    assert (found.test, found.gained, found.lost, found.n) == ("mcnemar-exact", 25, 12, 500)
    assert found.p == pytest.approx(0.047031, abs=5e-7)


def test_mcnemar():
    assert paired.mcnemar(12, 25) == pytest.approx(0.047031, abs=5e-7)
    assert paired.mcnemar(7, 7) == 1.0
    assert paired.mcnemar(0, 0) == 1.0


@pytest.mark.parametrize(
    ("discordant", "seen", "n"),
    [(0.05, 0.02, 974), (0.05, 0.01, 3917), (0.10, 0.02, 1955), (0.10, 0.01, 7842), (0.20, 0.02, 3917)],
)
def test_what_can_be_detected_is_what_so_many_documents_are_needed_for(discordant, seen, n):
    """Miller's table: so many documents show a difference where so many answers change."""
    gained = round(n * (discordant + seen) / 2)
    lost = round(n * (discordant - seen) / 2)
    change = np.array([1.0] * gained + [-1.0] * lost + [0.0] * (n - gained - lost))
    assert paired.detectable_difference(change) == pytest.approx(seen, rel=0.01)


def test_nothing_can_be_detected_where_nothing_changed():
    assert paired.detectable_difference(np.zeros(5)) is None


def test_wilson():
    assert paired.wilson(430, 500) == (pytest.approx(0.8268, abs=5e-5), pytest.approx(0.8877, abs=5e-5))


def test_holm():
    assert paired.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert paired.holm([0.9, 0.8]) == [1.0, 1.0]
    assert paired.holm([]) == []


def test_signs_are_flipped_for_other_scores():
    rng = np.random.default_rng(1)
    dense = rng.normal(size=60)
    method = dense + rng.normal(0.3, 1.0, size=60)
    found = paired.difference(dense, method)
    assert found.test == "sign-flip"
    assert found.p == pytest.approx(stats.ttest_rel(method, dense).pvalue, abs=0.02)
    assert paired.difference(dense, dense.copy()).p == 1.0


def test_noninferiority_needs_the_whole_interval():
    found = paired.difference(*right_or_wrong(12, 25, 500))
    assert found.noninferior(0.01)
    worse = paired.difference(*right_or_wrong(25, 12, 500))
    assert not worse.noninferior(0.01)
    assert worse.noninferior(0.06)
    assert worse.noninferior(0.001, higher_is_better=False)


def test_a_score_that_is_no_mean_is_resampled():
    rng = np.random.default_rng(3)
    words = rng.integers(5, 50, 200).astype(float)
    dense = np.stack([-2.0 * words + rng.normal(size=200), words], axis=1)
    method = dense + np.stack([-0.1 * words, np.zeros(200)], axis=1)
    found = paired.statistic_difference(dense, method, lambda v: np.exp(-v[..., 0].sum(-1) / v[..., 1].sum(-1)))
    assert found.low < found.value < found.high
    assert found.value == pytest.approx(np.exp(2) * (np.exp(0.1) - 1), rel=0.02)
    assert found.p < 0.05


def test_too_few_documents_are_refused():
    with pytest.raises(ValueError, match="at least 2"):
        paired.difference(np.ones(1), np.ones(1))
