"""The exact test and its interval say the same of every table, and the interval covers what it says it covers."""

import numpy as np
import pytest
from scipy.stats import binom, binomtest, multinomial

from harness.results.stats.mcnemar import detectable, interval, mcnemar


def tables(n: int) -> list[tuple[int, int]]:
    """All counts of documents (lost, gained) among n."""
    return [(lost, gained) for lost in range(n + 1) for gained in range(n + 1 - lost)]


def large_tables() -> list[tuple[int, int, int]]:
    """Tables of up to 15,000 documents, most of them near to where the test decides."""
    rng = np.random.default_rng(5)
    drawn = []
    for _ in range(60):
        n = int(rng.integers(20, 15_000))
        changed = int(rng.integers(1, n + 1))
        drawn.append((int(np.clip(changed / 2 + rng.normal(0, 1.2) * changed**0.5, 0, changed)), changed, n))
    return [(lost, changed - lost, n) for lost, changed, n in drawn]


def test_mcnemar() -> None:
    assert mcnemar(12, 25) == pytest.approx(0.047031, abs=5e-7)
    assert mcnemar(7, 7) == mcnemar(0, 0) == 1.0
    for lost, gained in tables(12)[1:]:
        if lost + gained:
            assert mcnemar(lost, gained) == pytest.approx(binomtest(lost, lost + gained).pvalue)


def assert_agrees(lost: int, gained: int, n: int) -> None:
    low, high = interval(lost, gained, n)
    assert (low <= 0 <= high) == (mcnemar(lost, gained) > 0.05)
    assert -1 <= low <= (gained - lost) / n <= high <= 1
    assert low < high
    assert interval(gained, lost, n) == (-high, -low)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 6, 9, 14])
def test_the_interval_contains_zero_exactly_where_the_test_finds_nothing(n: int) -> None:
    for lost, gained in tables(n):
        assert_agrees(lost, gained, n)


def test_so_it_does_for_many_documents() -> None:
    tables = large_tables()
    assert 15 < sum(mcnemar(lost, gained) > 0.05 for lost, gained, _ in tables) < 45
    for table in tables:
        assert_agrees(*table)
    for lost, n in ((5, 40), (6, 40), (40, 40), (39, 40), (15_000, 15_000)):
        assert_agrees(lost, 0, n)


@pytest.mark.parametrize("n", [2, 3, 5, 8, 12])
def test_every_truth_is_covered(n: int) -> None:
    """By adding up the probabilities of all tables: at least 95 %, whatever changes how often."""
    counts = np.array(tables(n))  # [tables, lost or gained]
    bounds = np.array([interval(lost, gained, n) for lost, gained in tables(n)])  # [tables, low or high]
    for rate in (0.01, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 0.9, 1.0):
        for direction in np.linspace(-1, 1, 21):
            truth = rate * direction
            shares = [(rate - truth) / 2, (rate + truth) / 2, 1 - rate]
            chances = multinomial.pmf(np.column_stack([counts, n - counts.sum(axis=1)]), n, shares)  # [tables]
            inside = (bounds[:, 0] <= truth + 1e-12) & (truth - 1e-12 <= bounds[:, 1])  # [tables]
            assert chances[inside].sum() >= 0.95


@pytest.mark.parametrize("n", [1, 2, 3, 50, 1200, 10_000])
def test_no_change_excludes_only_what_would_have_been_seen(n: int) -> None:
    """If more changed for the worse than that, one in n documents would have, in 97.5 % of tries."""
    assert interval(0, 0, n) == pytest.approx((0.025 ** (1 / n) - 1, 1 - 0.025 ** (1 / n)))


def test_it_is_hardly_wider_than_a_normal_one_where_that_holds() -> None:
    for lost, gained in ((60, 60), (90, 30), (180, 120)):
        low, high = interval(lost, gained, 1200)
        normal = 2 * 1.96 * np.sqrt((lost + gained - (gained - lost) ** 2 / 1200) / (1200 * 1199))
        assert 1 < (high - low) / normal < 1.07


def test_one_more_that_got_better_moves_both_bounds_up() -> None:
    for lost, gained in ((0, 0), (3, 1), (7, 20), (30, 0)):
        (low, high), (lower, higher) = interval(lost, gained, 60), interval(lost, gained + 1, 60)
        assert lower > low
        assert higher > high


def found(n: int, rate: float, difference: float) -> float:
    """The probability that p is below .05, over all tables."""
    counts = np.arange(n + 1)
    shown = [
        sum(binom.pmf(gained, changed, (1 + difference / rate) / 2) * (mcnemar(changed - gained, gained) < 0.05)
            for gained in range(changed + 1))
        for changed in counts
    ]  # fmt: skip
    return float(binom.pmf(counts, n, rate) @ shown)


@pytest.mark.parametrize(("n", "changed"), [(12, 0), (20, 10), (40, 8), (40, 1), (40, 40)])
def test_what_is_detectable_is_found_in_four_of_five_tries(n: int, changed: int) -> None:
    least = detectable(n, changed)
    assert least is not None
    rate = max(changed / n, least)
    assert found(n, rate, least) == pytest.approx(0.8, abs=1e-6)
    assert found(n, rate, 0.98 * least) < 0.8


def test_what_is_detectable_where_much_changes_is_as_tables_of_power_have_it() -> None:
    """Miller's formula for the normal test, which asks for a little less."""
    for changing, difference, n in ((0.05, 0.01, 3917), (0.10, 0.02, 1955), (0.20, 0.02, 3917)):
        least = detectable(n, round(n * changing))
        assert least is not None
        assert 1 < least / difference < 1.05


def test_too_few_documents_can_show_nothing() -> None:
    assert [detectable(n, n) is None for n in (2, 5, 6)] == [True, True, False]
