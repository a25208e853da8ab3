"""The fit finds the costs that made the timings, and says how good it is."""

from itertools import pairwise

import numpy as np
import pytest

from harness.measure.profile import (
    Fit,
    HeldOut,
    Line,
    LinearCosts,
    TableCosts,
    Work,
    fit_decode,
    fit_prefill,
    forward_seconds,
    label_of,
    nonnegative_fit,
    pairs,
)

TRUE = LinearCosts(
    fixed=2e-3,
    fixed_token=1e-6,
    attention=3e-4,
    attention_token=5e-6,
    attention_pair=2e-9,
    mlp=4e-4,
    mlp_token=9e-6,
    head_row=3e-6,
)


def works(lengths=(1, 8, 16, 32, 64, 128, 256, 512), contexts=None):
    depths = [(12, 12), (8, 8), (4, 4), (1, 1), (6, 12), (12, 6)]
    made = [Work(n, n if contexts is None else c, a, m, r) for n in lengths for c in contexts or (n,)
            for a, m in depths for r in {1, n}]  # fmt: skip
    return [work for work in made if work.c >= work.n]


def test_costs_are_recovered_without_noise():
    given = works()
    found = LinearCosts.fit(given, [forward_seconds(TRUE, work) for work in given])
    for name in LinearCosts.model_fields:
        assert getattr(found, name) == pytest.approx(getattr(TRUE, name), rel=1e-6)


def test_costs_are_recovered_under_noise():
    given, rng = works(), np.random.default_rng(0)
    noisy = [forward_seconds(TRUE, work) * rng.lognormal(0, 0.02) for work in given]
    found = LinearCosts.fit(given, noisy)
    for work in (Work(1, 1, 12, 12), Work(100, 100, 6, 6), Work(512, 512, 12, 12, 512)):
        assert forward_seconds(found, work) == pytest.approx(forward_seconds(TRUE, work), rel=0.03)


def test_no_cost_is_negative():
    assert nonnegative_fit([[1, 1], [1, 2], [1, 3]], [3.0, 2.0, 1.0])[1] == 0
    line = Line.fit([1, 10, 100], [1.0, 0.9, 0.8])
    assert line.per_token == 0
    assert line.seconds(0) == 0


def test_lines_are_kept_where_they_are_close_and_a_table_where_not():
    given = works()
    costs, quality = fit_prefill(given, [forward_seconds(TRUE, work) for work in given], TRUE.attention_pair)
    assert isinstance(costs, LinearCosts)
    assert quality.mape < 1e-6
    assert quality.r2 == pytest.approx(1)
    bent = [forward_seconds(TRUE, work) * (1 if work.n < 64 else 1.6) for work in given]
    costs, quality = fit_prefill(given, bent, TRUE.attention_pair)
    assert isinstance(costs, TableCosts)
    assert quality.mape < 0.02
    assert quality.left_out > quality.mape


def test_a_table_is_continuous_and_rises():
    given = works()
    table = TableCosts.fit(given, [forward_seconds(TRUE, work) for work in given], TRUE.attention_pair)
    times = [forward_seconds(table, Work(n, n, 12, 12)) for n in range(1, 700)]
    assert all(after >= before for before, after in pairwise(times))
    assert max(after / before for before, after in pairwise(times)) < 1.05
    assert times[599] == pytest.approx(forward_seconds(TRUE, Work(600, 600, 12, 12)), rel=0.1)


def test_costs_may_fall_where_rising_ones_are_far_off():
    given = works()
    falling = [forward_seconds(TRUE, work) * (6 if work.n < 8 else 1) for work in given]
    costs, quality = fit_prefill(given, falling, TRUE.attention_pair)
    assert quality.mape < 0.02
    assert forward_seconds(costs, Work(1, 1, 12, 12)) > forward_seconds(costs, Work(8, 8, 12, 12))


def test_decode_depends_on_depth_and_context():
    given = works(lengths=(1,), contexts=(16, 64, 256, 512))
    costs, quality = fit_decode(given, [forward_seconds(TRUE, work) for work in given])
    assert quality.mape < 1e-6
    for work in (Work(1, 100, 12, 12), Work(1, 1000, 3, 3)):
        assert forward_seconds(costs, work) == pytest.approx(forward_seconds(TRUE, work), rel=1e-6)
    deeper = forward_seconds(costs, Work(1, 64, 12, 12)) - forward_seconds(costs, Work(1, 64, 9, 9))
    layer = 3e-4 + 5e-6 + 2e-9 * 64 + 4e-4 + 9e-6
    assert deeper == pytest.approx(3 * layer, rel=1e-6)


def test_pairs_and_quality():
    assert pairs(4, 4) == 10
    assert pairs(1, 7) == 7
    found = Fit.of(np.array([1.1, 1.9]), np.array([1.0, 2.0]))
    assert (found.mape, found.worst) == (pytest.approx(0.075), pytest.approx(0.1))


@pytest.mark.parametrize(
    ("fitted", "held_out", "speedup", "worst", "complete", "label"),
    [
        (0.05, 0.08, 0.05, 0.10, True, "good"),
        (0.05, 0.08, 0.05, 0.10, False, "fair"),
        (0.06, 0.01, 0.01, 0.01, True, "fair"),
        (0.01, 0.09, 0.01, 0.01, True, "fair"),
        (0.01, 0.01, 0.06, 0.06, True, "fair"),
        (0.01, 0.01, 0.01, 0.11, True, "fair"),
        (0.05, 0.05, 0.119, 0.246, True, "poor"),
        (0.01, 0.01, 0.11, 0.11, True, "poor"),
        (0.01, 0.01, 0.01, 0.21, True, "poor"),
        (0.11, 0.01, 0.01, 0.01, True, "poor"),
        (0.01, 0.16, 0.01, 0.01, True, "poor"),
    ],
)
def test_a_label_looks_at_times_and_at_speedups(fitted, held_out, speedup, worst, complete, label):
    schedules = HeldOut(schedules=8, mape=held_out, bias=0, speedup_error=speedup, speedup_worst=worst)
    assert label_of(fitted, schedules, complete=complete) == label


def test_costs_of_sliding_windows_are_recovered():
    """A window bounds what a decode step meets; a prompt is multiplied whole."""
    depths = [(16,) * 12, (16,) * 6, (), (64,) * 4]
    given = [
        Work(1, c, a, m, windows=windows[:a])
        for c in (8, 16, 64, 256, 512)
        for windows in depths
        for a, m in [(12, 12), (8, 8), (4, 4), (1, 1), (6, 12), (12, 6)]
    ]
    found, quality = fit_decode(given, [forward_seconds(TRUE, work) for work in given])
    assert quality.mape < 1e-6
    assert found.attention_pair == pytest.approx(TRUE.attention_pair, rel=1e-4)
    step = Work(1, 4096, 12, 12, windows=(16,) * 12)
    assert forward_seconds(found, step) == pytest.approx(forward_seconds(TRUE, Work(1, 16, 12, 12)), rel=1e-4)


@pytest.mark.parametrize("n", [1, 8, 300])
def test_a_window_takes_nothing_off_a_prompt(n):
    assert Work(n, n, 3, 3, windows=(16, 16)).pairs == Work(n, n, 3, 3).pairs
